"""A measured optimiser step: with a counter that stands for a GPU's, on the CPU."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from efface.models.base import Base, read_base
from efface.models.shapes import ModelShapes, model_shapes
from efface.train.cost.measured_memory import measured_peak
from efface.train.method import get_method, parse_config
from efface.train.trainer.options import TrainingOptions


class FakePeak:
    """Counts how often it is called, and answers with 1000 bytes more each time."""

    device, device_name = "cpu", "a GPU"

    def __init__(self) -> None:
        self.calls: list[str] = []

    def reset(self) -> None:
        self.calls.append("reset")

    def peak(self) -> int:
        self.calls.append("peak")
        return 1000 * len(self.calls)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))


@pytest.fixture
def shapes(tiny_base_folder: Path) -> ModelShapes:
    return model_shapes(read_base(tiny_base_folder))


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of trained tensors with a gradient at each step that Adam makes."""
    made: list[int] = []
    step = torch.optim.Adam.step

    def noted(self: Any, *arguments: Any) -> Any:
        made.append(sum(value.grad is not None for group in self.param_groups for value in group["params"]))
        return step(self, *arguments)

    monkeypatch.setattr(torch.optim.Adam, "step", noted)
    return made


def esd(**config: Any) -> Any:
    return get_method("esd")(parse_config("esd", config))


def test_one_optimiser_step_is_made_between_reset_and_peak(
    tiny_base: Base, shapes: ModelShapes, steps: list[int]
) -> None:
    counter = FakePeak()
    before = {name: value.clone() for name, value in tiny_base.tensors().items()}
    assert measured_peak(esd(), tiny_base, shapes, TrainingOptions(), counter) == 2000
    assert counter.calls == ["reset", "peak"]
    assert steps == [len(esd().trained(type("", (), {"modules": tiny_base.modules})))]
    assert all(torch.equal(value, before[name]) for name, value in tiny_base.tensors().items())


def test_of_several_batches_two_are_made(tiny_base: Base, shapes: ModelShapes, steps: list[int]) -> None:
    passes = []
    tiny_base.unet.register_forward_pre_hook(lambda module, inputs: passes.append(torch.is_grad_enabled()))
    measured_peak(esd(gradient_accumulation_steps=8), tiny_base, shapes, TrainingOptions(), FakePeak())
    # the student is a copy, hook and all: the teacher's pass and the student's, twice
    assert passes == [False, True] * 2 and len(steps) == 1


def test_a_peak_is_measured_once_for_each_device_base_method_config_and_options(
    tiny_base: Base, shapes: ModelShapes
) -> None:
    counter = FakePeak()

    def measured(method: Any = None, **options: Any) -> int:
        return measured_peak(method or esd(), tiny_base, shapes, TrainingOptions(**options), counter)

    assert measured() == measured() == 2000
    assert measured(tracker="tensorboard", tracker_folder="/nowhere") == 2000
    others = [measured(esd(batch_size=2)), measured(gradient_checkpointing=True)]
    counter.device_name = "another GPU"
    others.append(measured())
    assert others == [4000, 6000, 8000]


@pytest.mark.parametrize("name", ["ca", "esd", "fade"])
def test_every_method_is_measured_without_being_prepared(name: str, tiny_base: Base, shapes: ModelShapes) -> None:
    config = {"batch_size": 1, **({"sizes": None} if name == "fade" else {})}
    method: Any = get_method(name)(parse_config(name, config))
    assert measured_peak(method, tiny_base, shapes, TrainingOptions(), FakePeak()) == 2000


def test_a_step_that_does_not_fit_says_so_and_is_not_kept(
    tiny_base: Base, shapes: ModelShapes, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = copy.copy(type(tiny_base.unet).forward)

    def full(*arguments: Any, **options: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(type(tiny_base.unet), "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        measured_peak(esd(), tiny_base, shapes, TrainingOptions(), FakePeak())
    monkeypatch.setattr(type(tiny_base.unet), "forward", forward)
    assert measured_peak(esd(), tiny_base, shapes, TrainingOptions(), FakePeak()) == 2000
