"""Commands as functions of typed options: what Python calls, and what the command line is made of."""

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path

import pytest

from efface.launch.cli import PANELS
from efface.launch.command import Command
from efface.launch.commands import cancel, concepts, logs, plan, score, status, unlearn

VERBS = [name for names in PANELS.values() for name in names if name != "submit"]


@pytest.mark.parametrize("verb", VERBS)
def test_each_verb_is_a_module_with_frozen_options_an_action_and_what_shows_its_result(verb: str) -> None:
    module = importlib.import_module(f"efface.launch.commands.{verb}")
    command: Command[object, object] = module.COMMAND
    assert (command.name, command.run) == (verb, module.run)
    assert dataclasses.is_dataclass(command.options) and command.options.__dataclass_params__.frozen  # type: ignore[attr-defined]
    assert all(field.kw_only for field in dataclasses.fields(command.options))


def test_the_files_of_the_package_are_the_verbs() -> None:
    folder = Path(plan.__file__).parent
    assert sorted(path.stem for path in folder.glob("[!_]*.py")) == sorted([*VERBS, "submit"])


def test_an_action_gives_a_result_and_prints_nothing(
    finished: Path, campaign_file: Callable[..., Path], tmp_path: Path, base: str, capfd: pytest.CaptureFixture[str]
) -> None:
    planned = plan.run(plan.PlanOptions(campaign=str(campaign_file()), out=str(tmp_path / "new")))
    assert (planned.left, planned.all.jobs, planned.models[0].state) == (planned.all, 2, planned.models[0].state)
    report = status.run(status.StatusOptions(folder=str(finished)))
    assert (report.driver, report.running, report.launched) == (None, [], [])
    assert list(score.run(score.ScoreOptions(table=str(finished))).methods) == ["uce"]
    assert logs.run(logs.LogsOptions(folder=str(finished)))[0].endswith("opened")
    assert concepts.run(concepts.ConceptsOptions(name="miniature")).sets[0].name == "miniature"
    options = unlearn.UnlearnOptions(method="uce", concept=["cat"], base=base, out=tmp_path / "d.safetensors")
    result = unlearn.run(options)
    assert isinstance(result, unlearn.Unlearned) and result.bytes == (tmp_path / "d.safetensors").stat().st_size
    assert capfd.readouterr().out == ""


def test_options_do_not_change() -> None:
    options = cancel.CancelOptions(folder="x")
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.folder = "y"  # type: ignore[misc]
