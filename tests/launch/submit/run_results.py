"""What the tests of every launcher look at in a run folder."""

import csv
from pathlib import Path

from efface.files import sha256_file


def methods(run: Path) -> list[str]:
    """The methods of the leaderboard."""
    with (run / "leaderboard.csv").open() as file:
        return [row["method"] for row in csv.DictReader(file)]


def results(run: Path) -> dict[str, str]:
    """What a campaign leaves: every delta, image and verdict, and the table, by their bytes."""
    whole = [*run.glob("jobs/*/delta.safetensors"), *run.glob("evaluations/*/*.parquet"), run / "table.parquet"]
    return {str(path.relative_to(run)): sha256_file(path) for path in whole}


def judged(run: Path) -> dict[Path, int]:
    """The finished shards, and when they were written."""
    return {path: path.stat().st_mtime_ns for path in run.glob("evaluations/*/*.verdicts.parquet")}
