"""DeepSpeed in two processes, and in one, does what plain training of the same job does."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from two_processes import difference, rounding, saved, together

from efface.concepts.concept import ConceptSet
from efface.config_files import CONFIGS, list_configs
from efface.errors import JobFailure, Stopped, UserError
from efface.models.base import Base, load_base
from efface.train.job import Job
from efface.train.method import GradientConfig, get_method
from efface.train.methods.esd import ESD
from efface.train.run_job import run_job
from efface.train.trainer.deepspeed_engine import ZeroEngine, deepspeed_config
from efface.train.trainer.options import TrainingOptions

QuickJob = Callable[..., Job]
Case = tuple[str, Job, TrainingOptions]
"""Name of the file, job, and how it is run."""

# The tiny UNet's tensors would all be small enough to stay everywhere.
ZERO3 = (
    (CONFIGS / "deepspeed" / "zero3.yaml")
    .read_text()
    .replace("persistence_threshold: 10_000", "persistence_threshold: 0")
)


@pytest.fixture(scope="module")
def zero3(tmp_path_factory: pytest.TempPathFactory) -> str:
    assert "threshold: 0" in ZERO3
    file = tmp_path_factory.mktemp("deepspeed") / "zero3.yaml"
    file.write_text(ZERO3)
    return str(file)


def do(rank: int, cases: list[Case], folder: Path, concept_set: ConceptSet, out: Path) -> None:
    """Every case, one after another, in one process group."""
    base = load_base(folder)
    originals = {name: value.clone() for name, value in base.tensors().items()}
    torch.distributed.init_process_group("gloo")
    for method in {get_method(job.method) for _, job, _ in cases}:
        watch(method)
    for name, job, training_options in cases:
        delta, _ = run_job(job, base, concept_set, training_options=training_options)
        assert all(torch.equal(value, originals[key]) for key, value in base.tensors().items())
        if rank == 0:
            delta.save(out / f"{name}.safetensors")
    torch.distributed.destroy_process_group()


def watch(method: Any) -> None:
    """From now on a job of `method` fails where anything in its student but what is trained was changed."""
    prepare, saved = method.prepare, method.saved
    before: dict[str, torch.Tensor] = {}

    def noted(self: Any, task: Any, student: Any) -> None:
        prepare(self, task, student)
        before.update({name: value.detach().clone() for name, value in student.module.named_parameters()})

    def compared(self: Any, student: Any) -> Any:
        trained = {id(value) for value in self.trained(student).values()}
        now = dict(student.module.named_parameters())
        same = {name: torch.equal(value, before.pop(name).to(value.dtype)) for name, value in now.items()}
        kept = {name: id(value) not in trained for name, value in now.items()}
        assert not before and len(trained) < len(kept)
        assert {name for name in same if kept[name] and not same[name]} == set()
        assert not all(same.values())
        return saved(self, student)

    method.prepare, method.saved = noted, compared


def cut(rank: int, job: Job, ways: list[str | None], folder: Path, concept_set: ConceptSet, checkpoint: Path) -> None:
    """One step of the job under each of `ways`, from checkpoint to checkpoint, which only the first process can see."""
    base = load_base(folder)
    torch.distributed.init_process_group("gloo")
    mine = checkpoint if rank == 0 else checkpoint.with_name("nowhere")
    for done, deepspeed in enumerate(ways):

        def stop(step: int, steps: int, loss: float, done: int = done) -> None:
            assert step == done + 1
            if rank == 1:  # which then informs the other
                raise Stopped("enough")

        with pytest.raises(Stopped):
            run_job(
                job, base, concept_set, stop, checkpoint=mine, training_options=TrainingOptions(deepspeed=deepspeed)
            )
    torch.distributed.destroy_process_group()


def test_zero_2_and_3_in_two_processes_give_the_delta_of_one(
    quick_job: QuickJob, zero3: str, tiny_base: Base, tiny_base_folder: Path, concept_set: ConceptSet, tmp_path: Path
) -> None:
    how = {"variant": "selfattn", "steps": 2, "optimizer": "sgd", "learning_rate": 1.0, "max_grad_norm": 0.01}
    job = quick_job("esd", gradient_accumulation_steps=4, **how)
    ways = {"zero2": TrainingOptions(deepspeed="zero2"), "zero3": TrainingOptions(deepspeed=zero3)}
    together(
        do,
        [(name, job, training_options) for name, training_options in ways.items()],
        tiny_base_folder,
        concept_set,
        tmp_path,
    )
    alone, _ = run_job(job, tiny_base, concept_set)
    assert {name: difference(delta, alone, tiny_base) < 1e-5 for name, delta in saved(tmp_path).items()} == {
        "zero2": True,
        "zero3": True,
    }


@pytest.mark.slow
def test_a_checkpoint_fits_any_stage_and_any_number_of_processes(
    quick_job: QuickJob, zero3: str, tiny_base: Base, tiny_base_folder: Path, concept_set: ConceptSet, tmp_path: Path
) -> None:
    job = quick_job("esd", steps=5, gradient_accumulation_steps=2, optimizer="adamw", weight_decay=0.1)
    checkpoint = tmp_path / "checkpoint"
    together(cut, job, [zero3, "zero2", zero3, None], tiny_base_folder, concept_set, checkpoint)
    seen: list[int] = []
    delta, metrics = run_job(job, tiny_base, concept_set, lambda done, *_: seen.append(done), checkpoint=checkpoint)
    assert seen == [5]
    alone, uninterrupted = run_job(job, tiny_base, concept_set)
    assert metrics.losses == pytest.approx(uninterrupted.losses, rel=1e-5)
    assert difference(delta, alone, tiny_base) < 1e-3


class Case(NamedTuple):
    """How a method is run."""

    config: dict[str, Any]
    rate: float
    """Of SGD: one that moves weights far more than rounding does."""
    norm: float
    """Of clipping: one that many gradients exceed, the first one too."""


METHODS = {
    "ca": Case({"batch_size": 2}, rate=1.0, norm=0.05),
    "esd": Case({"variant": "x"}, rate=1.0, norm=0.01),
    # With the usual eta of 1 the loss is a difference of nearly equal predictions: gradients have fewer good digits.
    "esd u": Case({"variant": "u", "eta": 10.0}, rate=0.1, norm=0.5),
    "fade": Case({}, rate=0.1, norm=1.0),
}
"""The gradient methods, ESD for a small and for a large part of the UNet."""


def settings(name: str, steps: int, optimizer: str, clipped: bool) -> dict[str, Any]:
    """`steps` optimiser steps of two batches. A single one is so long that only its gradient's digits count."""
    config, rate, norm = METHODS[name]
    rate = 1e-3 if optimizer == "adamw" else rate * (100 if steps == 1 else 1)
    if name == "ca":
        length = {"samples_seen": 2 * 2 * steps, "effective_learning_rate": rate}
    else:
        length = {"steps": steps, "learning_rate": rate}
    how = {"optimizer": optimizer, "gradient_accumulation_steps": 2, "max_grad_norm": norm if clipped else 0.0}
    return {**config, **length, **how}


