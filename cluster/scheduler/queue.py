"""The work that is left, and which piece a free worker should take next.

Shards go first to the worker that holds their model, so that a delta is loaded once and a model is judged as soon as
it exists; and jobs, the long pieces, come before shards that no worker holds. Towards the end the rule turns about:
the last jobs come before all shards, which then fill the time of the workers that have no job any more, each taking
from the model that has most of them left. Of the jobs, those come first that most others wait for.
"""

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Iterable

from efface.cluster.campaign.plan import CalibrationTask, Model, Shard
from efface.cluster.storage.run_folder import Task

TAIL_JOBS_PER_WORKER = 4
"""Jobs for each worker that are the last ones: begun before the judging of models that wait."""


class Queue:
    """Work by model. A job waits until the model exists that it continues, a model's shards until the model exists,
    and all shards until the judges are calibrated."""

    def __init__(
        self,
        calibrations: Iterable[CalibrationTask],
        jobs: Iterable[Model],
        shards: Iterable[Shard],
        existing: Iterable[str],
        workers: int = 1,
    ) -> None:
        """`existing`: ids of the models that can be judged from the start; `workers`: how many will take work."""
        self._calibrations = deque(calibrations)
        self._uncalibrated = len(self._calibrations)
        self._existing = set(existing)
        remaining = list(jobs)
        self._followers: dict[str, list[Model]] = {}
        """Jobs by the folder of the model they wait for."""
        self._depth = _followers_in_all(remaining)
        self._order = itertools.count()
        self._jobs: list[tuple[int, int, Model]] = []
        """A heap of the jobs that can be begun."""
        undone = {model.folder for model in remaining}
        for model in remaining:
            if model.predecessor in undone:
                self._followers.setdefault(model.predecessor, []).append(model)
            else:
                self._push(model)
        self._shards: dict[str, deque[Shard]] = {}
        for shard in shards:
            self._shards.setdefault(shard.model.id, deque()).append(shard)
        self.workers = workers
        self._rank = {model: rank for rank, model in enumerate(self._shards)}
        self._ready = 0
        """Shards of models that exist."""
        self._fullest: list[tuple[int, int, str]] = []
        """A heap of (-shards left, rank, model) of models that exist; an entry with an old number of them is stale."""
        for name in self._existing:
            self._add_ready_shards(name)

    def add(
        self,
        calibrations: Iterable[CalibrationTask],
        jobs: Iterable[Model],
        shards: Iterable[Shard],
        existing: Iterable[str],
    ) -> None:
        """More work, whose jobs continue no other model. `existing`: models that can be judged now."""
        for name in existing:
            if name not in self._existing:
                self._existing.add(name)
                self._add_ready_shards(name)
        for calibration in calibrations:
            self._calibrations.append(calibration)
            self._uncalibrated += 1
        for job in jobs:
            self.requeue(job)
        for shard in shards:
            self.requeue(shard)

    def take(self, resident: str | None, *, shards_only: bool = False) -> Task | None:
        """The next piece for a worker that holds the model `resident`; None if nothing can be done now."""
        if shards_only:
            return self._take_prefetch(resident)
        if self._calibrations:
            return self._calibrations.popleft()
        own_shards = self._judgeable(resident)
        if self._jobs and (not own_shards or len(self._jobs) <= TAIL_JOBS_PER_WORKER * (self.workers - 1)):
            return heapq.heappop(self._jobs)[-1]
        return self._pop(resident) if resident and own_shards else self._pop_fullest()

    def _take_prefetch(self, resident: str | None) -> Shard | None:
        """A shard to wait in line behind another: only where there are enough for workers that have nothing."""
        if self._uncalibrated or self._ready < self.workers:
            return None
        if resident and self._judgeable(resident):
            return self._pop(resident)
        return None if self._jobs else self._pop_fullest()

    def requeue(self, task: Task) -> None:
        """Work that has to be tried again, at the end of the line."""
        if isinstance(task, Shard):
            self._shards.setdefault(task.model.id, deque()).append(task)
            if task.model.id in self._existing:
                self._ready += 1
                self._push_fullest(task.model.id)
        elif isinstance(task, Model):
            self._push(task)
        else:
            self._calibrations.append(task)

    def model_made(self, model: Model) -> None:
        """The model has been made: its shards may go, and the jobs that continue it."""
        if model.id not in self._existing:
            self._existing.add(model.id)
            self._add_ready_shards(model.id)
            for follower in self._followers.pop(model.folder, ()):
                self._push(follower)

    def judge_calibrated(self) -> None:
        """One more judge may be asked."""
        self._uncalibrated -= 1

    def drop(self, model: Model) -> None:
        """Give up what is left of a model: its shards, and where it does not exist all that would continue it."""
        dropped = len(self._shards.pop(model.id, ()))
        if model.id in self._existing:
            self._ready -= dropped
        else:
            for follower in self._followers.pop(model.folder, ()):
                self.drop(follower)

    def __len__(self) -> int:
        waiting = sum(map(len, self._followers.values()))
        return len(self._calibrations) + len(self._jobs) + waiting + sum(map(len, self._shards.values()))

    def _push(self, job: Model) -> None:
        heapq.heappush(self._jobs, (-self._depth[job.folder], next(self._order), job))

    def _judgeable(self, model: str | None) -> bool:
        return not self._uncalibrated and model in self._existing and model in self._shards

    def _add_ready_shards(self, model: str) -> None:
        """Count the shards of a model that exists."""
        if model in self._shards:
            self._ready += len(self._shards[model])
            self._push_fullest(model)

    def _push_fullest(self, model: str) -> None:
        rank = self._rank.setdefault(model, len(self._rank))
        heapq.heappush(self._fullest, (-len(self._shards[model]), rank, model))

    def _pop(self, model: str) -> Shard:
        shard = self._shards[model].popleft()
        self._ready -= 1
        if self._shards[model]:
            self._push_fullest(model)
        else:
            del self._shards[model]
        return shard

    def _pop_fullest(self) -> Shard | None:
        if self._uncalibrated:
            return None
        while self._fullest:
            remaining, _, model = self._fullest[0]
            if len(self._shards.get(model, ())) == -remaining:
                return self._pop(model)
            heapq.heappop(self._fullest)
        return None


def _followers_in_all(jobs: Iterable[Model]) -> Counter[str]:
    """How many jobs wait, one after the other, for each of `jobs`, which come in the order of their chains."""
    count: Counter[str] = Counter()
    for job in reversed(list(jobs)):
        if job.predecessor:
            count[job.predecessor] = max(count[job.predecessor], count[job.folder] + 1)
    return count
