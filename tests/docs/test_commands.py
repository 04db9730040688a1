"""Commands in the headers of configs and on pages do what they say: each is planned up to where weights are needed.

Names, fields, prompts and concept sets are looked up as the command does. Pages may speak of folders of the reader's
own; those commands only have to be understood (`test_links.py`), and their verbs are run by `tests/launch/`.
"""

import argparse
import csv
import importlib
import importlib.util
import re
import runpy
import shlex
from collections.abc import Callable, Iterable
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer
from test_links import CURRENT, code
from test_links import commands as documented

from efface.cluster.campaign import planner
from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import read_rates
from efface.cluster.campaign.spec import read_campaign
from efface.cluster.search.spec import read_search
from efface.cluster.tasks.model import NOT_FETCHED
from efface.concepts.concept import load_concept_set
from efface.concepts.prompts import load_prompt_set
from efface.config_files import CONFIGS
from efface.errors import UserError
from efface.eval.judging.judge_spec import read_judge
from efface.launch.cli import app
from efface.launch.clusters.cluster_profile import read_profile
from efface.launch.commands import unlearn
from efface.models import base as bases
from efface.models.base import read_base
from efface.models.files.model_files import NotCached
from efface.models.recipe import load_recipe

ROOT = Path(__file__).parents[2]
HEADERS = sorted(CONFIGS.resolve().rglob("*.yaml"))
COMMAND = typer.main.get_command(app)
OWN = re.compile(
    r"--help|--after|--address|[A-Z]{2,}|\bC\b|…|my[_-]|mine|s3://|campaign\.yaml|"
    r"earlier|handed-in|their-model|never-knew|i2p_benchmark|\bme/|runs/[^/ ]+/|(score|report|submit)$|"
    r"anchor-distillation|rank-one"
)
"""What stands for a file, folder or name of the reader's own."""


def header(path: Path) -> list[str]:
    """The commands in the comment that a YAML file opens with, those that go on in the next line joined."""
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        lines.append(line[1:])
    text = re.sub(r"\\\n\s*", "", "\n".join(lines))
    at_start = re.findall(r"^\s+(efface [a-z].*)$", text, re.MULTILINE)
    quoted = re.findall(r"`(efface [a-z][^`]* [^`]*)`|\((efface [a-z][^)]*?) needs no weights\)", text)
    whole = [re.split(r"\s{2,}\(|; ", command)[0] for command in at_start]
    return whole + [one or other for one, other in quoted]


def page(path: Path) -> list[str]:
    """The commands in backticks and code blocks that name nothing of the reader's own."""
    commands = [re.split(r"\s+#|\s{2,}\(| [>|] ", command)[0].strip() for command in documented(path)]
    return [command for command in commands if not OWN.search(command) and is_whole(command)]


def is_whole(command: str) -> bool:
    """Whether a command has all that it needs; prose may name a verb and an option alone."""
    try:
        parsed(command)
    except Exception as error:
        return "Missing" not in f"{type(error).__name__} {error}"
    return True


def parsed(command: str) -> tuple[str, dict[str, Any]]:
    """The verb and its options, as the command line reads them."""
    words = shlex.split(command)[1:]
    verb: Any = COMMAND
    context = typer.Context(verb)
    while hasattr(verb, "commands"):
        name, verb, words = verb.resolve_command(context, words)
        context = typer.Context(verb, info_name=name)
    made = verb.make_context(verb.name, list(words))
    return shlex.split(command)[1], dict(made.params)


PLANS: dict[str, Plan] = {}
"""By campaign and overrides: several pages name the same ones."""


def plan(params: dict[str, Any]) -> None:
    key = str([params["campaign"], params.get("overrides")])
    if key not in PLANS:
        PLANS[key] = planner.plan_campaign(read_campaign(params["campaign"], params.get("overrides")), fetch=False)
    if params.get("rates"):
        read_rates(params["rates"])


def plan_evaluation(params: dict[str, Any]) -> None:
    base = read_base(params["base"])
    concepts = load_concept_set(params["concepts"] or base.concepts)
    load_prompt_set(params["prompts"] or base.prompts, concepts)
    load_recipe(params["recipe"] or base.recipe)
    for judge in params["judge"] or [base.judge]:
        read_judge(judge)


