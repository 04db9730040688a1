"""What the tests of every launcher look at in a run folder."""

import csv
from pathlib import Path

from efface.files import sha256_file

LAUNCH_FILES = ("launch", "launch.json", "leases", "logs", "stop.json")


def methods(run: Path) -> list[str]:
    """The methods of the leaderboard."""
    with (run / "leaderboard.csv").open() as file:
        return [row["method"] for row in csv.DictReader(file)]


def results(run: Path) -> dict[str, str]:
    """Every file that a campaign leaves, with its hash; those that hold times have their names alone."""
    files = (path for path in run.rglob("*") if path.is_file() and path.relative_to(run).parts[0] not in LAUNCH_FILES)
    return {str(path.relative_to(run)): "" if _holds_times(path) else sha256_file(path) for path in files}


def finished_shards(run: Path) -> dict[Path, int]:
    """The finished shards, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in run.glob("evaluations/*/*.verdicts.parquet")}


def _holds_times(path: Path) -> bool:
    """Records, logs, scores and the leaderboard say how long things took."""
    folder = path.parent.name if path.parent.name == "calibration" else path.parent.parent.name
    is_output = path.name.endswith(".calibration.json")
    record = path.suffix == ".json" and folder in ("calibration", "jobs", "evaluations") and not is_output
    timed = ("leaderboard.csv", "scores.json", "log.txt", "report.html", "report.md", "report-tables.csv")
    return record or path.name in timed
