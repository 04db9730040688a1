"""The ledger of a search: every config tried, in its order, and how far it came.

    trials.json    [{"number": 1, "id": …, "point": {…}, "ended": true, "state": "judged", "score": …, …}, …]

The driver alone writes it, whole, whenever something happened.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from efface.cluster.run_folder import RunFolder
from efface.cluster.search_space import Point
from efface.files import content_id, write_json

RESULTS = (
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

Row = dict[str, Any]


class Ledger:
    """What earlier starts of the search knew, and what this one hears."""

    def __init__(self, folder: RunFolder, told: Callable[[Row], None] = lambda row: None) -> None:
        """`told` is called with every row that changed."""
        self._path = folder.root / "trials.json"
        self._told = told
        self.rows = _read(self._path.read_bytes()) if self._path.is_file() else []
        """Every trial, in the order they began first."""
        self._places: dict[str, int] = {}
        """Where the row is of a trial that Tune has begun now, by Tune's name of it."""

    @property
    def points(self) -> list[Point]:
        return [row["point"] for row in self.rows]

    def whole(self, trials: int) -> bool:
        """Whether so many trials have come to their end."""
        return len(self.rows) >= trials and all(row["ended"] for row in self.rows)

    def begun(self, trial: str, point: Point) -> None:
        """A trial starts: one that is known by its point, or a new one."""
        if trial in self._places:
            return  # it broke, and is tried again
        taken = self._places.values()
        known = (place for place, row in enumerate(self.rows) if row["point"] == point and place not in taken)
        place = next(known, len(self.rows))
        self._places[trial] = place
        if place == len(self.rows):
            row = {"number": place + 1, "id": content_id(point), "point": point, "ended": False, "state": "begun"}
            self.rows.append(row)
            self._write()

    def judged(self, trial: str, result: Mapping[str, Any]) -> None:
        """A trial was judged on a rung, or cannot be; what was judged on more images before stays."""
        row = self.rows[self._places[trial]]
        found = {name: result[name] for name in RESULTS if name in result}
        if found.get("images_per_prompt", 0) < row.get("images_per_prompt", 0):
            return
        if found == {name: row[name] for name in found if name in row}:
            return
        self._change(trial, {**{name: row[name] for name in ("number", "id", "point", "ended")}, **found})
        self._told(self.rows[self._places[trial]])

    def ended(self, trial: str) -> None:
        """Nothing more comes of a trial."""
        self._change(trial, {**self.rows[self._places[trial]], "ended": True})

    def broken(self, trial: str, reason: str) -> None:
        """A trial broke more often than it may; the next start tries it again."""
        row = {**self.rows[self._places[trial]], "reason": reason}
        self._change(trial, {**row, "state": "broken"} if row["state"] == "begun" else row)
        self._told({**row, "state": "broken"})

    def _change(self, trial: str, row: Row) -> None:
        if row != self.rows[self._places[trial]]:
            self.rows[self._places[trial]] = row
            self._write()

    def _write(self) -> None:
        write_json(self._path, self.rows)


KEYS = {"number", "id", "point", "ended", "state"}


def _read(data: bytes) -> list[Row]:
    """The rows; none where the file is damaged, and the search begins anew over the run folder."""
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError):
        return []
    whole = isinstance(rows, list) and all(isinstance(row, dict) and row.keys() >= KEYS for row in rows)
    return rows if whole else []
