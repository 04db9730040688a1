"""From a method's config with lists in it to its variants: the grid of a sweep, less what is excluded."""

import itertools
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel

from efface.errors import UserError, did_you_mean


def variants(
    config: Mapping[str, Any], model: type[BaseModel], exclude: Sequence[Mapping[str, Any]] = ()
) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Every combination of the swept fields of `config`: (the whole config, the swept fields' values).

    A list is a sweep axis, unless the field of `model` takes a list itself; then a list of lists is one. Raises
    UserError where an axis is empty, or `exclude` names something that is not swept, or leaves nothing.
    """
    axes = {key: value for key, value in config.items() if _is_axis(value, model, key)}
    for key, values in axes.items():
        if not values:
            raise UserError(f"the sweep over '{key}' has no values")
    for combination in exclude:
        for key, value in combination.items():
            if key not in axes:
                raise UserError(f"exclude names '{key}', which is not swept: {did_you_mean(key, axes)}")
            if value not in axes[key]:
                raise UserError(f"exclude names {key}={value}, which is not in the sweep")
    grid = (dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values()))
    kept = [swept for swept in grid if not any(c and c.items() <= swept.items() for c in exclude)]
    if not kept:
        raise UserError(f"exclude leaves nothing of the sweep over {', '.join(axes)}")
    for swept in kept:
        yield {**config, **swept}, swept


def _is_axis(value: Any, model: type[BaseModel], key: str) -> bool:
    if not isinstance(value, list):
        return False
    field = model.model_fields.get(key)
    takes_list = field is not None and _takes_list(field.annotation)
    return not takes_list or (bool(value) and all(isinstance(inner, list) for inner in value))


def _takes_list(annotation: Any) -> bool:
    origin = typing.get_origin(annotation)
    if origin in (typing.Union, types.UnionType):
        return any(_takes_list(inner) for inner in typing.get_args(annotation))
    return (origin or annotation) in (list, tuple, set, frozenset, Sequence)
