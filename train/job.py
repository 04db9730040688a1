"""A job: one method with one config, applied to one base for some concepts, with one seed. Its result is a delta.

The same job gives the same delta: it depends neither on the time nor on the machine, nor on the jobs that it is packed
with. Trained alone that holds byte for byte, in a pack but for rounding (`trainer/pack.py`).
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from efface.concepts.concept import ConceptSet
from efface.config_files import StrictModel, parse
from efface.errors import UserError
from efface.files import content_id, slug
from efface.models.delta import Delta
from efface.models.files.folder_identity import folder_content
from efface.train.composed_method import ComposedMethod
from efface.train.method import Method, Strategy, get_method, parse_config


class Job(StrictModel):
    """Everything that decides a delta, resolved."""

    base: str = Field(description="the base's name or path, as requested")
    base_id: str = Field(description="the base's fingerprint")
    method: str
    method_version: int
    config: dict[str, Any] = Field(description="every field of the method's config, resolved")
    concepts: tuple[str, ...] = Field(
        min_length=1,
        description="names in the concept set, in the order requested; of a chain all erased so far, this request last",
    )
    concept_set: str
    concept_set_sha256: str
    strategy: Strategy
    seed: int
    parent: str | None = Field(None, description="id of the job of the request before, in a chain (`continual`)")
    models: dict[str, str] = Field(
        {}, description="content of the folders of models beside the base, by the config's field that names them"
    )

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
    def _parent_and_models_only_where_there_are_any(self, serialized: SerializerFunctionWrapHandler) -> dict[str, Any]:
        return {key: value for key, value in serialized(self).items() if key not in ("parent", "models") or value}

    @property
    def id(self) -> str:
        """16 hex digits, a hash of every field."""
        return content_id(self.model_dump(mode="json"))

    @property
    def stem(self) -> str:
        """What it is, as the beginning of a file's name: `esd-van-gogh`. Other jobs may have the same."""
        return slug(" ".join((self.method, *self.concepts)))

    @property
    def slug(self) -> str:
        """The name of the job's folder: `esd-van-gogh-0123456789abcdef`."""
        return f"{self.stem}-{self.id}"


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
    """The job of a user's request: names and aliases found, defaults and preset filled in.

    For `continual`, `concepts` are all erased so far and the new one last, and `parent` is the id of the job before.

    Raises UserError for anything unknown, out of range, not supported by the method, or for a config that names a
    concept which is held out.
    """
    method_class = get_method(method)
    check_strategy(method_class, strategy)
    found = [concept_set.find(name).name for name in concepts]
    doubled = next((name for name in found if found.count(name) > 1), None)
    if doubled:
        raise UserError(f"concept '{doubled}' is named twice, should be named once")
    parsed = parse_config(method, dict(config or {}), preset)
    resolved, made = parsed.model_dump(mode="json"), method_class(parsed)
    for edit in made.edits if isinstance(made, ComposedMethod) else ():
        check_strategy(get_method(edit.method), "single" if made.anew else strategy)
    _check_held_out(method, resolved, concept_set, found)
    fields = {
        "base": base,
        "base_id": base_id,
        "method": method,
        "method_version": method_class.version,
        "config": resolved,
        "concepts": found,
        "concept_set": concept_set.name,
        "concept_set_sha256": concept_set.sha256,
        "strategy": strategy,
        "seed": seed,
        "parent": parent,
        "models": model_ids(made),
    }
    return parse(Job, fields, f"job of method '{method}'")


def model_ids(method: Method) -> dict[str, str]:
    """The content of each folder by which the config, or one of an edit, names a model. Raises as `folder_content`."""
    edits = method.methods if isinstance(method, ComposedMethod) else (method,)
    named = {field: source for edit in edits for field, source in edit.config.models().items()}
    content = {field: folder_content(source) for field, source in named.items()}
    return {field: content_id(files) for field, files in content.items() if files is not None}


def _check_held_out(method: str, config: Mapping[str, Any], concept_set: ConceptSet, targets: Sequence[str]) -> None:
    """Raises UserError where a config lets the method see a concept that is only to be judged."""
    if not concept_set.held_out_in("\n".join(_texts(config)), targets):
        return
    for key, value in config.items():
        for text in _texts(value):
            named = concept_set.held_out_in(text, targets)
            if named:
                raise UserError(
                    f"config of method '{method}', {key}: '{text}' names {named.name}, which concept set "
                    f"{concept_set.name} holds out to be judged alone; name another, or a set that shows it"
                )


def _texts(value: Any) -> Iterator[str]:
    """The strings in JSON values, keys of objects aside."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for each in value.values() if isinstance(value, dict) else value:
            yield from _texts(each)


def is_result(path: Path, job: Job) -> bool:
    """Whether a file is the delta that this very job leaves."""
    try:
        return Delta.load(path).provenance.get("job_id") == job.id
    except UserError:
        return False


def check_strategy(method: type[Method], strategy: Strategy) -> None:
    """Raises UserError where the method does not support the strategy."""
    if strategy not in method.strategies:
        known = ", ".join(sorted(method.strategies))
        raise UserError(f"method '{method.name}' does not support the strategy '{strategy}', only {known}")
