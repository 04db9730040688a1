"""Pages of every field of every config, from their schemas."""

import json
from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

from efface.cluster.campaign.spec import Campaign, DeltaEvaluation
from efface.cluster.search.spec import Search
from efface.concepts.concept import ConceptSet
from efface.config_fields import FieldEntry, describe_fields
from efface.eval.attack import ATTACKS
from efface.eval.judge import JUDGES
from efface.launch.clusters.cluster_profile import ClusterProfile
from efface.launch.launcher import LAUNCHERS, get_launcher
from efface.models.base import BaseSpec
from efface.models.recipe import Recipe
from efface.train.method import METHODS
from efface.train.trainer.options import TrainingOptions

Model = type[BaseModel]


def _registry(registry: Any) -> dict[str, tuple[str, Model]]:
    found = {name: registry.get(name) for name in sorted(registry.names())}
    return {name: (_first_line(item.__doc__), item.Config) for name, item in found.items()}


def _of(**models: Model) -> dict[str, tuple[str, Model]]:
    return {name.replace("_", " "): (_first_line(model.__doc__), model) for name, model in models.items()}


def _launchers() -> dict[str, tuple[str, Model]]:
    profile = {"profile": (_first_line(ClusterProfile.__doc__), ClusterProfile)}
    of = {name: get_launcher(name) for name in sorted(LAUNCHERS.names())}
    return profile | {f"section {name}": (_first_line(one.__doc__), one.settings) for name, one in of.items()}


FIELD_PAGES: dict[str, tuple[str, str]] = {
    "campaigns": ("Campaigns and searches", "The YAML files of `efface run`, `efface evaluate` and `efface search`."),
    "methods": ("Configs of methods", "Under `config:` of a campaign's method, and as `--set KEY=VALUE`."),
    "evaluation": (
        "Configs of attacks and judges",
        "`attacks:` of a campaign and `--set KEY=VALUE`; the YAML of a judge.",
    ),
    "models": ("Bases, recipes, concept sets", "YAML files that are named by their path, or ship with efface."),
    "clusters": ("Cluster profiles", "The YAML file that `--cluster` names, and what each launcher reads of it."),
}
"""Name of the page -> its title, and what the fields are for."""


def sections(page: str) -> dict[str, tuple[str, Model]]:
    """What a page has: heading -> a line about it, and its model."""
    if page == "campaigns":
        return _of(campaign=Campaign, evaluation_of_deltas=DeltaEvaluation, search=Search, training=TrainingOptions)
    if page == "methods":
        return _registry(METHODS)
    if page == "evaluation":
        return {
            f"{kind} {name}": of
            for kind, r in (("attack", ATTACKS), ("judge", JUDGES))
            for name, of in _registry(r).items()
        }
    if page == "models":
        return _of(base=BaseSpec, recipe=Recipe, concept_set=ConceptSet)
    return _launchers()


def fields_page(page: str) -> str:
    """Markdown: a table for each model of the page, and for each that is a value in it."""
    title, about = FIELD_PAGES[page]
    lines = [f"# {title}", "", f"{about} Made from the schemas.", ""]
    for heading, (line, model) in sections(page).items():
        lines += _section(2, heading, line, model)
        for inner in _inner(model):
            lines += _section(3, f"{heading}: {inner.__name__}", _first_line(inner.__doc__), inner)
    return "\n".join(lines)


def _section(level: int, heading: str, line: str, model: Model) -> Iterator[str]:
    yield from (f"{'#' * level} {heading}", "", line, "")
    fields = describe_fields(model)
    if not fields:
        yield from ("No fields.", "")
        return
    yield from ("| field | type | default | |", "|---|---|---|---|")
    for field in fields:
        models = _models_in(model.model_fields[field["name"]].annotation)
        inner = ", ".join(one.__name__ for one in models)
        cells = (f"`{field['name']}`", inner or field["type"], _default(field, models), described(field, models))
        yield "| " + " | ".join(_cell(cell) for cell in cells) + " |"
    yield ""


def _default(field: FieldEntry, models: list[Model]) -> str:
    if "default" not in field:
        return "required"
    return "see below" if models and field["default"] else f"`{json.dumps(field['default'], ensure_ascii=False)}`"


def described(field: FieldEntry, models: list[Model]) -> str:
    """What a field is for: its own sentence, or that of the model it holds."""
    return field["description"] or "; ".join(_first_line(one.__doc__) for one in models)


def _inner(model: Model) -> list[Model]:
    """The models that are values of this one's fields, and of theirs, each once."""
    found: list[Model] = []
    waiting = [model]
    while waiting:
        for field in waiting.pop().model_fields.values():
            new = [one for one in _models_in(field.annotation) if one not in found]
            found += new
            waiting += new
    return found


def _models_in(annotation: Any) -> list[Model]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models_in(argument)]


def _first_line(text: str | None) -> str:
    return (text or "").strip().partition("\n")[0]


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
