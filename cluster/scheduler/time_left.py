"""How long a run will take yet: by the rates that the plan was costed with, corrected by what its tasks really take."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from efface.cluster.storage.under_way import Count, HowFar
from efface.cluster.tasks.calibration import CalibrationPart, CalibrationTask
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.task import Task

Group = tuple[str, str]
"""Kind and method: tasks of one group are taken to be off from the rates by the same factor."""

Done = tuple[float, float, float]
"""Of what is done of a group: seconds it took, seconds by the rates, and units."""

IMAGE_KINDS = (Shard.kind, CalibrationPart.kind)
"""Kinds whose units are images, which take as long whatever model they are of."""

MAKES_IMAGES = (*IMAGE_KINDS, CalibrationTask.kind)
"""Kinds whose tasks are mostly the making of images, whatever they are counted in."""


class UnderWay(NamedTuple):
    """A task that a worker does now."""

    task: Task
    elapsed: float
    """Seconds since it was begun."""
    far: HowFar | None = None

    @property
    def share(self) -> float:
        """How much of it is done, where it is known and says how long the rest takes; else 0.

        Steps of a training do not: what comes before the first may take longest.
        """
        return self.far.done / self.far.of if isinstance(self.far, Count) else 0.0


class TimeLeft:
    """An estimate that is there from the start where the rates know every task, and else once one of each is done.

    Images of one model say how long those of all others take, or by what factor they are off from the rates.
    """

    def __init__(self, tasks: Iterable[Task], seconds: Mapping[str, float | None], workers: int) -> None:
        """tasks: what is left; seconds: by the rates, by id, None or nothing where they do not know."""
        self.workers = workers
        self._seconds = seconds
        self._left: dict[str, Task] = {task.id: task for task in tasks}
        self._expected: dict[Group, float] = {}
        """Seconds of what is left, by the rates."""
        self._units: dict[Group, int] = {}
        """Units of what is left and the rates do not know."""
        self._done: dict[Group, Done] = {}
        self._image_seconds: float | None = None
        """What an image took lately, of whatever model: there is no other rate for a recipe that none knows."""
        for task in self._left.values():
            self._add(task, 1)

    def ended(self, task: Task, seconds: float) -> None:
        """A task is done; `seconds` of a worker went into it."""
        if self._left.pop(task.id, None) is None:
            return
        self._add(task, -1)
        took, expected, units = self._done.get(_group(task), (0.0, 0.0, 0.0))
        self._done[_group(task)] = (took + seconds, expected + (self._seconds.get(task.id) or 0.0), units + task.size)

    def given_up(self, task: Task) -> None:
        """Nothing more is done for its model."""
        folder = task.model.folder if task.model else None
        for other in [t for t in self._left.values() if t.model and t.model.folder == folder]:
            del self._left[other.id]
            self._add(other, -1)

    def seconds(self, running: Iterable[UnderWay]) -> float | None:
        """Until the end; None: not known yet. Workers are taken to share what is left evenly."""
        tasks, done = list(running), dict(self._done)
        for one in tasks:
            if one.share:  # that part of it counts as a task that has ended
                took, expected, units = done.get(_group(one.task), (0.0, 0.0, 0.0))
                known = self._seconds.get(one.task.id) or 0.0
                part = expected + one.share * known, units + one.share * one.task.size
                done[_group(one.task)] = (took + one.elapsed, *part)
        self._image_seconds = _image_seconds(done, tasks) or self._image_seconds
        total = 0.0
        for group in {*self._expected, *self._units}:
            took, _, units = done.get(group, (0.0, 0.0, 0.0))
            total += self._expected.get(group, 0.0) * _factor(group, done)
            if self._units.get(group):
                each = took / units if units else self._image_seconds if group[0] in IMAGE_KINDS else None
                if each is None:
                    return None
                total += self._units[group] * each
        longest = 0.0
        for one in tasks:
            whole = self._whole(one.task, done)
            left = whole * (1 - one.share) if one.share else max(0.0, whole - one.elapsed)
            total -= whole - left
            longest = max(longest, left)
        return max(total / max(self.workers, 1), longest)

    def _whole(self, task: Task, done: Mapping[Group, Done]) -> float:
        """Seconds that a task is expected to take by what its group took; 0: not known."""
        took, _, units = done.get(_group(task), (0.0, 0.0, 0.0))
        known = self._seconds.get(task.id)
        if known is not None:
            return known * _factor(_group(task), done)
        return task.size * took / units if units else 0.0

    def _add(self, task: Task, sign: int) -> None:
        known = self._seconds.get(task.id)
        group = _group(task)
        if known is None:
            self._units[group] = self._units.get(group, 0) + sign * task.size
        else:
            # Sums of floats end near zero, and not below it.
            self._expected[group] = max(0.0, self._expected.get(group, 0.0) + sign * known)


def _factor(group: Group, done: Mapping[Group, Done]) -> float:
    """By how much what is done of a group was off from the rates; where none of it is done and it makes images, by
    how much all others were that do."""
    took, expected, _ = done.get(group, (0.0, 0.0, 0.0))
    if not expected and group[0] in MAKES_IMAGES:
        seen = [of for (kind, _), of in done.items() if kind in MAKES_IMAGES and of[1]]
        took, expected = sum(of[0] for of in seen), sum(of[1] for of in seen)
    return took / expected if expected else 1.0


def _image_seconds(done: Mapping[Group, Done], running: Iterable[UnderWay]) -> float | None:
    """Seconds of an image, over all that are done; also of tasks whose units are others, such as calibrations."""
    seen = [(took, units) for (kind, _), (took, _, units) in done.items() if kind in IMAGE_KINDS]
    for _, _, far in running:
        if isinstance(far, Count) and far.unit == "image":
            seen.append((far.seconds, float(far.done)))
    images = sum(units for _, units in seen)
    return sum(took for took, _ in seen) / images if images else None


def _group(task: Task) -> Group:
    return task.kind, task.method