def plan_attack(params: dict[str, Any]) -> None:
    base = read_base(params["base"])
    concepts = load_concept_set(params["concepts"] or base.concepts)
    for name in params["concept"]:
        concepts.find(name)


def plan_unlearning(params: dict[str, Any]) -> None:
    unlearn.run(unlearn.UnlearnOptions(**params))  # all but the training, which is patched away


def plan_search(params: dict[str, Any]) -> None:
    read_search(params["file"], params["overrides"])


def plan_submission(params: dict[str, Any]) -> None:
    read_campaign(params["campaign"], params.get("overrides"))
    if params.get("cluster"):
        read_profile(params["cluster"])


def prefetched(params: dict[str, Any]) -> None:
    for name in params["names"] if "names" in params else filter(None, [params["campaign"]]):
        read_campaign(name)


def listed(verb: str, params: dict[str, Any]) -> None:
    """Looks up what the command is asked for, as it does itself."""
    module = importlib.import_module(f"efface.launch.commands.{verb}")
    options = module.COMMAND.options
    module.COMMAND.run(options(**{field.name: params[field.name] for field in fields(options)}))


PLANNED: dict[str, Callable[[dict[str, Any]], Any]] = {
    **dict.fromkeys(("run", "plan"), plan),
    **dict.fromkeys(("evaluate", "calibrate"), plan_evaluation),
    "attack": plan_attack,
    "unlearn": plan_unlearning,
    "search": plan_search,
    "submit": plan_submission,
    **dict.fromkeys(("doctor", "prefetch"), prefetched),
    **{verb: partial(listed, verb) for verb in ("methods", "judges", "concepts", "bases", "attacks", "prompts")},
}
RUN_ELSEWHERE = {
    **dict.fromkeys(("status", "logs", "cancel", "gc", "retry"), "commands/test_verbs.py"),
    **dict.fromkeys(("package", "verify"), "commands/test_package.py"),
    **dict.fromkeys(("push", "pull"), "commands/test_push.py"),
    "quality": "commands/test_quality.py",
    **dict.fromkeys(("board", "report"), "test_board.py"),
    "score": "test_broken_images.py",
    "export": "test_home_folder.py",
}
"""Verbs that work on what a run has left, and the test of `tests/launch/` that runs each."""


@pytest.fixture(autouse=True)
def without_weights(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A folder with prompts of the reader's own, and no hub: a base that is not here is not fetched."""
    really = bases.base_id

    def base_id(spec: Any, fetch: bool = True) -> str:
        try:
            return really(spec, False)
        except NotCached:
            return NOT_FETCHED

    monkeypatch.setattr(bases, "base_id", base_id)
    monkeypatch.setattr(planner, "fingerprint_of", base_id)
    for trains in ("_train", "_write_torchrun_job"):
        monkeypatch.setattr(unlearn, trains, lambda *given: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(CONFIGS.resolve())
    rows = load_prompt_set("genmu-2025", load_concept_set("genmu-2025")).rows
    with (tmp_path / "mine.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["concept_name", "direct_prompt", "indirect_prompt", "adversarial_prompt"])
        writer.writerows(
            [name, row.direct[0], *(row.indirect[:1] or [""]), f"x {n}"] for n, (name, row) in enumerate(rows.items())
        )


def works(command: str) -> None:
    verb, params = parsed(command)
    if verb in PLANNED:
        PLANNED[verb](params)
    else:
        assert verb in RUN_ELSEWHERE, command


@pytest.mark.parametrize("file", HEADERS, ids=lambda path: str(path.relative_to(CONFIGS.resolve())))
def test_the_commands_that_a_config_opens_with_can_be_planned(file: Path) -> None:
    for command in header(file):
        works(command)


def test_every_config_but_those_of_deepspeed_opens_with_a_command() -> None:
    assert [path.name for path in HEADERS if not header(path) and path.parent.name != "deepspeed"] == []


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "concepts" / "data").glob("*.yaml"))])
def test_the_commands_of_a_concept_set_can_be_planned(name: str) -> None:
    for command in header(ROOT / "concepts" / "data" / f"{name}.yaml"):
        works(command)


