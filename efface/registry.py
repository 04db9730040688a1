"""A registry: methods, judges, attacks, metrics, launchers by name, each imported when it is first wanted.

    METHODS: Registry[type[Method]] = Registry("method", "efface.methods", package="efface.train.methods")

    @METHODS.register("esd")
    class ESD(GradientMethod): ...

A name is found in three ways: a module of `package` is called like it (with `_` for `-`), an entry point of `group` in
somebody else's package is, or this process has registered it. A module or entry point registers its own name when it
is imported.
"""

import importlib
from collections.abc import Callable
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Generic, TypeVar

import efface
from efface.errors import UserError, did_you_mean

Item = TypeVar("Item")
Registered = TypeVar("Registered")


class Registry(Generic[Item]):
    """Items of one kind by name."""

    def __init__(self, kind: str, group: str, *, package: str) -> None:
        """kind: what messages call an item ("method"); group: of entry points; package: with a module for each
        built-in item ("efface.train.methods")."""
        self.kind, self.group, self.package = kind, group, package
        self._items: dict[str, Item] = {}

    def register(self, name: str) -> Callable[[Registered], Registered]:
        """Decorator that makes an item known by `name`; the later of two of one name counts."""

        def decorate(item: Registered) -> Registered:
            self._items[name] = item  # type: ignore[assignment]
            return item

        return decorate

    def names(self) -> list[str]:
        """Every known name, sorted. Imports nothing."""
        return sorted({*self._built_in(), *self._entry_points(), *self._items})

    def get(self, name: str) -> Item:
        """The item called `name`. Raises UserError where there is none, or it cannot be imported."""
        if name not in self._items:
            if name in self._built_in():
                importlib.import_module(f"{self.package}.{self._built_in()[name]}")
            elif name in self._entry_points():
                self._load(self._entry_points()[name])
            else:
                raise UserError(f"unknown {self.kind} '{name}': {did_you_mean(name, self.names())}")
        return self._items[name]

    def _built_in(self) -> dict[str, str]:
        """Name -> module of the package."""
        folder = Path(efface.__file__).parent.joinpath(*self.package.split(".")[1:])
        return {path.stem.replace("_", "-"): path.stem for path in folder.glob("[!_]*.py")}

    def _entry_points(self) -> dict[str, EntryPoint]:
        return {entry.name: entry for entry in entry_points(group=self.group)}

    def _load(self, entry: EntryPoint) -> None:
        try:
            entry.load()
        except Exception as error:
            raise UserError(f"{self.kind} '{entry.name}' cannot be loaded from {entry.value}: {error}") from error
        if entry.name not in self._items:
            raise UserError(f"{entry.value} should register a {self.kind} called '{entry.name}' and does not")
