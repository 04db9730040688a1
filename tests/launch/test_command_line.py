"""The command line as a whole: which commands and options there are, how fast it answers, how it ends."""

import subprocess
import sys
from typing import Any

import pytest
import typer
from command import RunEfface

from efface import __version__
from efface.launch import cli

CAMPAIGN_OPTIONS = {"--out", "-o", "--set", "-s"}
WORKERS = {"--workers", "--address"}
JSON = {"--json"}
BASE = {"--base", "-b"}
DEVICE = {"--device"}

# What users have in their scripts. A name here stays; a new one is added here.
COMMANDS: dict[str, tuple[list[str], set[str]]] = {
    "unlearn": (
        ["method"],
        {"--concept", "-c", "--concepts", "--preset", "--set", "-s", "--seed", "--after", "--out", "-o"}
        | {"--training", "--torchrun-job", "--force"}
        | BASE
        | DEVICE,
    ),
    "export": (["delta", "folder"], BASE | {"--static"}),
    "evaluate": (
        ["deltas"],
        {"--concepts", "--prompts", "--recipe", "--judge", "--images-per-prompt", "--out", "-o", "--workers"}
        | {"--concept", "-c", "--label", "--until"}
        | BASE
        | DEVICE,
    ),
    "calibrate": (
        ["recipe", "deltas"],
        {"--against", "--concepts", "--prompts", "--judge", "--images-per-prompt", "--out", "-o", "--workers"}
        | JSON
        | BASE
        | DEVICE,
    ),
    "attack": (
        ["models"],
        {"--concepts", "--prompts", "--concept", "-c", "--judge", "--per-concept", "--seed", "--out", "-o"}
        | {"--attack", "--set", "-s", "--force", "--budget", "--images", "--control"}
        | JSON
        | BASE
        | DEVICE,
    ),
    "score": (["table"], {"--method", "--against", "--judge", "--recipe", "--base", "--calibration", "--curve"} | JSON),
    "quality": (["run"], {"--clip", "--features"} | DEVICE | JSON),
    "run": (["campaign"], CAMPAIGN_OPTIONS | WORKERS | {"--part"}),
    "plan": (["campaign"], CAMPAIGN_OPTIONS | {"--rates"} | JSON),
    "status": (["folder"], {"--cluster", "-c"} | JSON),
    "report": (["runs"], {"--out", "-o", "--images"} | JSON),
    "board": (["runs"], {"--port"}),
    "package": (["run"], {"--out", "-o", "--method", "--weights", "--licence"}),
    "verify": (["package"], BASE | DEVICE | JSON),
    "push": (["source", "repository"], {"--run", "--licence", "--public", "--send"} | BASE | JSON),
    "pull": (["source"], {"--out", "-o", "--force"}),
    "retry": (["folder", "jobs"], WORKERS | {"--failed"}),
    "cancel": (["folder", "job"], set()),
    "logs": (["folder", "job"], set()),
    "gc": (["folder"], {"--dry-run"}),
    "search": (["file"], CAMPAIGN_OPTIONS | WORKERS | {"--trials"}),
    "submit": ([], set()),
    "prefetch": (["names"], set()),
    "doctor": (["campaign"], JSON),
    "methods": (["name"], JSON),
    "judges": (["kind"], JSON),
    "attacks": (["name"], JSON),
    "concepts": (["name"], BASE | JSON),
    "prompts": (["file"], {"--concepts", "--concept", "-c"} | BASE | JSON),
    "bases": ([], JSON),
}


def commands() -> dict[str, Any]:
    root: Any = typer.main.get_command(cli.app)
    return dict(root.commands)


def test_these_are_the_commands() -> None:
    assert set(commands()) == set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_these_are_the_arguments_and_options(name: str) -> None:
    parameters = commands()[name].params
    arguments = [p.name for p in parameters if p.param_type_name == "argument"]
    options = {opt for p in parameters if p.param_type_name == "option" for opt in (*p.opts, *p.secondary_opts)}
    assert (arguments, options) == COMMANDS[name]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_argument_and_option_says_what_it_is(name: str) -> None:
    command = commands()[name]
    assert command.help and command.help.endswith(".")
    silent = [p.name for p in command.params if not p.help]
    assert silent == []


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_is_shown(name: str, efface: RunEfface) -> None:
    result = efface(*name.split(), "--help")
    assert result.code == 0 and "Usage: efface" in result.out


def test_the_version_is_shown(efface: RunEfface) -> None:
    assert efface("--version").out == f"efface {__version__}\n"


def test_importing_the_command_line_brings_in_nothing_heavy() -> None:
    heavy = ("torch", "diffusers", "transformers", "ray", "pyarrow", "numpy", "pydantic")
    code = f"import sys, efface.launch.cli; print([name for name in {heavy!r} if name in sys.modules])"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert printed == "[]\n"


@pytest.mark.parametrize("command", ["concepts", "bases"])
def test_listings_of_data_need_no_torch(command: str) -> None:
    code = f"import sys; sys.argv[1:] = ['{command}', '--json']\nfrom efface.launch.cli import app\n"
    code += "try: app()\nexcept SystemExit: print('torch' in sys.modules, file=sys.stderr)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stderr
    assert printed == "False\n"


@pytest.mark.parametrize(
    "arguments",
    [
        ["no-such-command"],
        ["unlearn"],
        ["unlearn", "uce"],
        ["unlearn", "uce", "-c"],
        ["unlearn", "uce", "-c", "cat", "--no-such-option"],
        ["unlearn", "uce", "-c", "cat", "--seed", "one"],
        ["evaluate"],
        ["evaluate", "x.safetensors", "--images-per-prompt", "0"],
        ["run", "demo", "--workers", "-1"],
        ["run"],
        ["status"],
        ["score"],
        ["attack", "--per-concept", "0"],
    ],
)
def test_wrong_usage_ends_with_2(arguments: list[str], efface: RunEfface) -> None:
    result = efface(*arguments)
    assert result.code == 2 and "Error" in result.err and "Traceback" not in result.err


def test_an_interruption_ends_with_130_and_a_sentence(efface: RunEfface, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(folder: str) -> list[str]:
        raise KeyboardInterrupt

    monkeypatch.setattr("efface.config_files.list_configs", interrupted)
    result = efface("bases")
    assert result.code == 130 and result.err.startswith("efface: interrupted; what is finished is kept")


def test_a_reader_that_has_seen_enough_gets_no_traceback() -> None:
    command = f"{sys.executable} -m efface bases | head -1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("base") and done.stderr == ""


@pytest.mark.parametrize("name", ["table", "recipe", "base", "judge"])
def test_a_table_of_several_is_scored_by_what_the_message_asks_for(name: str) -> None:
    """The messages of `score_table` name these options."""
    parameters = {p.name for p in commands()["score"].params}
    assert name in parameters