@pytest.mark.parametrize("path", [path for path in CURRENT if page(path)], ids=lambda path: path.name)
def test_the_commands_of_a_page_can_be_planned(path: Path) -> None:
    for command in page(path):
        works(command)


def benchmarks(lines: Iterable[str]) -> dict[str, list[list[str]]]:
    """By module of `benchmarks`, the arguments with which it is named."""
    found: dict[str, list[list[str]]] = {}
    for line in lines:
        for module, rest in re.findall(r"python -m (benchmarks[\w.]+)([^`(#>|;]*)", line):
            found.setdefault(module, []).append(shlex.split(rest))
    return found


class Understood(Exception):
    """The arguments were parsed; what they ask for is not done."""


def refusal(module: str, arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """Why a benchmark would not start with these arguments. One that parses none is only looked at for the flags."""
    spec = importlib.util.find_spec(module)
    assert spec and spec.origin, module
    source = Path(spec.origin)
    if source.name == "__init__.py":
        source = source.with_name("__main__.py")
    text = source.read_text(encoding="utf-8")
    shared = re.search(r"on_device import [(\s]*arguments\b", text)
    if "ArgumentParser" not in text and "typer.run" not in text and not shared:
        return next((f"no {word}" for word in arguments if f'"{word}"' not in text), None)
    really = argparse.ArgumentParser.parse_args

    def parse_args(parser: argparse.ArgumentParser, *given: Any) -> None:
        really(parser, arguments)
        raise Understood

    def error(parser: argparse.ArgumentParser, message: str) -> None:
        raise UserError(message)

    def run(function: Callable[..., None]) -> None:
        alone = typer.Typer(add_completion=False)
        alone.command()(function)
        typer.main.get_command(alone).make_context(module, list(arguments))
        raise Understood

    monkeypatch.setattr(typer, "run", run)
    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
    monkeypatch.setattr(argparse.ArgumentParser, "error", error)
    try:
        runpy.run_module(module, run_name="__main__")
    except Understood:
        return None
    except Exception as refused:
        return str(refused)
    return "it parses no arguments"


DOCUMENTED_BENCHMARKS = benchmarks(
    [line for path in CURRENT for line in code(path)]
    + [line for path in HEADERS for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
)


@pytest.mark.parametrize("module", sorted(DOCUMENTED_BENCHMARKS))
def test_benchmarks_understand_the_arguments_of_pages_and_headers(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments in DOCUMENTED_BENCHMARKS[module]:
        with monkeypatch.context() as patch:
            assert refusal(module, arguments, patch) is None, arguments


def test_arguments_that_a_benchmark_does_not_have_are_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "--tabel" in (refusal("benchmarks.coverage", ["--tabel"], monkeypatch) or "")
    assert "--sped" in (refusal("benchmarks.scheduler.simulate", ["esd-ablation", "--sped", "1"], monkeypatch) or "")
    assert refusal("benchmarks.memory", ["--mesure"], monkeypatch) == "no --mesure"


def test_every_verb_is_planned_here_or_run_by_the_test_that_is_named() -> None:
    verbs = set(COMMAND.list_commands(typer.Context(COMMAND)))
    assert verbs == PLANNED.keys() | RUN_ELSEWHERE.keys()
    for verb, test in RUN_ELSEWHERE.items():
        assert re.search(rf"\W{verb}\W", (ROOT / "tests" / "launch" / test).read_text()), verb


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        ("efface unlearn ca --base sd-v1-4 --concept nudity --preset nudity", "unknown concept 'nudity'"),
        ("efface unlearn esd --base sd-v1-4 --concept 'Van Gogh' --preset newer-scrip", "unknown preset"),
        ("efface run genmu-singel", "genmu-single"),
        ("efface run genmu-single -s evaluation.prompts=other.csv", "other.csv"),
        ("efface evaluate a.safetensors --judge clip-vit-larg", "clip-vit-large"),
        ("efface plan demo --rates h20", "h200"),
        ("efface methods typo", "unknown method 'typo'"),
        ("efface concepts genmu-205", "genmu-2025"),
        ("efface judges clop", "clip"),
        ("efface attacks gcc", "gcg"),
        ("efface prompts genmu-2025 --concept Van-Go", "Van-Go"),
    ],
)
def test_a_command_that_does_not_work_is_noticed(command: str, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        works(command)
