"""The ledger of a search: every config tried, in its order, and how far it came.

    trials.json    [{"number": 1, "id": …, "point": {…}, "ended": true, "state": "judged", "score": …, …}, …]

The driver alone writes it, whole, whenever something happened.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from efface.cluster.search.spec import Point
from efface.cluster.storage.run_folder import RunFolder
from efface.files import content_id, write_json

RESULT_FIELDS = (
    "state",
    "score",
    "err_mean",
    "interval",
    "axes",
    "images_per_prompt",
    "weight_change",
    "challenge",
    "seconds",
    "jobs",
    "reason",
)

TrialRow = dict[str, Any]


class Ledger:
    """What earlier starts of the search knew, and what this one hears."""

    def __init__(self, folder: RunFolder, on_change: Callable[[TrialRow], None] = lambda row: None) -> None:
        """`on_change` is called with every row that changed."""
        self._path = folder.root / "trials.json"
        self._on_change = on_change
        self.rows = _read(self._path.read_bytes()) if self._path.is_file() else []
        """Every trial, in the order they began first."""
        self._indices: dict[str, int] = {}
        """Where the row is of a trial that Tune has begun now, by Tune's name of it."""

    @property
    def points(self) -> list[Point]:
        return [row["point"] for row in self.rows]

    def is_complete(self, trials: int) -> bool:
        """Whether so many trials have come to their end."""
        return len(self.rows) >= trials and all(row["ended"] for row in self.rows)

    def started(self, trial: str, point: Point) -> None:
        """A trial starts: one that is known by its point, or a new one."""
        if trial in self._indices:
            return  # it broke, and is tried again
        assigned = self._indices.values()
        known = (index for index, row in enumerate(self.rows) if row["point"] == point and index not in assigned)
        index = next(known, len(self.rows))
        self._indices[trial] = index
        if index == len(self.rows):
            row = {"number": index + 1, "id": content_id(point), "point": point, "ended": False, "state": "started"}
            self.rows.append(row)
            self._write()

    def judged(self, trial: str, result: Mapping[str, Any]) -> None:
        """A trial was judged on a rung, or cannot be; what was judged on more images before stays."""
        row = self.rows[self._indices[trial]]
        results = {name: result[name] for name in RESULT_FIELDS if name in result}
        if results.get("images_per_prompt", 0) < row.get("images_per_prompt", 0):
            return
        if results == {name: row[name] for name in results if name in row}:
            return
        self._update(trial, {**{name: row[name] for name in ("number", "id", "point", "ended")}, **results})
        self._on_change(self.rows[self._indices[trial]])

    def ended(self, trial: str) -> None:
        """Nothing more comes of a trial."""
        self._update(trial, {**self.rows[self._indices[trial]], "ended": True})

    def errored(self, trial: str, reason: str) -> None:
        """A trial broke more often than it may; the next start tries it again."""
        row = {**self.rows[self._indices[trial]], "reason": reason}
        self._update(trial, {**row, "state": "errored"} if row["state"] == "started" else row)
        self._on_change({**row, "state": "errored"})

    def _update(self, trial: str, row: TrialRow) -> None:
        if row != self.rows[self._indices[trial]]:
            self.rows[self._indices[trial]] = row
            self._write()

    def _write(self) -> None:
        write_json(self._path, self.rows)


REQUIRED_KEYS = {"number", "id", "point", "ended", "state"}


def _read(data: bytes) -> list[TrialRow]:
    """The rows; none where the file is damaged, and the search begins anew over the run folder."""
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):
        return []
    is_complete = isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= REQUIRED_KEYS for row in rows)
    return rows if is_complete else []
