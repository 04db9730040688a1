"""`efface score` on a made-up table: differences of one method, and scores corrected for the judge's errors."""

from pathlib import Path

import pyarrow as pa
import pytest
from report_runs import CONCEPTS, JUDGE, METHODS, rows

from efface.concepts.prompts import AXES
from efface.eval.calibration.calibration import Calibration
from efface.eval.calibration.judge_accuracy import Accuracy
from efface.eval.judging.image_table import SCHEMA, write_table
from efface.eval.scores.corrected import CORRECTED
from efface.launch.commands.score import ScoreOptions, as_json, run, show

NEVER_WRONG = Accuracy.counted(10**6, 10**6, 10**6, 10**6, 0)


@pytest.fixture
def table(tmp_path: Path) -> str:
    path = tmp_path / "table.parquet"
    write_table(path, pa.Table.from_pylist(rows(), schema=SCHEMA))
    return str(path)


def test_one_method_alone_is_compared_with_the_best_of_the_table(
    table: str, capsys: pytest.CaptureFixture[str]
) -> None:
    every = run(ScoreOptions(table=table))
    best = max(METHODS, key=lambda label: every.methods[label].err_mean)
    (other,) = set(METHODS) - {best}
    one = run(ScoreOptions(table=table, method=other))
    assert one.methods.keys() == one.differences.keys() == {other}
    assert as_json(one)["difference"]["to"] == best and one.differences == every.differences
    show(one)
    assert best in capsys.readouterr().out
    assert run(ScoreOptions(table=table, method=best)).differences == {}


def test_a_calibration_adds_corrected_scores_which_are_the_plain_ones_of_a_judge_that_is_never_wrong(
    table: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = Calibration(
        judge=JUDGE,
        weights="w",
        judge_version="1",
        base_id="b",
        recipe_id="r",
        prompts_sha256="p",
        thresholds={},
        accuracy=dict.fromkeys((*CONCEPTS, "tree"), NEVER_WRONG),
    )
    calibration.save(tmp_path / "calibration.json")
    found = run(ScoreOptions(table=table, calibration=str(tmp_path / "calibration.json")))
    show(found)
    printed = capsys.readouterr().out
    assert CORRECTED in printed
    for label in METHODS:
        for axis in AXES:
            estimate = found.corrected[label].axes[axis]
            assert estimate and estimate.score == pytest.approx(found.methods[label].axes[axis], abs=1e-4)
            low, high = estimate.interval
            assert f"{estimate.score:.3f} ({low:.3f} to" in " ".join(printed.split()) and low < high
    show(run(ScoreOptions(table=table)))
    assert "Rogan" not in capsys.readouterr().out
