"""The methods and their settings as data, for the command line."""

from typing import Any

from efface.config_fields import describe
from efface.train.method import get_method, method_names, preset_names


def catalogue() -> list[dict[str, Any]]:
    """Every known method: `name, summary, version, strategies, policy, presets`, and the `fields` of its config.

    Imports every method.
    """
    return [_method(name) for name in method_names()]


def _method(name: str) -> dict[str, Any]:
    method = get_method(name)
    return {
        **describe(name, method),
        "version": method.version,
        "strategies": sorted(method.strategies),
        "policy": method.policy,
        "presets": preset_names(name),
    }
