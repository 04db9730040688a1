"""An exponential moving average of trained weights, which can take their place for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor


class MovingAverage:
    """`decay * average + (1 - decay) * weights` after each step, beginning with the weights as they are."""

    def __init__(self, weights: Mapping[str, Tensor], decay: float) -> None:
        self.weights, self.decay = dict(weights), decay
        self.average = {name: value.detach().clone() for name, value in self.weights.items()}

    def update(self) -> None:
        for name, value in self.average.items():
            value.mul_(self.decay).add_(self.weights[name].detach(), alpha=1 - self.decay)

    def restore(self, average: Mapping[str, Tensor]) -> None:
        for name, value in self.average.items():
            value.copy_(average[name])

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within it the weights are the average; to be used without gradient."""
        trained = {name: value.data for name, value in self.weights.items()}
        try:
            for name, value in self.weights.items():
                value.data = self.average[name]
            yield
        finally:
            for name, value in self.weights.items():
                value.data = trained[name]
