"""The commands of `efface submit`: which there are, and that a profile of the shipped ones is right."""

from typing import Any

import pytest
import typer
from command import RunEfface

from efface.config_files import list_configs
from efface.launch.submit.commands import app
from efface.launch.submit.profile import read_cluster

ALL = {"--cluster", "-c", "--out", "-o", "--set", "-s"}
# What users have in their scripts. A name here stays; a new one is added here.
COMMANDS: dict[str, set[str]] = {
    "ray": ALL | {"--follow", "-f", "--stop"},
    "slurm": ALL | {"--style", "--dry-run"},
    "kube": ALL | {"--dry-run"},
}


def commands() -> dict[str, Any]:
    root: Any = typer.main.get_command(app)
    return dict(root.commands)


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

    assert read_cluster(name).name == name
    assert find_config("clusters", name).read_text().startswith("# efface submit ")
