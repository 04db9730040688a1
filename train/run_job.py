"""Running a job: the one entry to training, by gradient steps or in closed form."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from efface.concepts.concept import ConceptSet
from efface.errors import JobFailure, UserError
from efface.models.base import Base
from efface.models.delta import Delta
from efface.train.composed_method import ComposedMethod
from efface.train.continual import check_parent, lineage, with_remaining_anchor
from efface.train.data.rollout_store import RolloutStore
from efface.train.edit_runner import EditRunner, steps_of
from efface.train.job import Job, check_strategy, model_ids
from efface.train.method import Method, MethodConfig, TrainingConfig, UnlearningTask, get_method, parse_config
from efface.train.trainer.options import TrainingOptions
from efface.train.trainer.packed_base import clock_of
from efface.train.training_metrics import TrainingMetrics


def run_job(
    job: Job,
    base: Base,
    concept_set: ConceptSet,
    on_step: Callable[[int, int, float], None] | None = None,
    cache: Path | None = None,
    *,
    parent: Delta | None = None,
    checkpoint: Path | None = None,
    save_steps: int = 50,
    training_options: TrainingOptions | None = None,
    reduce_micro_batch: bool = False,
) -> tuple[Delta, TrainingMetrics]:
    """The job's delta, and what was measured.

    `on_step(done, steps, loss)` is called after every optimiser step. `parent` is the delta of the request before, in
    a chain (`train/continual.py`). `checkpoint`, `save_steps` and `training_options` are those of `train.loop.train`.
    With `reduce_micro_batch`,
    for a device that has run out of memory, a step takes twice the batches of half the size; the provenance says so.

    The base is left as it was, bit for bit. Raises UserError where the job does not fit what it is run with, and
    JobFailure where training goes wrong, or changes no weight.
    """
    assert base.applied is None, "a job starts from the unedited base"
    method = _method(job, base, concept_set, reduce_micro_batch)
    check_parent(job, parent, base, method.anew)
    options = training_options or TrainingOptions()
    store = _rollout_store(cache, options)
    task = replace(_task(job, base, concept_set, cache, method.anew), rollouts=store)
    clock = clock_of(base)
    start = clock()
    runner = EditRunner(
        on_step,
        checkpoint,
        save_steps,
        options,
        steps_of(method, len(task.concepts), job.strategy == "continual"),
        composed=isinstance(method, ComposedMethod),
    )
    base.swap(None if method.anew else parent)
    try:
        kind, tensors = runner.run(method, task)
    finally:
        base.swap(None)
        if store:
            store.close()
    own = {name: _own(value) for name, value in sorted(tensors.items())}
    provenance = _provenance(job, parent, method if reduce_micro_batch else None)
    if kind == "hook":
        provenance["hook"] = {"name": method.name, "config": method.hook_config(task).model_dump(mode="json")}
    if method.findings:
        provenance["found"] = method.findings
    delta = Delta(kind, own, provenance)
    if not delta.has_effect(base, parent):
        raise JobFailure(
            f"method '{job.method}' changed no weight (a relative L2 of 0), so nothing is forgotten: the anchor of "
            f"{', '.join(job.concepts)} may say the same as its phrase to the text encoder, or the learning rate is "
            "too small"
        )
    return delta, TrainingMetrics(
        losses=runner.losses,
        seconds=clock() - start,
        samples_seen=runner.samples_seen,
        attention=runner.attention,
    )


def _rollout_store(cache: Path | None, options: TrainingOptions) -> RolloutStore | None:
    most_bytes = int(options.rollout_gigabytes * 1e9)
    return RolloutStore(cache / "rollouts", most_bytes) if cache and most_bytes else None


def _task(job: Job, base: Base, concept_set: ConceptSet, cache: Path | None, anew: bool) -> UnlearningTask:
    """What is requested of the method: the last request of a chain; all of them where each starts anew from the base.

    The method sees nothing of the concept set that is held out.
    """
    whole, concept_set = concept_set, concept_set.shown(job.concepts)
    concepts = tuple(
        with_remaining_anchor(concept_set.find(name), concept_set, erased=job.concepts) for name in job.concepts
    )
    newest_alone = job.strategy == "continual" and not anew
    requested, erased = (concepts[-1:], concepts[:-1]) if newest_alone else (concepts, ())
    return UnlearningTask(
        base,
        requested,
        concept_set,
        job.seed,
        cache,
        erased,
        names_held_out=lambda text: whole.held_out_in(text, job.concepts) is not None,
    )


def _provenance(job: Job, parent: Delta | None, reduced: Method | None) -> dict[str, Any]:
    serialized: dict[str, Any] = {"job": job.model_dump(mode="json"), "job_id": job.id}
    if job.strategy == "continual":
        serialized["lineage"] = lineage(job, parent)
    if reduced is not None:
        serialized["reduced_micro_batch"] = {
            name: getattr(reduced.config, name) for name in ("batch_size", "gradient_accumulation_steps")
        }
    return serialized


def _method(job: Job, base: Base, concept_set: ConceptSet, reduce_micro_batch: bool) -> Method:
    method_class = get_method(job.method)
    if job.method_version != method_class.version:
        is_now = f"this efface has version {method_class.version}"
        raise UserError(f"job {job.id} asks for version {job.method_version} of method '{job.method}', {is_now}")
    check_strategy(method_class, job.strategy)
    if job.base_id != base.fingerprint:
        raise UserError(f"job {job.id} is for a base with fingerprint {job.base_id}, not {base.fingerprint}")
    if job.concept_set_sha256 != concept_set.sha256:
        raise UserError(f"job {job.id} is for another version of concept set '{job.concept_set}' than the one given")
    config = parse_config(job.method, job.config)
    found = model_ids(method_class(config))
    changed = next((field for field in {**job.models, **found} if job.models.get(field) != found.get(field)), None)
    if changed:
        raise UserError(f"job {job.id} was made for another {changed} than its folder holds now: make the job again")
    return method_class(_with_smaller_micro_batch(config, job.method) if reduce_micro_batch else config)


def _with_smaller_micro_batch(config: MethodConfig, method: str) -> MethodConfig:
    """As many samples a step, in twice the batches (of an odd size: in as many more as divide it)."""
    size = config.batch_size if isinstance(config, TrainingConfig) else 1
    if not isinstance(config, TrainingConfig) or size == 1:
        raise JobFailure(f"method '{method}' needs more memory than there is, and has no batch to be made smaller")
    parts = next(parts for parts in range(2, size + 1) if size % parts == 0)
    batches = config.gradient_accumulation_steps * parts
    return config.model_copy(update={"batch_size": size // parts, "gradient_accumulation_steps": batches})


def _own(value: Tensor) -> Tensor:
    """A copy on the CPU that shares memory with nothing."""
    return value.detach().to("cpu", copy=True).contiguous()
