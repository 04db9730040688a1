"""`efface search` as it is typed: what it refuses, and how it says so, before anything is computed."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import RunEfface
from tiny_campaign import LIMITS, write_yaml

from efface.cluster.search.result import TrialResult, TrialRow
from efface.cluster.search.search import SearchResults
from efface.cluster.storage.run_folder import RunFolder


@pytest.fixture
def search_file(campaign_inputs: Path, tmp_path: Path) -> Any:
    """A function from changed keys to a search's YAML file."""

    def write(**changes: Any) -> str:
        search = {
            "name": "tiny",
            "base": str(campaign_inputs / "base.yaml"),
            "concepts": {"targets": ["cat"]},
            "method": "uce",
            "space": {"ridge": {"loguniform": [0.1, 10.0]}},
            "evaluation": {"prompts_per_concept": LIMITS},
            **changes,
        }
        return write_yaml(tmp_path / "search.yaml", search)

    return write


def test_an_unknown_search_is_answered_with_those_that_ship(efface: RunEfface) -> None:
    assert "did you mean 'esd-miniature'?" in efface("search", "esd-minature").error_message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"space": {"ridg": {"loguniform": [0.1, 10]}}}, "space.ridg is no field of 'uce', did you mean 'ridge'?"),
        ({"preset": "minature"}, "did you mean 'miniature'?"),
        ({"concepts": {"targets": ["cta"]}}, "did you mean 'cat'?"),
        ({"base": "minature"}, "unknown base 'minature'"),
        ({"evaluation": {"prompts_per_concept": {"adversarial": 0}}}, "nothing is asked on the axis adversarial"),
    ],
)
def test_a_search_that_cannot_be_is_refused_in_a_sentence_and_leaves_nothing(
    efface: RunEfface, search_file: Any, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    out = tmp_path / "run"
    assert message in efface("search", search_file(**changes), "--out", out).error_message
    assert not out.exists()


def test_keys_of_a_search_can_be_set(efface: RunEfface, search_file: Any, tmp_path: Path) -> None:
    result = efface("search", search_file(), "--out", tmp_path / "run", "-s", "rungs=[4,2]")
    assert "should be rising numbers of images" in result.error_message


@pytest.mark.parametrize(("option", "value"), [("--trials", "0"), ("--workers", "-1")])
def test_fewer_trials_than_one_or_workers_than_none_are_refused(
    efface: RunEfface, search_file: Any, option: str, value: str
) -> None:
    assert efface("search", search_file(), option, value).code == 2


def test_a_trial_that_broke_makes_exit_code_1(
    efface: RunEfface, search_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    row = TrialRow(1, "0" * 16, {"ridge": 1.0}, False, TrialResult("errored", reason="out of luck"))
    found = SearchResults(RunFolder(tmp_path), [row], [], SimpleNamespace(err_mean=0.25))  # type: ignore[arg-type]
    monkeypatch.setattr("efface.cluster.search.search.run_search", lambda *arguments: found)
    result = efface("search", search_file())
    assert result.code == 1 and "The same command tries the trials again that broke." in result.out
    assert "1 trials: 1 errored; the unedited base has ERR 0.250" in result.out