@pytest.mark.slow
@pytest.mark.parametrize("clipped", [False, True])
@pytest.mark.parametrize("optimizer, steps, tolerance", [("sgd", 1, 1e-5), ("sgd", 20, 1e-5), ("adamw", 20, 1e-3)])
def test_every_method_agrees_under_ddp_and_every_stage(
    optimizer: str,
    steps: int,
    tolerance: float,
    clipped: bool,
    quick_job: QuickJob,
    zero3: str,
    tiny_base: Base,
    tiny_base_folder: Path,
    concept_set: ConceptSet,
    tmp_path: Path,
) -> None:
    def job_of(name: str, clipped: bool) -> Job:
        return quick_job(name.split()[0], **settings(name, steps, optimizer, clipped))

    jobs = {name: job_of(name, clipped) for name in METHODS}
    ways = {
        "ddp": TrainingOptions(),
        "zero2": TrainingOptions(deepspeed="zero2"),
        "zero3": TrainingOptions(deepspeed=zero3),
    }
    if steps == 1:
        ways |= {name: TrainingOptions(deepspeed=name) for name in ("zero1", "zero2-offload", "zero3-offload")}
        for name in ("ddp", "zero3"):
            ways[f"{name} checkpointing"] = ways[name].model_copy(update={"gradient_checkpointing": True})
    cases = [
        (f"{name}, {way}", job, training_options)
        for name, job in jobs.items()
        for way, training_options in ways.items()
    ]
    together(do, cases, tiny_base_folder, concept_set, tmp_path)
    alone = {name: run_job(job, tiny_base, concept_set)[0] for name, job in jobs.items()}
    # What is checked can be separated from the rounding of the weights, and, clipped, from what comes without.
    assert all(rounding(delta, tiny_base) < tolerance / 2 for delta in alone.values())
    if clipped:
        free = {name: run_job(job_of(name, False), tiny_base, concept_set)[0] for name in METHODS}
        assert all(difference(alone[name], free[name], tiny_base) > 10 * tolerance for name in METHODS)
    apart = {name: difference(delta, alone[name.split(",")[0]], tiny_base) for name, delta in saved(tmp_path).items()}
    assert len(apart) == len(cases)
    print({name: f"{far:.1e}" for name, far in apart.items()})  # for pytest -rP
    assert {name: far for name, far in apart.items() if far > tolerance} == {}


