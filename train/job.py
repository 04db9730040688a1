"""A job: one method with one config, applied to one base for some concepts, with one seed. It makes a delta.

The same job gives the same delta, byte for byte: neither time nor place goes into it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator
from torch import Tensor

from efface.concepts.concept import ConceptSet
from efface.errors import UserError
from efface.files import content_id, slug
from efface.models.base import Base
from efface.models.delta import Delta
from efface.strict import Strict, parse
from efface.train.loop import train
from efface.train.method import (
    ClosedFormMethod,
    GradientMethod,
    Method,
    Strategy,
    Task,
    get_method,
    parse_config,
)


class Job(Strict):
    """Everything that decides a delta, resolved."""

    base: str = Field(description="the base's name or path, as asked for")
    base_id: str = Field(description="the base's fingerprint")
    method: str
    method_version: int
    config: dict[str, Any] = Field(description="every field of the method's config, resolved")
    concepts: tuple[str, ...] = Field(min_length=1, description="names in the concept set, in the order asked")
    concept_set: str
    concept_set_sha256: str
    strategy: Strategy
    seed: int

    @model_validator(mode="after")
    def _single_is_one(self) -> "Job":
        if self.strategy == "single" and len(self.concepts) > 1:
            raise ValueError(f"strategy 'single' takes one concept a job, not {', '.join(self.concepts)}")
        return self

    @property
    def id(self) -> str:
        """16 hex digits, a hash of every field."""
        return content_id(self.model_dump(mode="json"))

    @property
    def slug(self) -> str:
        """The name of the job's folder: `esd-van-gogh-0123456789abcdef`."""
        return f"{slug(' '.join((self.method, *self.concepts)))}-{self.id}"


def make_job(
    base: str,
    base_id: str,
    method: str,
    concept_set: ConceptSet,
    concepts: Sequence[str],
    *,
    config: Mapping[str, Any] | None = None,
    preset: str | None = None,
    strategy: Strategy = "single",
    seed: int = 0,
) -> Job:
    """The job meant by a user's words: names and aliases found, defaults and preset filled in.

    Raises UserError for anything unknown, out of range, or not supported by the method.
    """
    method_class = get_method(method)
    _check_strategy(method_class, strategy)
    found = [concept_set.find(name).name for name in concepts]
    doubled = next((name for name in found if found.count(name) > 1), None)
    if doubled:
        raise UserError(f"concept '{doubled}' is named twice, should be named once")
    fields = {
        "base": base,
        "base_id": base_id,
        "method": method,
        "method_version": method_class.version,
        "config": parse_config(method, dict(config or {}), preset).model_dump(mode="json"),
        "concepts": found,
        "concept_set": concept_set.name,
        "concept_set_sha256": concept_set.sha256,
        "strategy": strategy,
        "seed": seed,
    }
    return parse(Job, fields, f"job of method '{method}'")


def run_job(
    job: Job,
    base: Base,
    concept_set: ConceptSet,
    on_step: Callable[[int, int, float], None] | None = None,
    cache: Path | None = None,
) -> tuple[Delta, dict[str, Any]]:
    """The job's delta, and its metrics `{"losses": […], "seconds": …, "samples_seen": …}`.

    `on_step(done, steps, loss)` is called after every optimiser step. Raises UserError where the job does
    not fit what it is run with, and JobFailure where training goes wrong.
    """
    assert base.applied is None, "a job starts from the unedited base"
    method = _method(job, base, concept_set)
    concepts = tuple(concept_set.find(name) for name in job.concepts)
    task = Task(base, concepts, concept_set, job.seed, cache)
    start = time.perf_counter()
    losses: list[float] = []
    samples_seen = 0
    if isinstance(method, GradientMethod):
        tensors, losses = train(method, task, on_step)
        samples_seen = len(losses) * method.config.batch_size * method.config.gradient_accumulation_steps
    else:
        assert isinstance(method, ClosedFormMethod)
        tensors = method.solve(task)
    provenance = {"job": job.model_dump(mode="json"), "job_id": job.id}
    delta = Delta(method.delta_kind, {name: _own(value) for name, value in sorted(tensors.items())}, provenance)
    seconds = time.perf_counter() - start
    return delta, {"losses": losses, "seconds": seconds, "samples_seen": samples_seen}


def _method(job: Job, base: Base, concept_set: ConceptSet) -> Method:
    method_class = get_method(job.method)
    if job.method_version != method_class.version:
        is_now = f"this efface has version {method_class.version}"
        raise UserError(f"job {job.id} asks for version {job.method_version} of method '{job.method}', {is_now}")
    _check_strategy(method_class, job.strategy)
    if job.base_id != base.fingerprint:
        raise UserError(f"job {job.id} is for a base with fingerprint {job.base_id}, not {base.fingerprint}")
    if job.concept_set_sha256 != concept_set.sha256:
        raise UserError(f"job {job.id} is for another version of concept set '{job.concept_set}' than the one given")
    return method_class(parse_config(job.method, job.config))


def _check_strategy(method: type[Method], strategy: Strategy) -> None:
    if strategy not in method.strategies:
        known = ", ".join(sorted(method.strategies))
        raise UserError(f"method '{method.name}' does not support the strategy '{strategy}', only {known}")


def _own(value: Tensor) -> Tensor:
    """A copy on the CPU that shares memory with nothing."""
    return value.detach().to("cpu", copy=True).contiguous()
