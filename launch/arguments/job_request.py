"""From what somebody asks of one model to the job that does it, and all that is needed to train it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from efface.errors import UserError
from efface.files import slug

if TYPE_CHECKING:
    from efface.concepts.concept import ConceptSet
    from efface.models.base import BaseSpec
    from efface.models.delta import Delta
    from efface.train.job import Job


@dataclass(frozen=True)
class JobRequest:
    """A job, and all that is needed to train it.

    concepts: the name or path of the concept set; parent: the delta it goes on from; erased: what that has erased;
    inputs: the files that are read, by what they are called; warnings: what should be known beforehand.
    """

    job: "Job"
    base: "BaseSpec"
    concept_set: "ConceptSet"
    concepts: str
    preset: str | None
    parent: "Delta | None"
    erased: tuple[str, ...]
    inputs: Mapping[str, str | Path | None]
    warnings: tuple[str, ...]

    @property
    def new(self) -> tuple[str, ...]:
        """The concepts that this job adds to those erased before."""
        return self.job.concepts[len(self.erased) :]

    @property
    def file_name(self) -> str:
        """`esd-dog-0123456789abcdef.safetensors`: no two jobs share it, whatever their concepts are called."""
        return f"{slug(' '.join((self.job.method, *self.new)))}-{self.job.id}.safetensors"


def read_request(
    method: str,
    names: Sequence[str],
    *,
    base: str,
    concepts: str | None,
    preset: str | None,
    config: Mapping[str, Any],
    seed: int,
    after: Path | None,
) -> JobRequest:
    """The job that makes `base` forget the concepts `names`, after what the delta `after` has erased.

    Without a preset the method's preset named like the base is taken, if there is one. Raises UserError.
    """
    from efface.concepts.concept import load_concept_set
    from efface.models.base import base_id, read_base
    from efface.models.delta import Delta
    from efface.train.job import make_job
    from efface.train.method import preset_names

    spec = read_base(base)
    concepts = concepts or spec.concepts or _no_concepts(base)
    concept_set = load_concept_set(concepts)
    if preset is None and spec.name in preset_names(method):
        preset = spec.name
    parent = Delta.load(after) if after else None
    erased = _erased_by(parent, str(after), concept_set, names) if parent else ()
    job = make_job(
        spec.name,
        base_id(spec),
        method,
        concept_set,
        [*erased, *names],
        config=config,
        preset=preset,
        strategy="continual" if parent else "single" if len(names) == 1 else "multi",
        seed=seed,
        parent=parent.provenance["job_id"] if parent else None,
    )
    inputs = {
        "the delta given by --after": after,
        "the base": spec.source,
        "the base's YAML": base,
        "the concept set": concepts,
        "the base's prompt set": spec.prompts,
        "the preset": preset,
    }
    warnings = _unread_texts(spec, concepts, concept_set, job.concepts)
    return JobRequest(job, spec, concept_set, concepts, preset, parent, erased, inputs, warnings)


def _unread_texts(
    base: "BaseSpec", concepts: str, concept_set: "ConceptSet", targets: Sequence[str]
) -> tuple[str, ...]:
    """What the base's text encoder does not read of the targets' prompts in the base's own prompt set.

    Raises UserError for a phrase, an anchor or a prompt that says nothing to it.
    """
    from efface.concepts.prompts import TARGET_AXES, load_prompt_set
    from efface.models.text.tokenizer import check_texts

    if not base.prompts or concepts != base.concepts:
        return check_texts(base, concept_set)
    prompts = load_prompt_set(base.prompts, concept_set)
    found = [prompts.axis(axis, concept_set, concept_set.find(name)) for name in targets for axis in TARGET_AXES]
    return check_texts(base, concept_set, prompts, {prompt.text for axis in found for prompt in axis})


def _erased_by(parent: "Delta", path: str, concept_set: "ConceptSet", names: Sequence[str]) -> tuple[str, ...]:
    """What the chain has erased so far, by `parent`. Raises UserError where `names` is no request to continue with."""
    try:
        erased = tuple(map(str, parent.provenance["job"]["concepts"]))
        parent.provenance["job_id"]
    except (KeyError, TypeError):
        raise UserError(f"--after {path}: does not say which job made it, so what it erased is not known") from None
    if len(names) != 1:
        raise UserError(f"--after takes one request at a time: give one --concept, not {', '.join(names)}")
    requested = concept_set.find(names[0]).name
    if requested in erased:
        raise UserError(f"--after {path}: has erased '{requested}' already, with {', '.join(erased)}")
    return erased


def _no_concepts(base: str) -> str:
    raise UserError(
        f"base '{base}' names no concept set, so --concepts must: a name of `efface concepts` or a YAML file"
    )
