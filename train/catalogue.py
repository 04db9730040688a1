"""The methods and their settings as data, for the command line."""

from typing import Any

from efface.train.method import get_method, method_names, preset_names

LIMITS = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}


def catalogue() -> list[dict[str, Any]]:
    """Every known method: `name, version, summary, strategies, policy, presets`, and its `fields` in their
    order.

    A field has `name, type, default, description`; `type` is for people ("integer >= 1", "'x' | 'u'"),
    `default` is absent where a value must be given. Imports every method.
    """
    return [_method(name) for name in method_names()]


def _method(name: str) -> dict[str, Any]:
    method = get_method(name)
    schema = method.Config.model_json_schema()
    return {
        "name": name,
        "version": method.version,
        "summary": (method.__doc__ or "").strip().partition("\n")[0],
        "strategies": sorted(method.strategies),
        "policy": method.policy,
        "presets": preset_names(name),
        "fields": [_field(name, field) for name, field in schema["properties"].items()],
    }


def _field(name: str, schema: dict[str, Any]) -> dict[str, Any]:
    field = {"name": name, "type": _type(schema), "description": schema.get("description", "")}
    return {**field, "default": schema["default"]} if "default" in schema else field


def _type(schema: dict[str, Any]) -> str:
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(map(_type, schema["anyOf"])))
    if "enum" in schema or "const" in schema:
        return " | ".join(repr(choice) for choice in schema.get("enum", [schema.get("const")]))
    limits = [f"{sign} {schema[key]}" for key, sign in LIMITS.items() if key in schema]
    kind = schema.get("type", "mapping")
    if kind == "array":
        return f"list of {_type(schema.get('items', {}))}"
    return " ".join([{"object": "mapping"}.get(kind, kind), *limits])
