"""The stages of a chain. The numbers of the example are worked out by hand in its comments."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from efface.concepts.prompts import AXES
from efface.errors import UserError
from efface.eval.scores.continual import Relapse, Stages, rich_table, rows, score_stages, write_csv
from efface.eval.scores.results import Scores, Summary
from efface.eval.scores.scoring import score_table


def score(err_mean: float, **concepts: tuple[float, float, float, float, float]) -> Summary[float]:
    """Scores of concepts with (forget, indirect, adversarial, adjacent, retain)."""
    by_axis: dict[str, dict[str, float]] = {
        name: dict(zip(AXES, values, strict=True)) for name, values in concepts.items()
    }
    means = {axis: sum(found[axis] for found in by_axis.values()) / len(by_axis) for axis in AXES}
    return Summary(by_axis, means, err_mean, err_of_means=0.0)


CHAIN = [("esd 1/3", "Cat"), ("esd 2/3", "Tulip"), ("esd", "Bus")]
SCORES = {
    "esd 1/3": score(0.75, Cat=(1.0, 0.75, 0.5, 1.0, 1.0)),
    "esd 2/3": score(0.5, Cat=(0.75, 0.75, 0.75, 0.5, 0.5), Tulip=(1.0, 1.0, 0.25, 0.5, 0.0)),
    "esd": score(
        0.25, Cat=(0.5, 0.25, 0.5, 0.0, 0.25), Tulip=(0.5, 1.0, 0.0, 0.0, 0.25), Bus=(1.0, 1.0, 1.0, 0.0, 0.25)
    ),
    "another method": score(0.9, Cat=(1.0, 1.0, 1.0, 1.0, 1.0)),
}


@pytest.fixture
def report() -> Stages:
    return score_stages(CHAIN, SCORES)


def test_a_stage_holds_its_request_and_everything_erased_so_far(report: Stages) -> None:
    result = [(s.stage, s.label, s.request, s.erased) for s in report.stages]
    assert result == [
        (1, "esd 1/3", "Cat", ["Cat"]),
        (2, "esd 2/3", "Tulip", ["Cat", "Tulip"]),
        (3, "esd", "Bus", ["Cat", "Tulip", "Bus"]),
    ]


def test_retention_is_the_mean_of_adjacent_and_retain(report: Stages) -> None:
    # stage 2: adjacent (0.5 + 0.5) / 2, retain (0.5 + 0) / 2
    assert [s.retention for s in report.stages] == [1.0, 0.375, 0.125]
    assert [s.err_mean for s in report.stages] == [0.75, 0.5, 0.25]


def test_the_first_stage_has_nothing_that_could_come_back(report: Stages) -> None:
    assert report.stages[0].relapse == Relapse({}, None)


def test_relapse_is_the_score_right_after_its_own_request_less_the_score_now(report: Stages) -> None:
    third = report.stages[2].relapse
    # the cat was erased by stage 1, the tulip by stage 2; what happened in between does not count
    assert third.concepts["Cat"] == {"forget": 1.0 - 0.5, "indirect": 0.75 - 0.25, "adversarial": 0.5 - 0.5}
    assert third.concepts["Tulip"] == {"forget": 1.0 - 0.5, "indirect": 1.0 - 1.0, "adversarial": 0.25 - 0.0}
    assert third.mean == {"forget": 0.5, "indirect": 0.25, "adversarial": 0.125}


def test_a_target_that_is_more_thoroughly_gone_than_before_relapses_below_zero(report: Stages) -> None:
    assert report.stages[1].relapse.mean == {"forget": 0.25, "indirect": 0.0, "adversarial": -0.25}


def test_means_are_over_stages_and_of_the_relapse_over_those_that_have_one(report: Stages) -> None:
    assert report.mean.err_mean == 0.5
    assert report.mean.retention == 0.5
    assert report.mean.axes["forget"] == pytest.approx((1.0 + 0.875 + 2 / 3) / 3)
    assert report.mean.relapse == {"forget": 0.375, "indirect": 0.125, "adversarial": -0.0625}


def test_a_chain_of_one_has_no_relapse_at_all() -> None:
    report = score_stages(CHAIN[:1], SCORES)
    assert report.mean.relapse is None and report.mean.err_mean == 0.75


def test_scores_of_an_image_table_are_taken_as_they_are(row: Any, table: Any) -> None:
    """Two images an axis; after the second request the cat is seen in one of the two whose prompt names it."""

    def judged(label: str, concepts: dict[str, int]) -> Scores:
        seen = {"forget": 0, "indirect": 0, "adversarial": 0, "adjacent": 2, "retain": 2}
        return score_table(
            table(
                row(axis, seed < (cats if axis == "forget" else count), name, seed, method=label, model_id=label)
                for name, cats in concepts.items()
                for axis, count in seen.items()
                for seed in (0, 1)
            )
        )

    scores = {"uce 1/2": judged("uce 1/2", {"Cat": 0}), "uce": judged("uce", {"Cat": 1, "Tulip": 0})}
    second = score_stages([("uce 1/2", "Cat"), ("uce", "Tulip")], scores).stages[1]
    assert second.relapse.concepts["Cat"] == {"forget": 0.5, "indirect": 0, "adversarial": 0}
    assert second.err_mean == pytest.approx((5 / (2 + 1 + 1 + 1 + 1) + 1) / 2)  # of the harmonic means


def test_it_is_json(report: Stages) -> None:
    assert json.loads(json.dumps(report.as_json(), allow_nan=False)) == report.as_json()


def test_rows_are_flat_and_end_with_the_means(report: Stages) -> None:
    first, _, third, mean = rows(report)
    assert (first.stage, first.request, first.relapse_forget) == (1, "Cat", None)
    assert (third.retain, third.relapse_adversarial) == (0.25, 0.125)
    assert (mean.stage, mean.label, mean.err_mean, mean.relapse_forget) == ("mean", "", 0.5, 0.375)


def test_the_csv_keeps_every_digit_and_leaves_the_unknown_empty(report: Stages, tmp_path: Path) -> None:
    write_csv(tmp_path / "stages.csv", report)
    first, _, third, mean = csv.DictReader(io.StringIO((tmp_path / "stages.csv").read_text()))
    assert list(first) == [
        *("stage", "label", "request", "err_mean", "forget", "indirect", "adversarial", "adjacent", "retain"),
        *("retention", "relapse_forget", "relapse_indirect", "relapse_adversarial"),
    ]
    assert float(third["forget"]) == 2 / 3 and first["relapse_forget"] == "" and float(mean["retention"]) == 0.5


def test_labels_and_names_act_neither_on_a_terminal_nor_on_a_spreadsheet(tmp_path: Path) -> None:
    label, name = "=[red]x\x1b[2J[/red]", "@[bold]Cat[/bold]"
    found = score_stages([(label, name)], {label: score(0.5, **{name: (1.0, 1.0, 1.0, 1.0, 1.0)})})
    write_csv(tmp_path / "stages.csv", found)
    first, _ = csv.DictReader(io.StringIO((tmp_path / "stages.csv").read_text()))
    assert (first["label"], first["request"]) == (f"'{label}", f"'{name}")
    console = Console(width=100, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(rich_table(found, f"{label}, request by request"))
    printed = console.file.getvalue()  # type: ignore[attr-defined]
    assert "=[red]x\\x1b[2J[/red], request by request" in printed and name in printed


def test_a_relapse_below_zero_stays_a_number_in_the_csv(report: Stages, tmp_path: Path) -> None:
    write_csv(tmp_path / "stages.csv", report)
    rows = list(csv.DictReader(io.StringIO((tmp_path / "stages.csv").read_text())))
    assert float(rows[1]["relapse_adversarial"]) == -0.25  # stage 2: 0.5 - 0.75 of the cat


def test_the_table_fits_a_hundred_columns_with_nothing_cut() -> None:
    chain = [("esd 1/2", "English Springer Spaniel"), ("esd", "Cat [small]")]
    scores = {
        "esd 1/2": score(0.5, **{"English Springer Spaniel": (1.0, 1.0, 1.0, 1.0, 1.0)}),
        "esd": score(0.5, **{name: (0.25, 1.0, 1.0, 1.0, 1.0) for _, name in chain}),
    }
    console = Console(width=100, file=io.StringIO())
    console.print(rich_table(score_stages(chain, scores)))
    text = console.file.getvalue()  # type: ignore[attr-defined]
    assert max(map(len, text.splitlines())) <= 100 and "…" not in text
    for part in ("English Springer", "Spaniel", "Cat [small]", "0.750", "-", "mean"):
        assert part in text


@pytest.mark.parametrize(
    ("chain", "message"),
    [
        ([], "a chain without a request"),
        ([*CHAIN, ("esd", "Cat")], "'Cat' is requested twice"),
        ([("ca", "Cat")], "stage 1 of the chain, 'ca', has no scores"),
        ([("esd 1/3", "Cat"), ("another method", "Tulip")], "stage 2 .*'another method', is not scored on Tulip"),
    ],
)
def test_a_chain_that_was_not_scored_whole_is_refused(chain: list[tuple[str, str]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        score_stages(chain, SCORES)
