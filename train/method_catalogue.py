"""The methods and their settings as data, for the command line."""

from efface.config_fields import Entry, describe
from efface.train.method import get_method, method_names, preset_names


class MethodEntry(Entry):
    """A method, as `efface methods --json` lists it."""

    version: int
    strategies: list[str]
    policy: str
    presets: list[str]


def catalogue() -> list[MethodEntry]:
    """Every known method; imports all of them."""
    return [_method(name) for name in method_names()]


def _method(name: str) -> MethodEntry:
    method = get_method(name)
    return {
        **describe(name, method),
        "version": method.version,
        "strategies": sorted(method.strategies),
        "policy": method.policy,
        "presets": preset_names(name),
    }
