"""A job whose blocks are compiled gives the delta it gives without, and compiles once for all steps and jobs."""

import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from diffusers.models.attention import BasicTransformerBlock
from torch import Tensor, fx
from torch._inductor import config as inductor
from two_processes import difference

from efface.concepts.concept import ConceptSet
from efface.errors import UserError
from efface.models import compiled_blocks
from efface.models.base import Base
from efface.models.compiled_blocks import compile_blocks
from efface.train.job import Job
from efface.train.job_packs import most_jobs
from efface.train.run_job import run_job
from efface.train.trainer import options
from efface.train.trainer.options import TrainingOptions

QuickJob = Callable[..., Job]
Compiled = Callable[..., list[int]]
COMPILED = TrainingOptions(compiled=True)


@pytest.fixture
def compiling(monkeypatch: pytest.MonkeyPatch) -> Iterator[Compiled]:
    """A function (backend) -> a list that gets the size of each graph that is compiled; by default it runs as it is."""

    def with_backend(name: str = "eager") -> list[int]:
        sizes: list[int] = []
        of_torch = torch._dynamo.lookup_backend(name)

        def backend(graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
            sizes.append(len(graph.graph.nodes))
            return of_torch(graph, inputs)

        torch.compiler.reset()
        monkeypatch.setattr(options, "compile_blocks", partial(compile_blocks, backend=backend))
        return sizes

    yield with_backend
    torch.compiler.reset()


@pytest.mark.parametrize("names", [("spm",), pytest.param(("esd", "spm"), marks=pytest.mark.slow)])
def test_steps_and_jobs_share_compilations_and_give_the_deltas_of_plain_ones(
    names: tuple[str, ...],
    quick_job: QuickJob,
    tiny_base: Base,
    concept_set: ConceptSet,
    compiling: Compiled,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """SPM's adapters are hooks within blocks of which ESD's, and its own teacher's, have none."""
    monkeypatch.setattr(compiled_blocks, "COMPILED_BLOCKS", (BasicTransformerBlock,))  # where the adapters are
    compilations = compiling()
    for seed, name in itertools.product((0, 1), names):
        job = quick_job(name, seed, optimizer="sgd", steps=2 - seed)
        plain, _ = run_job(job, tiny_base, concept_set)
        counts = [len(compilations)]
        on_step = lambda *_, counts=counts: counts.append(len(compilations))  # noqa: E731
        delta, _ = run_job(job, tiny_base, concept_set, on_step, training_options=COMPILED)
        assert difference(delta, plain, tiny_base) < 1e-5
        before, *after = counts
        assert len(set(after)) == 1 and (after[0] > before) == (seed == 0)
    assert not any("_compiled_call_impl" in vars(module) for module in tiny_base.unet.modules())


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    "name",
    [
        "esd",
        "spm",
        "receler",  # hooks with a state of their own
        "fmn",  # a loss of what hooks record
        "aegis",  # goes back through one prediction twice
        "advunlearn",  # trains the text encoder, through the frozen UNet
    ],
)
def test_every_kind_of_method_gives_the_delta_of_a_plain_job(
    name: str, checkpointing: bool, quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet, compiling: Compiled
) -> None:
    job, compilations = quick_job(name, optimizer="sgd"), compiling("aot_eager")
    plain, _ = run_job(job, tiny_base, concept_set)
    how = TrainingOptions(compiled=True, gradient_checkpointing=checkpointing)
    delta, _ = run_job(job, tiny_base, concept_set, training_options=how)
    assert compilations and difference(delta, plain, tiny_base) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize("how", [{"deepspeed": "zero2"}, {"attention": "sdpa"}])
def test_it_goes_with_other_options(
    how: dict[str, Any], quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet, compiling: Compiled
) -> None:
    job, compilations = quick_job("esd", optimizer="sgd", gradient_accumulation_steps=2), compiling("aot_eager")
    plain, _ = run_job(job, tiny_base, concept_set)
    delta, _ = run_job(job, tiny_base, concept_set, training_options=TrainingOptions(compiled=True, **how))
    assert compilations and difference(delta, plain, tiny_base) < 1e-5


@pytest.mark.slow
def test_what_is_compiled_in_earnest_rounds_elsewhere_and_no_more(
    quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet
) -> None:
    job = quick_job("esd", optimizer="sgd", learning_rate=10.0)  # at less, the weights' own rounding is more than 1e-5
    plain, _ = run_job(job, tiny_base, concept_set)
    delta, _ = run_job(job, tiny_base, concept_set, training_options=COMPILED)
    assert 0 < difference(delta, plain, tiny_base) < 1e-5
    torch.compiler.reset()


def test_a_compiled_job_is_trained_alone(quick_job: QuickJob, tiny_base: Base) -> None:
    jobs = [quick_job("esd", seed) for seed in (0, 1)]
    assert most_jobs(jobs, tiny_base, TrainingOptions()) == 2
    assert most_jobs(jobs, tiny_base, COMPILED) == 1


def test_zero_3_is_refused(quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet) -> None:
    how = TrainingOptions(compiled=True, deepspeed="zero3")
    with pytest.raises(UserError, match="compiled: should be false with deepspeed zero3"):
        run_job(quick_job("esd"), tiny_base, concept_set, training_options=how)


def test_without_a_compiler_it_is_refused(
    quick_job: QuickJob, tiny_base: Base, concept_set: ConceptSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(inductor.cpp, "cxx", (None, "no-such-compiler"))
    with pytest.raises(UserError, match="a compiler of C\\+\\+, and finds none"):
        run_job(quick_job("esd"), tiny_base, concept_set, training_options=COMPILED)
