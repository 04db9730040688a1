"""Options of the form KEY=VALUE: a method's or an attack's config, and how a job is trained."""

from collections.abc import Sequence
from typing import Any

from efface.errors import UserError


def parse_key_values(settings: Sequence[str], option: str = "--set") -> dict[str, Any]:
    """`["eta=2", "variant=u"]` as a dict, values read as YAML. Raises UserError for one without '='."""
    import yaml

    pairs = {}
    for setting in settings:
        key, equals, value = setting.partition("=")
        if not equals or not key:
            raise UserError(f"{option} '{setting}' should be KEY=VALUE")
        try:
            pairs[key] = yaml.safe_load(value)
        except (yaml.YAMLError, RecursionError):
            raise UserError(f"{option} '{setting}': the value is not valid YAML") from None
    return pairs
