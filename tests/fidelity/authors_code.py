"""What the tests against numbers recorded from authors' code share: the model, the concepts, and the numbers."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer, register_optimizer_step_pre_hook

from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base, load_base
from tests.fidelity.tiny_model import write_model

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def recorded_model(tmp_path_factory: pytest.TempPathFactory, write_tokenizer: Callable[[Path], int]) -> Path:
    return write_model(tmp_path_factory.mktemp("recorded") / "model", write_tokenizer)


@pytest.fixture
def recorded_base(recorded_model: Path) -> Base:
    """The model on which the authors' code was run, freshly loaded."""
    return load_base(recorded_model)


@pytest.fixture(scope="session")
def authors_concepts() -> ConceptSet:
    """The concepts of the authors' commands."""
    return ConceptSet(
        name="authors",
        version=1,
        concepts=(
            Concept(name="Van Gogh", kind="style", phrase="a painting by Van Gogh", anchor="a painting"),
            Concept(name="Picasso", kind="style", phrase="a painting by Picasso", anchor="a painting"),
            Concept(name="golf ball", kind="object", phrase="a golf ball", anchor="a basketball"),
            Concept(name="church", kind="scene", phrase="a church", anchor="a house"),
            Concept(name="r2d2", kind="object", phrase="r2d2", anchor="robot"),
            *(
                Concept(name=name, kind="nsfw", phrase=name, anchor="a meadow")
                for name in ("violence", "nudity", "harm")
            ),
            Concept(name="Blue Jay", kind="animal", phrase="a blue jay", anchor="a sparrow"),
        ),
    )


def recorded(name: str) -> dict[str, Tensor]:
    """The tensors recorded from the authors' code of a method."""
    return safetensors.torch.load_file(HERE / f"{name}.safetensors")


def recorded_facts(name: str) -> dict[str, str]:
    """What was noted beside them: the commit of the authors' repository, names of trained tensors."""
    with safetensors.safe_open(HERE / f"{name}.safetensors", "pt") as file:
        return dict(file.metadata())


@contextmanager
def noted_gradients() -> Iterator[list[list[Tensor]]]:
    """For each optimiser step within, the gradients of all that it trains, in its order."""
    steps: list[list[Tensor]] = []

    def note(optimizer: Optimizer, *given: object) -> None:
        trained = (value for group in optimizer.param_groups for value in group["params"])
        steps.append([torch.zeros_like(v) if v.grad is None else v.grad.detach().clone() for v in trained])

    handle = register_optimizer_step_pre_hook(note)
    try:
        yield steps
    finally:
        handle.remove()


def assert_same_steps(
    trained: Mapping[str, Tensor],
    before: Mapping[str, Tensor],
    expected: Mapping[str, Tensor],
    gradients: Sequence[Sequence[Tensor]],
) -> None:
    """Trained weights moved as the recorded ones did (`expected`): 99 in 100 within 1e-4 of the longest way of one.

    trained: what the optimiser trains, in its order; gradients: of each step, see `noted_gradients`. The others are
    within 1e-4 a step, as processors differ in the order of their sums, but for two things. Each step rounds a weight
    to the spacing of fp32 at its size, 6e-8 at 0.5, which is 4e-4 of three steps at a rate of 5e-5: that is taken off.
    And Adam divides a gradient by its size, so one below a hundredth of the median of its step is known to 1e-4 of
    itself at best, as gradients are sums of terms that cancel, rounded at 1e-6 of the median: weights with such a
    gradient, 1 in 25 at most, are held within 5e-2.
    """
    longest = max(float(way.abs().max()) for way in expected.values())
    small = _with_small_gradients(trained, gradients)
    errors = {name: (trained[name] - before[name] - way).abs() for name, way in expected.items()}
    rounding = {
        name: len(gradients) * _spacing(torch.maximum(before[name].abs(), trained[name].abs())) for name in expected
    }
    error = torch.cat([error.flatten() for error in errors.values()]) / longest
    beyond = torch.cat([(error - rounding[name]).flatten() for name, error in errors.items()]) / longest
    is_uncertain = torch.cat([small[name].flatten() for name in expected])
    assert is_uncertain.float().mean() < 0.04
    assert error.quantile(0.99) < 1e-4 and error.max() < 5e-2, error.sort(descending=True).values[:10]
    assert beyond[~is_uncertain].max() < 1e-4 * len(gradients), beyond[~is_uncertain].sort(descending=True).values[:10]


def _spacing(value: Tensor) -> Tensor:
    """Of fp32 at these sizes."""
    return torch.nextafter(value, torch.tensor(torch.inf)) - value


def _with_small_gradients(trained: Mapping[str, Tensor], gradients: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
    """By name, which weights had a gradient below a hundredth of the median, but not of zero, in some step."""
    small = {name: torch.zeros_like(value, dtype=torch.bool) for name, value in trained.items()}
    for of_step in gradients:
        sizes = torch.cat([gradient.abs().flatten() for gradient in of_step])
        limit = 1e-2 * sizes[sizes > 0].median() if (sizes > 0).any() else sizes.new_zeros(())
        for (name, value), gradient in zip(trained.items(), of_step, strict=True):
            assert value.shape == gradient.shape, name
            small[name] |= (gradient != 0) & (gradient.abs() < limit)
    return small