@pytest.mark.parametrize("name", ["zero2-offload", "zero3"])
def test_one_process_alone_may_use_it_too_and_with_gradient_checkpointing(
    name: str, quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    environment, linear = dict(os.environ), torch.nn.functional.linear
    job = quick_job("esd", gradient_accumulation_steps=2)
    plain, _ = run_job(job, tiny_base, concept_set)
    for checkpointing in (False, True):
        how = TrainingOptions(deepspeed=name, gradient_checkpointing=checkpointing)
        delta, _ = run_job(job, tiny_base, concept_set, training_options=how)
        assert difference(delta, plain, tiny_base) < 1e-3
        assert not torch.distributed.is_initialized() and dict(os.environ) == environment
        assert torch.nn.functional.linear is linear


@pytest.mark.parametrize("name", ["zero2", "zero3"])
def test_bf16_weights_that_are_not_trained_go_through_it_as_they_are(
    name: str, quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = quick_job("esd", precision="bf16", optimizer="sgd", steps=1, learning_rate=1e3)
    plain, _ = run_job(job, tiny_base, concept_set)
    dtypes = set()
    prepare, loss = ESD.prepare, ESD.loss

    def prepared(self: Any, task: Any, student: Any) -> None:
        prepare(self, task, student)
        self.weights = student.module.conv_in.weight, student.module.mid_block.attentions[0].proj_in.weight

    def computed(self: Any, student: Any, batch: Any) -> torch.Tensor:
        dtypes.update(weight.dtype for weight in self.weights)
        return loss(self, student, batch)

    monkeypatch.setattr(ESD, "prepare", prepared)
    monkeypatch.setattr(ESD, "loss", computed)
    delta, _ = run_job(job, tiny_base, concept_set, training_options=TrainingOptions(deepspeed=name))
    assert dtypes == {torch.bfloat16}
    # ZeRO-3's hooks add up the gradients of a skip connection in another order, and bf16 has eight bits.
    assert difference(delta, plain, tiny_base) < 2**-8


@pytest.mark.slow
def test_in_bf16_two_processes_agree_with_one_up_to_its_eight_bits(
    quick_job: QuickJob, zero3: str, tiny_base: Base, tiny_base_folder: Path, concept_set: ConceptSet, tmp_path: Path
) -> None:
    how = {"precision": "bf16", "optimizer": "sgd", "steps": 1, "gradient_accumulation_steps": 2}
    job = quick_job("esd", learning_rate=1e3, **how)
    ways = {
        "ddp": TrainingOptions(),
        "zero2": TrainingOptions(deepspeed="zero2"),
        "zero3": TrainingOptions(deepspeed=zero3),
    }
    together(
        do,
        [(name, job, training_options) for name, training_options in ways.items()],
        tiny_base_folder,
        concept_set,
        tmp_path,
    )
    alone, _ = run_job(job, tiny_base, concept_set)
    apart = {name: difference(delta, alone, tiny_base) for name, delta in saved(tmp_path).items()}
    print(apart)  # for pytest -rP
    assert len(apart) == 3 and all(far < 2**-8 for far in apart.values())


def test_a_checkpoint_that_cannot_be_restored_leaves_nothing_of_deepspeed_behind(
    quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> None:
        raise Stopped("enough")

    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError

    job, how = quick_job("esd"), TrainingOptions(deepspeed="zero2")
    with pytest.raises(Stopped):
        run_job(job, tiny_base, concept_set, stop, checkpoint=tmp_path / "checkpoint", training_options=how)
    monkeypatch.setattr(ZeroEngine, "restore", fail)
    with pytest.raises(torch.OutOfMemoryError) as raised:
        run_job(job, tiny_base, concept_set, checkpoint=tmp_path / "checkpoint", training_options=how)
    assert not torch.distributed.is_initialized() and "LOCAL_RANK" not in os.environ
    assert raised.tb  # with it everything in the frames is still there


def test_a_step_that_deepspeed_would_leave_out_fails_the_job(
    quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    job = quick_job("esd", steps=4, optimizer="sgd", learning_rate=1e30)
    with pytest.raises(JobFailure, match=r"at step 2 of 4: the learning rate 1e\+30 is probably too high"):
        run_job(job, tiny_base, concept_set, training_options=TrainingOptions(deepspeed="zero2"))


@pytest.mark.parametrize("max_grad_norm", [0.0, 0.7])
@pytest.mark.parametrize("name", list_configs("deepspeed"))
def test_clipping_batch_and_accumulation_are_the_jobs_and_nothing_is_left_to_guess(
    name: str, max_grad_norm: float
) -> None:
    config = GradientConfig(
        steps=1, learning_rate=1, batch_size=3, gradient_accumulation_steps=8, max_grad_norm=max_grad_norm
    )
    settings = deepspeed_config(name, config, processes=4)
    assert settings["gradient_clipping"] == max_grad_norm
    assert settings["train_micro_batch_size_per_gpu"] == 3
    assert settings["gradient_accumulation_steps"] == 2
    assert all(type(value) is int for key, value in settings["zero_optimization"].items() if "bucket" in key)
    assert "auto" not in str(settings)


@pytest.fixture
def refused(tmp_path: Path) -> Iterator[Callable[[str, str], None]]:
    def check(text: str, sentence: str) -> None:
        file = tmp_path / "own.yaml"
        file.write_text(text)
        with pytest.raises(UserError, match=sentence):
            deepspeed_config(str(file), GradientConfig(steps=1, learning_rate=1), processes=1)

    yield check


def test_a_file_that_would_change_the_job_or_leaves_things_open_is_refused(refused: Callable[[str, str], None]) -> None:
    refused("gradient_clipping: 1.0\nzero_optimization: {stage: 2}", "gradient_clipping: is set by the job's config")
    refused(
        "zero_optimization: {stage: 2, reduce_bucket_size: auto}", "zero_optimization.reduce_bucket_size: is 'auto'"
    )
    refused("zero_optimization: {stage: 4}", "zero_optimization.stage: should be 1, 2 or 3, not 4")
    refused("{}", "zero_optimization.stage: should be 1, 2 or 3, not None")


def test_an_unknown_name_is_refused_with_the_nearest_known_one() -> None:
    with pytest.raises(UserError, match=r"unknown deepspeed 'zero22': did you mean 'zero2'\?"):
        deepspeed_config("zero22", GradientConfig(steps=1, learning_rate=1), processes=1)
