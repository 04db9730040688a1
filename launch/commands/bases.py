"""`efface bases`: the models known by name."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.launch.command import Command
from efface.launch.terminal.tables import print_table

if TYPE_CHECKING:
    from efface.models.base import BaseSpec


@dataclass(frozen=True, kw_only=True)
class BasesOptions:
    """The bases known by name."""


def run(options: BasesOptions) -> "list[BaseSpec]":
    """Every base that ships."""
    from efface.config_files import list_configs
    from efface.models.base import read_base

    return [read_base(name) for name in list_configs("bases")]


def show(bases: "list[BaseSpec]") -> None:
    rows = [[base.name, base.source, base.image_size, base.concepts, base.judge] for base in bases]
    print_table(["base", "source", "pixels", "concepts", "judge"], rows)


COMMAND = Command("bases", BasesOptions, run, show, as_json=lambda bases: [base.model_dump() for base in bases])
