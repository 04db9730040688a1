"""Timing attention kernels: every answer is found once, and kept."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from efface.models.attention_timing import REPEATS, milliseconds

CPU, SHAPES = torch.device("cpu"), ((2, 16, 8), (2, 4, 16))


class Counted:
    """Attention that counts how often it is called."""

    def __init__(self) -> None:
        self.calls: list[tuple[tuple[int, ...], torch.dtype, bool]] = []

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        self.calls.append((tuple(q.shape), q.dtype, torch.is_grad_enabled()))
        return F.scaled_dot_product_attention(q, k, v)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    yield tmp_path / "attention"


def test_a_kernel_is_timed_forward_and_backward_at_every_shape() -> None:
    counted = Counted()
    found = milliseconds({"sdpa": counted}, CPU, torch.float32, SHAPES)
    assert set(found) == {"sdpa"} and found["sdpa"] > 0
    expected = {((8, *shape), torch.float32, grad) for shape in SHAPES for grad in (False, True)}
    assert set(counted.calls) == expected and len(counted.calls) == 4 * (REPEATS + 1)


def test_times_are_milliseconds_of_forward_and_of_forward_with_backward() -> None:
    def waits(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        time.sleep(0.02)
        return F.scaled_dot_product_attention(q, k, v)

    found = milliseconds({"waits": waits}, CPU, torch.float32, SHAPES)
    assert found["waits"] >= 20 * 2 * len(SHAPES)


def test_the_answer_is_kept_on_disk(cache: Path) -> None:
    first = milliseconds({"sdpa": Counted()}, CPU, torch.float32, SHAPES)
    counted = Counted()
    assert milliseconds({"sdpa": counted}, CPU, torch.float32, SHAPES) == first
    assert counted.calls == []
    (file,) = cache.glob("*.json")
    kept = json.loads(file.read_text())
    assert (kept["device"], kept["dtype"], kept["milliseconds"]) == ("cpu", "torch.float32", first)


@pytest.mark.parametrize(
    "other",
    [{"dtype": torch.float64}, {"shapes": SHAPES[:1]}, {"kernels": {"sdpa": Counted(), "flash": Counted()}}],
    ids=["dtype", "shapes", "kernels"],
)
def test_another_question_is_another_answer(other: dict[str, Any], cache: Path) -> None:
    question: dict[str, Any] = {
        "kernels": {"sdpa": Counted()},
        "device": CPU,
        "dtype": torch.float32,
        "shapes": SHAPES,
    }
    milliseconds(**question)
    milliseconds(**{**question, **other})
    assert len(list(cache.glob("*.json"))) == 2


@pytest.mark.parametrize("rubbish", ["", "{}", "[1]", '{"milliseconds": {"gone": 1}}', '{"milliseconds": {}}'])
def test_a_damaged_answer_is_found_anew(rubbish: str, cache: Path) -> None:
    milliseconds({"sdpa": Counted()}, CPU, torch.float32, SHAPES)
    (file,) = cache.glob("*.json")
    file.write_text(rubbish)
    counted = Counted()
    assert milliseconds({"sdpa": counted}, CPU, torch.float32, SHAPES)["sdpa"] > 0
    assert counted.calls and json.loads(file.read_text())["milliseconds"]["sdpa"] > 0


def test_a_kernel_that_fails_at_a_shape_is_left_out() -> None:
    def narrow(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if q.shape[-1] > 8:
            raise RuntimeError("heads are too wide")
        return F.scaled_dot_product_attention(q, k, v)

    assert set(milliseconds({"narrow": narrow, "sdpa": Counted()}, CPU, torch.float32, SHAPES)) == {"sdpa"}


def test_a_cache_that_cannot_be_written_costs_time_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "file"))
    assert milliseconds({"sdpa": Counted()}, CPU, torch.float32, SHAPES)["sdpa"] > 0
