"""A model that somebody else edited, as a delta with a job, so that it is judged, exported and attacked like ours."""

from collections.abc import Sequence
from pathlib import Path

from efface.concepts.concept import ConceptSet
from efface.errors import UserError
from efface.files import file_stem
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.foreign_weights import read_foreign
from efface.train.job import Job

WEIGHTS = "weights"
"""The one field of the config of a job that stands for somebody else's training: a hash."""


def is_foreign(job: Job) -> bool:
    """Whether a job only stands for what somebody else did, so that its method's name is but a label."""
    return job.config.keys() == {WEIGHTS}


def foreign_delta(
    path: str | Path, base: Base, concept_set: ConceptSet, concepts: Sequence[str], label: str = "foreign"
) -> Delta:
    """The model in `path` as a delta of `base` that is said to forget `concepts` (names or aliases).

    label: its method's name in tables. The job's config is the hash of the weights: how they were made is not known.
    Raises UserError as `read_foreign` does, for an unknown concept, and for the label of the base.
    """
    if not label.strip():
        raise UserError("label '': should be a name for tables")
    if file_stem(label) == "base":
        raise UserError("label 'base': is what the unedited base is called in tables, should be another name")
    names = tuple(dict.fromkeys(concept_set.find(name).name for name in concepts))
    kind, tensors = read_foreign(path, base)
    content = Delta(kind, tensors, {"base_id": base.fingerprint})
    job = Job(
        base=base.spec.name,
        base_id=base.fingerprint,
        method=label,
        method_version=1,
        config={WEIGHTS: content.id},
        concepts=names,
        concept_set=concept_set.name,
        concept_set_sha256=concept_set.sha256,
        strategy="single" if len(names) == 1 else "multi",
        seed=0,
    )
    provenance = {"job": job.model_dump(mode="json"), "job_id": job.id, "imported_from": Path(path).name}
    return Delta(kind, tensors, provenance)
