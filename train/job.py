"""A job: one method with one config, applied to one base for some concepts, with one seed. It makes a delta.

The same job gives the same delta, byte for byte: neither time nor place goes into it.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator
from torch import Tensor

from efface.concepts.concept import ConceptSet
from efface.errors import JobFailure, UserError
from efface.files import content_id, slug
from efface.models.base import Base
from efface.models.delta import Delta, Kind, stack
from efface.strict import Strict, parse
from efface.train.chain import check_parent, lineage, with_standing_anchor
from efface.train.loop import train
from efface.train.method import (
    ClosedFormMethod,
    GradientMethod,
    Method,
    MethodConfig,
    Strategy,
    Task,
    TrainingConfig,
    get_method,
    parse_config,
)
from efface.train.setup import Setup


class Job(Strict):
    """Everything that decides a delta, resolved."""

    base: str = Field(description="the base's name or path, as asked for")
    base_id: str = Field(description="the base's fingerprint")
    method: str
    method_version: int
    config: dict[str, Any] = Field(description="every field of the method's config, resolved")
    concepts: tuple[str, ...] = Field(
        min_length=1,
        description="names in the concept set, in the order asked; of a chain all erased so far, this request last",
    )
    concept_set: str
    concept_set_sha256: str
    strategy: Strategy
    seed: int
    parent: str | None = Field(None, description="id of the job of the request before, in a chain (`continual`)")

    @model_validator(mode="after")
    def _concepts_fit_the_strategy(self) -> "Job":
        if self.strategy == "single" and len(self.concepts) > 1:
            raise ValueError(f"strategy 'single' takes one concept a job, not {', '.join(self.concepts)}")
        if self.strategy != "continual" and self.parent is not None:
            raise ValueError(f"strategy '{self.strategy}' starts from the base: parent is for 'continual'")
        if self.strategy == "continual" and (self.parent is None) != (len(self.concepts) == 1):
            raise ValueError("the first request of a chain has one concept and no parent, each later one has a parent")
        return self

    @model_serializer(mode="wrap")
    def _parent_only_where_there_is_one(self, told: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in told(self).items() if key != "parent" or value is not None}

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
    parent: str | None = None,
) -> Job:
    """The job meant by a user's words: names and aliases found, defaults and preset filled in.

    For `continual`, `concepts` are all erased so far and the new one last, and `parent` is the id of the job before.

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
        "parent": parent,
    }
    return parse(Job, fields, f"job of method '{method}'")


def run_job(
    job: Job,
    base: Base,
    concept_set: ConceptSet,
    on_step: Callable[[int, int, float], None] | None = None,
    cache: Path | None = None,
    *,
    parent: Delta | None = None,
    checkpoint: Path | None = None,
    every: int = 50,
    setup: Setup | None = None,
    halve_batch: bool = False,
) -> tuple[Delta, dict[str, Any]]:
    """The job's delta, and its metrics `{"losses": […], "seconds": …, "samples_seen": …, "attention": …}`.

    "attention" is what `models.attention.set_attention` reports of the student, None where `setup` names none.

    `on_step(done, steps, loss)` is called after every optimiser step. `parent` is the delta of the request before, in
    a chain (`train/chain.py`). `checkpoint`, `every` and `setup` are those of `train.loop.train`. With `halve_batch`,
    for a device that has run out of memory, a step takes twice the batches of half the size; the provenance says so.

    The base is left as it was, bit for bit. Raises UserError where the job does not fit what it is run with, and
    JobFailure where training goes wrong.
    """
    assert base.applied is None, "a job starts from the unedited base"
    method = _method(job, base, concept_set, halve_batch)
    solved = isinstance(method, ClosedFormMethod)
    check_parent(job, parent, base, solved)
    task = _task(job, base, concept_set, cache, solved)
    start = time.perf_counter()
    losses: list[float] = []
    samples_seen, attention = 0, None
    base.swap(None if solved else parent)
    try:
        if isinstance(method, GradientMethod):
            how = setup or Setup()
            tensors, losses, attention = train(method, task, on_step, checkpoint=checkpoint, every=every, setup=how)
            samples_seen = len(losses) * method.config.batch_size * method.config.gradient_accumulation_steps
        else:
            assert isinstance(method, ClosedFormMethod)
            tensors = method.solve(task)
    finally:
        base.swap(None)
    kind: Kind = method.delta_kind
    if parent is not None and not solved:
        kind, tensors = stack(base, parent, kind, tensors)
    own = {name: _own(value) for name, value in sorted(tensors.items())}
    delta = Delta(kind, own, _provenance(job, parent, method if halve_batch else None))
    seconds = time.perf_counter() - start
    return delta, {"losses": losses, "seconds": seconds, "samples_seen": samples_seen, "attention": attention}


def _task(job: Job, base: Base, concept_set: ConceptSet, cache: Path | None, solved: bool) -> Task:
    """What the method is asked: the last request of a chain, or, where equations are solved anew, all of them."""
    concepts = tuple(
        with_standing_anchor(concept_set.find(name), concept_set, gone=job.concepts) for name in job.concepts
    )
    if job.strategy == "continual" and not solved:
        return Task(base, concepts[-1:], concept_set, job.seed, cache, erased=concepts[:-1])
    return Task(base, concepts, concept_set, job.seed, cache)


def _provenance(job: Job, parent: Delta | None, halved: Method | None) -> dict[str, Any]:
    told: dict[str, Any] = {"job": job.model_dump(mode="json"), "job_id": job.id}
    if job.strategy == "continual":
        told["lineage"] = lineage(job, parent)
    if halved is not None:
        told["batch_halved"] = {
            name: getattr(halved.config, name) for name in ("batch_size", "gradient_accumulation_steps")
        }
    return told


def _method(job: Job, base: Base, concept_set: ConceptSet, halve_batch: bool) -> Method:
    method_class = get_method(job.method)
    if job.method_version != method_class.version:
        is_now = f"this efface has version {method_class.version}"
        raise UserError(f"job {job.id} asks for version {job.method_version} of method '{job.method}', {is_now}")
    _check_strategy(method_class, job.strategy)
    if job.base_id != base.fingerprint:
        raise UserError(f"job {job.id} is for a base with fingerprint {job.base_id}, not {base.fingerprint}")
    if job.concept_set_sha256 != concept_set.sha256:
        raise UserError(f"job {job.id} is for another version of concept set '{job.concept_set}' than the one given")
    config = parse_config(job.method, job.config)
    return method_class(_halved(config, job.method) if halve_batch else config)


def _halved(config: MethodConfig, method: str) -> MethodConfig:
    """As many samples a step, in twice the batches (of an odd size: in as many more as divide it)."""
    size = config.batch_size if isinstance(config, TrainingConfig) else 1
    if not isinstance(config, TrainingConfig) or size == 1:
        raise JobFailure(f"method '{method}' needs more memory than there is, and has no batch to be made smaller")
    parts = next(parts for parts in range(2, size + 1) if size % parts == 0)
    batches = config.gradient_accumulation_steps * parts
    return config.model_copy(update={"batch_size": size // parts, "gradient_accumulation_steps": batches})


def _check_strategy(method: type[Method], strategy: Strategy) -> None:
    if strategy not in method.strategies:
        known = ", ".join(sorted(method.strategies))
        raise UserError(f"method '{method.name}' does not support the strategy '{strategy}', only {known}")


def _own(value: Tensor) -> Tensor:
    """A copy on the CPU that shares memory with nothing."""
    return value.detach().to("cpu", copy=True).contiguous()
