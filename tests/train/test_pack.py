"""Jobs in a pack come to what each comes to alone, whatever the others do."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import AutoencoderKL
from quick_methods import QUICK
from torch import Tensor, nn

from efface.errors import JobFailure, Stopped
from efface.models.base import Base, load_base
from efface.models.delta import Delta
from efface.train.job import Job, make_job
from efface.train.job_packs import pack_key
from efface.train.run_job import run_job
from efface.train.trainer.engine import accelerate_state
from efface.train.trainer.options import TrainingOptions
from efface.train.trainer.pack import Pack

CONCEPTS = ("cat", "dog", "fox")

# What the jobs of a pack may differ in, of each method, beside concept and seed.
DIFFERENCES: dict[str, tuple[dict[str, Any], ...]] = {
    "esd": ({}, {"eta": 2.0}, {"learning_rate": 5e-3, "max_grad_norm": 0.01}),
    "ca": ({}, {"effective_learning_rate": 5e-3}, {"prior_weight": 3.0}),
    "fade": ({}, {"rank": 2}, {"learning_rate": 5e-3, "margin": 2.0}),
    "spm": ({}, {"rank": 3, "alpha": 2.0}, {"eta": 2.0}),
    "sdd": ({}, {"learning_rate": 5e-3}, {"ema_decay": 0.9}),
    "salun": ({}, {"learning_rate": 5e-3}, {"alpha": 1.0}),
}
SHARED: dict[str, dict[str, Any]] = {"salun": {"select": "all", "group": "xattn"}}
"""Of all jobs of a pack: without these SalUn is trained alone."""
VARIANTS = [*((method, {}) for method in DIFFERENCES), ("esd", {"variant": "x-strict"})]
IDS = [*DIFFERENCES, "esd-x-strict"]


@pytest.fixture
def jobs(tiny_base: Base, concept_set: Any) -> Any:
    """A function (method, how many, **config) -> jobs that differ in all that they may."""

    def make(method: str, count: int, **config: Any) -> list[Job]:
        return [
            make_job(
                "tiny",
                tiny_base.fingerprint,
                method,
                concept_set,
                [CONCEPTS[i % 3]],
                config={**QUICK[method], **SHARED.get(method, {}), **DIFFERENCES[method][i % 3], **config},
                seed=i,
            )
            for i in range(count)
        ]

    return make


@pytest.fixture
def doubles(tiny_base_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Base]:
    """The tiny base in float64, and all code that asks for fp32 given float64."""
    encode = AutoencoderKL.encode
    base = load_base(tiny_base_folder)
    for module in base.modules.values():
        module.double()
    monkeypatch.setattr(Tensor, "float", Tensor.double)
    monkeypatch.setattr(nn.Module, "float", nn.Module.double)
    monkeypatch.setattr(AutoencoderKL, "encode", lambda self, pixels: encode(self, pixels.double()))
    torch.set_default_dtype(torch.float64)
    yield base
    torch.set_default_dtype(torch.float32)


def packed(jobs: list[Job], base: Base, concept_set: Any, options: TrainingOptions | None = None) -> list[Any]:
    works = [lambda member, job=job: run_job(job, member.base, concept_set, training_options=options) for job in jobs]
    return Pack(base, options, get_precision(jobs[0])).run(works)


def get_precision(job: Job) -> Any:
    return job.config["precision"]


def difference(one: Delta, other: Delta, base: Base) -> float:
    """The L2 norm of the difference of two changes, relative to the first."""
    assert one.tensors.keys() == other.tensors.keys() and one.provenance == other.provenance
    originals = base.originals()
    changes, differences = [], []
    for name, value in one.tensors.items():
        start = originals.get(name, torch.zeros_like(value)).double()
        changes.append((value.double() - start).flatten())
        differences.append((value.double() - other.tensors[name].double()).flatten())
    return float(torch.cat(differences).norm() / torch.cat(changes).norm())


@pytest.mark.parametrize(("method", "config"), VARIANTS, ids=IDS)
def test_two_packed_jobs_come_to_what_they_come_to_alone(
    method: str, config: Any, doubles: Base, jobs: Any, concept_set: Any
) -> None:
    pack = jobs(method, 3, **config)[1:]  # the two that differ most
    assert len({pack_key(job) for job in pack}) == 1 and pack_key(pack[0])
    for job, (delta, metrics) in zip(pack, packed(pack, doubles, concept_set), strict=True):
        alone, measured = run_job(job, doubles, concept_set)
        assert difference(alone, delta, doubles) < 1e-9
        assert metrics.losses == pytest.approx(measured.losses, rel=1e-9)
        assert metrics.samples_seen == measured.samples_seen


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float64", "float32"])
@pytest.mark.parametrize(("method", "config"), VARIANTS, ids=IDS)
def test_eight_packed_jobs_come_to_what_they_come_to_alone(
    method: str, config: Any, precision: str, request: pytest.FixtureRequest, jobs: Any, concept_set: Any
) -> None:
    base = request.getfixturevalue("doubles" if precision == "float64" else "tiny_base")
    pack = jobs(method, 8, **config)
    for job, (delta, _) in zip(pack, packed(pack, base, concept_set), strict=True):
        alone, _ = run_job(job, base, concept_set)
        assert difference(alone, delta, base) < (1e-9 if precision == "float64" else 1e-3)


FAST = "esd"
"""The method whose packs are disturbed in the default run."""


@pytest.mark.parametrize(
    ("method", "config"),
    [
        pytest.param(*variant, id=id, marks=[] if id == FAST else pytest.mark.slow)
        for variant, id in zip(VARIANTS, IDS, strict=True)
    ],
)
def test_a_job_that_diverges_or_is_stopped_leaves_the_others_to_go_on(
    method: str, config: Any, doubles: Base, jobs: Any, concept_set: Any, tmp_path: Path
) -> None:
    """The second job diverges, the third is stopped after a step and goes on later; all as alone, in float64."""
    pack = jobs(method, 3, **config)
    rate = "effective_learning_rate" if method == "ca" else "learning_rate"
    pack[1] = pack[1].model_copy(update={"config": {**pack[1].config, rate: 1e200, "max_grad_norm": 0.0}})
    ended: dict[int, Any] = {}

    def work(number: int, stop: int | None = None) -> Any:
        def on_step(done: int, steps: int, loss: float) -> None:
            if done == stop:
                raise Stopped

        def run(member: Any) -> None:
            path = tmp_path / f"{number}.safetensors"
            try:
                ended[number], _ = run_job(pack[number], member.base, concept_set, on_step, checkpoint=path)
            except (JobFailure, Stopped) as error:
                ended[number] = error

        return run

    Pack(doubles).run([work(0), work(1), work(2, stop=1)])
    assert isinstance(ended[1], JobFailure) and "learning rate 1e+200 is probably too high" in str(ended[1])
    assert isinstance(ended[2], Stopped)
    Pack(doubles).run([work(2)])
    for number in (0, 2):
        alone, _ = run_job(pack[number], doubles, concept_set)
        assert difference(alone, ended[number], doubles) < 1e-9


def test_losses_that_do_not_fit_into_memory_together_are_taken_in_parts(
    tiny_base: Base, jobs: Any, concept_set: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, compute, most = jobs("esd", 3), Pack._compute, []

    def short(self: Any, calls: Any) -> None:
        if calls[0].kind.name == "TRAINED":
            if len(calls) > 1:
                raise torch.OutOfMemoryError
            most.append(len(calls))
        compute(self, calls)

    monkeypatch.setattr(Pack, "_compute", short)
    found = packed(pack, tiny_base, concept_set)
    assert most == [1] * 6
    for job, (delta, _) in zip(pack, found, strict=True):
        assert difference(run_job(job, tiny_base, concept_set)[0], delta, tiny_base) < 1e-3


def test_an_interrupted_pack_leaves_no_thread_no_accelerator_and_an_unedited_base(
    tiny_base: Base, jobs: Any, concept_set: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = accelerate_state()
    before = {name: value.clone() for name, value in tiny_base.tensors().items()}

    def interrupted(self: Any, calls: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pack, "_compute", interrupted)
    threads: list[Any] = []
    with pytest.raises(KeyboardInterrupt):
        Pack(tiny_base).run(
            [lambda member: threads.append(member.thread) or run_job(jobs("esd", 1)[0], member.base, concept_set)] * 2
        )
    for thread in threads:
        thread.join(timeout=10)
    assert len(threads) == 2 and not any(thread.is_alive() for thread in threads)
    assert accelerate_state() == held
    assert all(value.equal(before[name]) for name, value in tiny_base.tensors().items())


def test_images_that_two_jobs_need_are_made_once(
    tiny_base: Base, jobs: Any, concept_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import efface.train.data.latents as latents

    made, make = [], latents._make
    monkeypatch.setattr(latents, "_make", lambda *of: made.append(1) or make(*of))
    pack = [job for job in jobs("ca", 6) if job.concepts == ("cat",)]
    Pack(tiny_base).run(
        [lambda member, job=job: run_job(job, member.base, concept_set, cache=tmp_path) for job in pack]
    )
    assert len(pack) == 2 and len(made) == 1


def test_images_of_several_jobs_are_drawn_in_the_same_passes(
    tiny_base: Base, jobs: Any, concept_set: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    together, compute = [], Pack._compute
    monkeypatch.setattr(
        Pack, "_compute", lambda self, calls: together.append((calls[0].kind.name, len(calls))) or compute(self, calls)
    )
    pack = jobs("ca", 3, objective="noise", prior_weight=0)  # asks the frozen model for nothing but images
    packed([pack[0], pack[2]], tiny_base, concept_set)
    assert {count for kind, count in together if kind == "FROZEN"} == {2}


def test_images_in_half_precision_are_those_of_a_job_alone(tiny_base: Base, jobs: Any, concept_set: Any) -> None:
    pack = jobs("ca", 2, image_dtype="bfloat16")
    for job, (delta, _) in zip(pack, packed(pack, tiny_base, concept_set), strict=True):
        assert difference(run_job(job, tiny_base, concept_set)[0], delta, tiny_base) < 1e-3


def test_seconds_of_packed_jobs_are_shares_of_what_the_pack_took(tiny_base: Base, jobs: Any, concept_set: Any) -> None:
    import time

    start = time.perf_counter()
    found = packed(jobs("esd", 3), tiny_base, concept_set)
    seconds = [metrics.seconds for _, metrics in found]
    assert min(seconds) > 0 and sum(seconds) <= time.perf_counter() - start


def test_bf16_jobs_are_packed_in_bf16(tiny_base: Base, jobs: Any, concept_set: Any) -> None:
    pack = jobs("esd", 2, precision="bf16", optimizer="sgd", learning_rate=1.0)  # Adam makes much of small gradients
    for job, (delta, _) in zip(pack, packed(pack, tiny_base, concept_set), strict=True):
        alone, _ = run_job(job, tiny_base, concept_set)
        assert difference(alone, delta, tiny_base) < 0.05  # bf16 has two to three digits
    assert all(value.dtype == torch.float32 for value in tiny_base.tensors().values())


def test_only_jobs_that_ask_for_passes_of_one_shape_have_one_key(jobs: Any) -> None:
    (job,) = jobs("esd", 1)
    other = {"batch_size": 2, "steps": 5, "variant": "x-strict", "precision": "bf16", "size": 64}
    keys = {pack_key(job), *(pack_key(jobs("esd", 1, **{name: value})[0]) for name, value in other.items())}
    assert len(keys) == 1 + len(other) and None not in keys
    assert pack_key(jobs("esd", 1, select="gradient")[0]) is None


def test_jobs_with_an_adversary_or_a_replay_are_trained_alone(quick_job: Any) -> None:
    assert pack_key(quick_job("esd")) is not None
    assert [pack_key(quick_job(name)) for name in ("race", "aegis", "stereo", "compose", "ties")] == [None] * 5
    assert pack_key(quick_job("esd", replay_weight=1.0)) is None
    assert pack_key(quick_job("salun")) is None and pack_key(quick_job("salun", select="all")) is not None
