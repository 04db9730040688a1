"""The loop against gradient descent by hand, on a loss with one trained vector b:  sum (b - target_i)^2."""

import os
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from torch import Tensor, nn

from efface.errors import JobFailure
from efface.models.base import Base
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.shapes import ModelShapes
from efface.train.method import GradientConfig, GradientMethod, UnlearningTask
from efface.train.method_cost import Cost
from efface.train.trainer.loop import learning_rate_factor, train

BIAS = "unet.conv_out.bias"


class Pull(GradientMethod):
    """Pulls the output's bias to the batch's target."""

    group = "full"

    def __init__(self, targets: list[float], **config: Any) -> None:
        settings = {"optimizer": "sgd", "learning_rate": 0.1, **config}
        super().__init__(GradientConfig(**settings))
        self.targets = targets
        self.seen: list[int] = []

    def cost(self, shapes: ModelShapes) -> Cost:
        return Cost(trained_rows=1)

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        self.student = student

    def trained(self, student: Denoiser) -> dict[str, nn.Parameter]:
        return {BIAS: student.module.conv_out.bias}

    def batch(self, index: int) -> float:
        assert not torch.is_grad_enabled()
        self.seen.append(index)
        return self.targets[index]

    def loss(self, student: NoisePredictor, batch: float) -> Tensor:
        return ((self.student.module.conv_out.bias - batch) ** 2).sum()


@pytest.fixture
def run(tiny_base: Base, concept_set: Any) -> Any:
    """A function: the bias after training, and the losses."""

    def go(method: Pull) -> tuple[Tensor, list[float]]:
        with torch.no_grad():
            tiny_base.unet.conv_out.bias.fill_(1.0)
        tensors, losses, _ = train(method, UnlearningTask(tiny_base, concept_set.concepts[:1], concept_set, 0))
        return tensors[BIAS], losses

    return go


def test_one_step_of_gradient_descent(run: Any) -> None:
    bias, losses = run(Pull([3.0], steps=1))
    torch.testing.assert_close(bias, torch.full((4,), 1 - 0.1 * 2 * (1 - 3.0)))
    assert losses == [4 * (1 - 3.0) ** 2]


def test_accumulated_batches_make_one_step_by_their_mean_gradient(run: Any) -> None:
    method = Pull([3.0, 5.0, 0.0, 1.0], steps=2, gradient_accumulation_steps=2)
    bias, losses = run(method)
    first = 1 - 0.1 * 2 * (1 - 4.0)
    torch.testing.assert_close(bias, torch.full((4,), first - 0.1 * 2 * (first - 0.5)))
    assert method.seen == [0, 1, 2, 3]
    assert losses[0] == pytest.approx(4 * ((1 - 3.0) ** 2 + (1 - 5.0) ** 2) / 2)


def test_the_gradient_is_clipped_to_the_global_norm_given(run: Any) -> None:
    # The gradient is (-4, -4, -4, -4), of norm 8.
    bias, _ = run(Pull([3.0], steps=1, max_grad_norm=2.0))
    torch.testing.assert_close(bias, torch.full((4,), 1 + 0.1 * 4 * 2 / 8), rtol=1e-5, atol=0)


def test_without_a_norm_nothing_is_clipped(run: Any) -> None:
    bias, _ = run(Pull([1001.0], steps=1, max_grad_norm=0))
    torch.testing.assert_close(bias, torch.full((4,), 1 + 0.1 * 2000))


def test_the_learning_rate_warms_up_and_then_falls(run: Any) -> None:
    factors = [learning_rate_factor(step, 6, 2, "linear") for step in range(6)]
    assert factors == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert [learning_rate_factor(step, 4, 0, "constant") for step in range(4)] == [1, 1, 1, 1]
    assert learning_rate_factor(2, 4, 0, "cosine") == pytest.approx(0.5)
    bias, _ = run(Pull([3.0], steps=1, warmup_steps=4))
    torch.testing.assert_close(bias, torch.full((4,), 1 + 0.1 / 4 * 4))


def test_a_loss_that_is_not_finite_names_the_step_and_the_learning_rate(run: Any) -> None:
    with pytest.raises(JobFailure, match=r"loss is nan at step 3 of 5: the learning rate 0.1 is probably too high"):
        run(Pull([1.0, 1.0, float("nan"), 1.0, 1.0], steps=5))


def test_a_first_loss_that_is_not_finite_is_not_the_learning_rates_fault(run: Any) -> None:
    with pytest.raises(JobFailure, match=r"loss is inf at step 1 of 5: nothing was trained yet"):
        run(Pull([float("inf")] * 5, steps=5))


def test_weights_that_the_last_step_made_infinite_are_no_result(run: Any) -> None:
    with pytest.raises(JobFailure, match=r"weights are not finite after step 1"):
        run(Pull([1e18], steps=1, learning_rate=1e30))


def test_only_the_trained_tensors_need_a_gradient_and_the_base_none(run: Any, tiny_base: Base) -> None:
    method = Pull([3.0], steps=1)
    run(method)
    wanting = [name for name, value in method.student.module.named_parameters() if value.requires_grad]
    assert wanting == ["conv_out.bias"]
    assert method.student.module.conv_out.bias.dtype == torch.float32
    assert tiny_base.unet.conv_out.bias.data_ptr() != method.student.module.conv_out.bias.data_ptr()
    assert not tiny_base.unet.conv_out.bias.requires_grad


def test_jobs_of_one_process_do_not_inherit_each_others_settings(run: Any) -> None:
    environment = dict(os.environ)
    run(Pull([3.0, 5.0], steps=1, gradient_accumulation_steps=2))
    bias, _ = run(Pull([3.0], steps=1))
    torch.testing.assert_close(bias, torch.full((4,), 1.4))
    assert not any(state._shared_state for state in (AcceleratorState, GradientState, PartialState))
    assert dict(os.environ) == environment
    assert not torch.distributed.is_initialized()


def test_an_accelerator_of_the_callers_own_is_left_as_it_was(run: Any) -> None:
    own = Accelerator(cpu=True, gradient_accumulation_steps=7)
    try:
        run(Pull([3.0, 5.0], steps=1, gradient_accumulation_steps=2))
        assert own.gradient_accumulation_steps == 7 and own.num_processes == 1
        assert own.device.type == "cpu"
    finally:
        for state in (AcceleratorState, GradientState, PartialState):
            state._shared_state.clear()
