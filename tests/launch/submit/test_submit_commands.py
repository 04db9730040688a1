"""The commands of `efface submit`: which there are, and that a profile of the shipped ones is right."""

from typing import Any

import pytest
import typer
from command import RunEfface

from efface.config_files import list_configs
from efface.launch import cli
from efface.launch.clusters.cluster_profile import read_profile

ALL = {"--cluster", "-c", "--out", "-o", "--set", "-s", "--dry-run", "--stop"}
# What users have in their scripts. A name here stays; a new one is added here.
COMMANDS: dict[str, set[str]] = {
    "ray": ALL | {"--follow", "-f"},
    "slurm": ALL | {"--style"},
    "kube": ALL,
}


def commands() -> dict[str, Any]:
    root: Any = typer.main.get_command(cli.app)
    group = root.commands["submit"]
    return {name: group.get_command(None, name) for name in group.list_commands(None)}


def test_these_are_the_commands() -> None:
    assert set(commands()) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_these_are_the_options(name: str, efface: RunEfface) -> None:
    command = commands()[name]
    options = {opt for p in command.params if p.param_type_name == "option" for opt in p.opts}
    assert [p.name for p in command.params if p.param_type_name == "argument"] == ["campaign"]
    assert options == COMMANDS[name]
    assert command.help.endswith(".") and all(p.help for p in command.params)
    assert "Usage: efface submit" in efface("submit", name, "--help").out


@pytest.mark.parametrize("name", list_configs("clusters"))
def test_a_shipped_profile_can_be_read_and_says_how_it_is_used(name: str) -> None:
    from efface.config_files import find_config

    assert read_profile(name).name == name
    assert find_config("clusters", name).read_text().startswith("# efface submit ")
