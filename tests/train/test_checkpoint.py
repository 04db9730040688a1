"""A run that is cut and taken up again ends where one that was left alone does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from efface.concepts.concept import ConceptSet
from efface.errors import Stopped
from efface.models.base import Base
from efface.train.job import Job
from efface.train.method import GradientMethod, get_method, method_names
from efface.train.run_job import run_job

QuickJob = Callable[..., Job]
GRADIENT = [name for name in method_names() if issubclass(get_method(name), GradientMethod)]
SAMPLES = {"ca": {"samples_seen": 8}}
"""Four optimiser steps of each method that counts samples instead."""


@pytest.fixture
def run(tiny_base: Base, concept_set: ConceptSet, tmp_path: Path) -> Any:
    """A function (job, stop_at=None, every=50) -> delta and metrics, or the Stopped raised; all with one checkpoint."""

    def go(job: Job, stop_at: int | None = None, save_steps: int = 50) -> Any:
        def on_step(done: int, steps: int, loss: float) -> None:
            seen.append(done)
            if done == stop_at:
                raise Stopped(f"at {done}")

        seen.clear()
        try:
            return run_job(
                job, tiny_base, concept_set, on_step, checkpoint=tmp_path / "checkpoint", save_steps=save_steps
            )
        except Stopped as stopped:
            return stopped

    seen: list[int] = []
    go.seen = seen  # type: ignore[attr-defined]
    return go


WITH_SGD = ("esd", "fade")
"""Of weights and of adapters: what an optimiser keeps of them does not depend on the method."""


@pytest.mark.parametrize(
    ("name", "optimizer"),
    [
        *((name, "adamw") for name in GRADIENT),
        *((name, "sgd") for name in WITH_SGD),
        *(pytest.param(name, "sgd", marks=pytest.mark.slow) for name in GRADIENT if name not in WITH_SGD),
    ],
)
def test_taken_up_at_a_step_it_ends_bit_for_bit_where_an_uninterrupted_run_does(
    name: str, optimizer: str, quick_job: QuickJob, run: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    how = {"schedule": "cosine", "weight_decay": 0.1, "max_grad_norm": 0.5}
    job = quick_job(name, optimizer=optimizer, **how, **SAMPLES.get(name, {"steps": 4}))
    random_state = torch.get_rng_state()
    alone, metrics = run_job(job, tiny_base, concept_set)
    assert isinstance(run(job, stop_at=2), Stopped)
    delta, taken_up = run(job)
    assert run.seen[0] == 3
    assert taken_up.losses == metrics.losses
    assert all(torch.equal(delta.tensors[key], value) for key, value in alone.tensors.items())
    assert torch.equal(torch.get_rng_state(), random_state)  # none is used, so none has to be kept


def test_it_is_written_every_so_many_steps(quick_job: QuickJob, run: Any, tmp_path: Path) -> None:
    job = quick_job("esd", steps=5)
    run(job, save_steps=2)
    assert steps_in(tmp_path / "checkpoint") == 4
    run(job)
    assert run.seen == [5]


def test_a_run_that_was_stopped_after_its_last_step_has_nothing_left_to_do(quick_job: QuickJob, run: Any) -> None:
    job = quick_job("esd", steps=2)
    assert isinstance(run(job, stop_at=2), Stopped)
    _, metrics = run(job)
    assert run.seen == [] and len(metrics.losses) == 2


def test_one_of_another_job_is_not_taken_up(quick_job: QuickJob, run: Any) -> None:
    run(quick_job("esd", steps=4), stop_at=2)
    for other in (quick_job("esd", seed=1, steps=4), quick_job("esd", steps=4, eta=2.0)):
        run(other)
        assert run.seen == [1, 2, 3, 4]


@pytest.mark.parametrize("damage", ["cut off", "flipped", "no safetensors", "losses changed", "a folder"])
def test_a_damaged_one_is_passed_over(damage: str, quick_job: QuickJob, run: Any, tmp_path: Path) -> None:
    job, file = quick_job("esd", steps=3), tmp_path / "checkpoint"
    run(job, stop_at=2)
    data = file.read_bytes()
    if damage == "a folder":
        file.unlink()
        file.mkdir()
    else:
        file.write_bytes(
            {
                "cut off": data[: len(data) // 2],
                "flipped": data[:-1] + bytes([data[-1] ^ 1]),
                "no safetensors": b"{}",
                "losses changed": data.replace(b'\\"losses\\": [0', b'\\"losses\\": [1'),
            }[damage]
        )
        assert file.read_bytes() != data
    run(job)
    assert run.seen == [1, 2, 3]


def test_it_holds_trained_values_and_moments_whole_by_name(quick_job: QuickJob, run: Any, tmp_path: Path) -> None:
    run(quick_job("esd", variant="x-strict", steps=3), stop_at=2)
    tensors = safetensors.torch.load_file(tmp_path / "checkpoint")
    names = [name.removeprefix("trained/") for name in tensors if name.startswith("trained/")]
    assert names and all(".attn2.to_" in name for name in names)
    for name in names:
        for key in ("exp_avg", "exp_avg_sq"):
            assert tensors[f"moments/{name}/{key}"].shape == tensors[f"trained/{name}"].shape
    assert len(tensors) == 3 * len(names)


def steps_in(file: Path) -> int:
    data = file.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    return len(json.loads(header["__metadata__"]["efface"])["losses"])
