"""The strategy `continual`: requests one after another, each a job that goes on from the delta of the one before.

A method that trains goes on from the model of the request before, which is both where the student starts and the
frozen teacher (as in LACU, arXiv 2512.02657, and CUIG, arXiv 2511.07970): what is gone already is part of what it
is held to. A method that solves equations does so anew from the unedited base for everything asked so far, and so
ends where one joint solve would.

Every delta of a chain is relative to the base and a file of its own. A request is taken back by using the delta
before it, and a chain is branched by going on from an earlier one.
"""

from collections.abc import Collection
from typing import Any

from efface.concepts.concept import Concept, ConceptSet
from efface.errors import UserError
from efface.models.base import Base
from efface.models.delta import Delta
from efface.train.job import Job


def check_parent(job: Job, parent: Delta | None, base: Base, closed_form: bool) -> None:
    """Raises UserError where `parent` is not the request before `job`; `closed_form`: by a closed form."""
    if job.parent is None and parent is None:
        return
    if parent is None:
        raise UserError(f"job {job.id} goes on from the delta of job {job.parent}, which was not given")
    if job.parent is None:
        raise UserError(f"job {job.id} starts from the base, so it cannot go on from delta {parent.id}")
    name, made_by = f"delta {parent.id}", parent.provenance.get("job_id")
    if made_by != job.parent:
        raise UserError(
            f"job {job.id} goes on from the delta of job {job.parent}, and {name} is of {made_by or 'no job'}"
        )
    if parent.base_id != base.fingerprint:
        raise UserError(f"{name} was made from the base {parent.base_id[:16]}, not from {base.fingerprint[:16]}")
    if parent.kind == "hook" and not closed_form:
        raise UserError(f"{name} acts at sampling time and changes no weight, so there is nothing to go on from")
    if not parent.has_effect(base):
        raise UserError(f"{name} changes no weight of the base (a relative L2 of 0): it erased nothing to go on from")
    before = parent.provenance.get("job", {})
    erased = before.get("concepts", [])
    if erased != list(job.concepts[:-1]):
        requested = ", ".join(job.concepts[:-1])
        raise UserError(f"job {job.id} goes on from one that erased {requested}, and {name} erased {', '.join(erased)}")
    if closed_form and (before.get("method"), before.get("config")) != (job.method, job.config):
        made = f"by '{before.get('method')}'" if before.get("method") != job.method else "with another config"
        raise UserError(
            f"method '{job.method}' solves the requests of a chain together, so all must be its own and of one "
            f"config: {name} was made {made}"
        )


def lineage(job: Job, parent: Delta | None) -> list[dict[str, Any]]:
    """The chain recorded in a delta (`Delta.lineage`): the requests before it, and `job` as the last."""
    return [
        *(parent.lineage if parent else []),
        {"job_id": job.id, "method": job.method, "concepts": list(job.concepts[-1:])},
    ]


def with_remaining_anchor(concept: Concept, concept_set: ConceptSet, erased: Collection[str]) -> Concept:
    """`concept`, to be mapped to something that is not itself erased; `erased` are the names of all that is.

    An anchor that is gone gives way to its own anchor, and so on; then to the first concept that still stands of
    the adjacent ones, and of the same kind. Where none does, the concept has no anchor.
    """
    if concept.anchor is None:
        return concept
    candidates = [
        *concept_set.adjacent_to(concept),
        *(other for other in concept_set.all if other.kind == concept.kind),
    ]
    for anchor in [*_anchors(concept, concept_set), *(other.name for other in candidates)]:
        referenced = concept_set.meant_by(anchor)  # a plain phrase means no concept, and stands
        if referenced is None or referenced.name not in (*erased, concept.name):
            return concept.model_copy(update={"anchor": anchor})
    return concept.model_copy(update={"anchor": None})


def _anchors(concept: Concept, concept_set: ConceptSet) -> list[str]:
    """The concept's anchor, the anchor of that, and so on, each once."""
    found: list[str] = []
    anchor = concept.anchor
    while anchor is not None and anchor not in found:
        found.append(anchor)
        referenced = concept_set.meant_by(anchor)
        anchor = referenced.anchor if referenced else None
    return found
