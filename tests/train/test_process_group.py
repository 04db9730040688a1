"""Several processes do one process's job: they share the batches of every step, and can be interrupted like one."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from two_processes import difference, together

from efface.concepts.concept import ConceptSet
from efface.errors import Stopped, UserError
from efface.models.base import Base
from efface.models.compiled_blocks import compile_blocks
from efface.models.delta import Delta
from efface.train.job import Job
from efface.train.methods.esd import ESD
from efface.train.run_job import run_job
from efface.train.torchrun import TorchrunJob, _device, main, process_group, run_rank
from efface.train.trainer import loop, options
from efface.train.trainer.options import TrainingOptions

QuickJob = Callable[..., Job]


@pytest.fixture
def work(quick_job: QuickJob, tiny_base_folder: Path, concept_set: ConceptSet, tmp_path: Path) -> Any:
    """A function (**config) -> four steps of ESD as a process group gets them."""

    def make(**config: Any) -> TorchrunJob:
        (tmp_path / "concepts.yaml").write_text(concept_set.model_dump_json())
        settings = {"steps": 4, "gradient_accumulation_steps": 2, "optimizer": "adamw", **config}
        return TorchrunJob(
            job=quick_job("esd", **settings),
            base=str(tiny_base_folder),
            concept_set=str(tmp_path / "concepts.yaml"),
            out=tmp_path / "delta.safetensors",
            checkpoint=tmp_path / "checkpoint",
            save_steps=2,
        )

    return make


def killed(rank: int, work: TorchrunJob, when: str) -> None:
    """Process 1 dies of itself after step 3, or in the middle of it."""

    def on_step(done: int, steps: int, loss: float) -> None:
        if rank == 1 and when == "after a step" and done == 3:
            os.kill(os.getpid(), signal.SIGKILL)

    def in_step(self: ESD, student: Any, batch: Any, loss: Any = ESD.loss) -> Any:
        losses.append(loss(self, student, batch))
        if rank == 1 and when == "within a step" and len(losses) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return losses[-1]

    losses: list[Any] = []
    ESD.loss = in_step  # type: ignore[method-assign]
    run_rank(work, on_step)


def taken_up(rank: int, work: TorchrunJob) -> None:
    seen: list[int] = []
    with process_group():
        metrics = run_rank(work, lambda done, *_: seen.append(done))
        assert seen == [3, 4] and len(metrics.losses) == 4
        uninterrupted = work.model_copy(update={"out": work.out.with_name("whole.safetensors"), "checkpoint": None})
        assert run_rank(uninterrupted).losses == metrics.losses
        odd = work.job.model_copy(update={"config": {**work.job.config, "gradient_accumulation_steps": 3}})
        with pytest.raises(UserError, match="gradient_accumulation_steps is 3, which 2 processes cannot share"):
            run_rank(work.model_copy(update={"job": odd}))


@pytest.mark.parametrize(
    "when, deepspeed",
    [
        ("after a step", None),
        pytest.param("within a step", None, marks=pytest.mark.slow),
        pytest.param("within a step", "zero2", marks=pytest.mark.slow),
        pytest.param("after a step", "zero3", marks=pytest.mark.slow),
    ],
)
def test_a_process_group_that_lost_a_member_ends_bit_for_bit_where_another_does_and_near_one_process(
    when: str, deepspeed: str | None, work: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    requested = work().model_copy(update={"training_options": TrainingOptions(deepspeed=deepspeed)})
    with pytest.raises(torch.multiprocessing.ProcessExitedException, match="SIGKILL"):
        together(killed, requested, when)
    assert requested.checkpoint.is_file() and not requested.out.exists()
    together(taken_up, requested)
    delta = Delta.load(requested.out)
    assert delta.id == Delta.load(requested.out.with_name("whole.safetensors")).id
    assert not requested.checkpoint.exists()
    alone, _ = run_job(requested.job, tiny_base, concept_set)
    assert difference(delta, alone, tiny_base) < 1e-3
    assert delta.provenance == alone.provenance


def compiled(rank: int, work: TorchrunJob) -> None:
    options.compile_blocks = partial(compile_blocks, backend="aot_eager")
    run_rank(work)


@pytest.mark.slow
@pytest.mark.parametrize("deepspeed", [None, "zero2"])
def test_two_processes_that_compile_their_blocks_agree_with_one_that_does_not(
    deepspeed: str | None, work: Any, tiny_base: Base, concept_set: ConceptSet
) -> None:
    how = TrainingOptions(compiled=True, deepspeed=deepspeed)
    requested = work(steps=1).model_copy(update={"training_options": how})
    together(compiled, requested)
    alone, _ = run_job(requested.job, tiny_base, concept_set)
    assert difference(Delta.load(requested.out), alone, tiny_base) < 1e-3


def stopped_slowly(rank: int, work: TorchrunJob) -> None:
    """Process 1 is stopped, and process 0 takes its time to write the checkpoint."""
    written = loop.write

    def slowly(*arguments: Any) -> None:
        time.sleep(2)
        written(*arguments)

    def on_step(done: int, steps: int, loss: float) -> None:
        if rank == 1:
            raise Stopped("enough")

    loop.write = slowly
    with pytest.raises(Stopped):
        run_rank(work, on_step)
    assert work.checkpoint and work.checkpoint.is_file()


def test_no_process_that_is_to_stop_ends_before_the_checkpoint_is_written(work: Any) -> None:
    together(stopped_slowly, work())


@pytest.mark.slow
@pytest.mark.parametrize(
    "command",
    [
        ["torch.distributed.run", "--nproc-per-node", "2", "--master-port"],
        ["accelerate.commands.launch", "--cpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port"],
    ],
)
def test_torchrun_and_accelerate_launch_run_a_job(
    command: list[str], work: Any, tiny_base: Base, concept_set: ConceptSet, tmp_path: Path
) -> None:
    requested = work()
    (tmp_path / "work.json").write_text(requested.model_dump_json())
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    result = subprocess.run(
        [sys.executable, "-m", *command, port, "-m", "efface.train.torchrun", str(tmp_path / "work.json")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("step 4 of 4: loss") == 1
    alone, _ = run_job(requested.job, tiny_base, concept_set)
    assert difference(Delta.load(requested.out), alone, tiny_base) < 1e-3


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(signal, "signal", lambda *_: None)


@pytest.mark.usefixtures("alone")
def test_one_process_needs_no_variables(work: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    requested = work(steps=1).model_copy(update={"training_options": TrainingOptions(attention="sdpa")})
    (tmp_path / "work.json").write_text(requested.model_dump_json())
    assert main([str(tmp_path / "work.json")]) == 0
    assert Delta.load(requested.out).provenance["job_id"] == requested.job.id
    metrics = json.loads(requested.out.with_suffix(".json").read_text())
    assert (metrics["samples_seen"], len(metrics["losses"]), metrics["attention"]["used"]) == (2, 1, "sdpa")
    assert capsys.readouterr().err.startswith("step 1 of 1, loss ")


@pytest.mark.parametrize("given, left", [(None, None), ("5", "0")])
def test_the_only_gpu_in_sight_is_device_0_and_a_process_alone_stays_alone(
    given: str | None, left: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Accelerate takes a process that has LOCAL_RANK for one of several."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if given:
        monkeypatch.setenv("LOCAL_RANK", given)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: None)
    assert _device() == "cuda:0" and os.environ.get("LOCAL_RANK") == left


@pytest.mark.usefixtures("alone")
def test_a_file_that_its_own_metrics_would_overwrite_is_refused(
    work: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "delta.json"
    file.write_text(work().model_dump_json())
    assert main([str(file)]) == 2
    assert "its metrics would be written over this file" in capsys.readouterr().err
    assert TorchrunJob.model_validate_json(file.read_text()) == work()


@pytest.mark.usefixtures("alone")
def test_a_mistake_that_only_another_process_meets_is_reported_by_it(
    work: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "work.json").write_text(work().model_copy(update={"base": "missing-base"}).model_dump_json())
    monkeypatch.setenv("RANK", "1")
    assert main([str(tmp_path / "work.json")]) == 2
    assert capsys.readouterr().err.startswith("process 1: unknown base 'missing-base'")


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize(
    "text, sentence",
    [
        (None, "cannot be read, should be a JSON file"),
        ("{", "not valid JSON"),
        ("{}", "key 'job' is missing"),
    ],
)
def test_a_mistake_is_answered_in_a_sentence(
    text: str | None, sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "work.json"
    if text is not None:
        file.write_text(text)
    assert main([str(file)]) == 2
    assert sentence in capsys.readouterr().err
