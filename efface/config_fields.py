"""Items of a registry and the fields of their configs as data, for people and for programs."""

from collections.abc import Mapping
from typing import Any, NotRequired, TypedDict

from efface.config_files import StrictModel

LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


class FieldEntry(TypedDict):
    """A field of a config."""

    name: str
    type: str
    """For people: "integer >= 1", "'x' | 'u'"."""
    description: str
    default: NotRequired[Any]
    """Absent where a value must be given."""


class Entry(TypedDict):
    """An item of a registry, as `--json` lists it."""

    name: str
    summary: str
    """Of its docstring."""
    fields: list[FieldEntry]
    """Of its config, in their order."""
    note: NotRequired[str]
    """A line below the fields."""


def describe(name: str, item: Any) -> Entry:
    """An item with a strict `Config`."""
    return {
        "name": name,
        "summary": (item.__doc__ or "").strip().partition("\n")[0],
        "fields": describe_fields(item.Config),
    }


def describe_fields(config: type[StrictModel]) -> list[FieldEntry]:
    """The fields of a config in their order."""
    return [_field(name, schema) for name, schema in config.model_json_schema().get("properties", {}).items()]


def _field(name: str, schema: Mapping[str, Any]) -> FieldEntry:
    field: FieldEntry = {"name": name, "type": _type(schema), "description": schema.get("description", "")}
    return {**field, "default": schema["default"]} if "default" in schema else field


def _type(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return " | ".join(repr(choice) for choice in schema.get("enum", [schema.get("const")]))
    limits = [f"{sign} {schema[key]}" for key, sign in LIMITS.items() if key in schema]
    kind = schema.get("type", "mapping")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return " ".join([{"object": "mapping"}.get(kind, kind), *limits])
