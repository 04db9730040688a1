"""The work that is left, and which piece a free worker should take next.

Shards go first to the worker that holds their model, so that a delta is loaded once; a model is judged as soon as
it exists; and jobs, the long pieces, come before shards that no worker holds.
"""

from collections import deque
from collections.abc import Iterable

from efface.cluster.plan import Calibration, Model, Shard
from efface.cluster.worker import Work


class Queue:
    """Work by model. A model's shards wait until the model exists, and all shards until the judges are calibrated."""

    def __init__(
        self,
        calibrations: Iterable[Calibration],
        jobs: Iterable[Model],
        shards: Iterable[Shard],
        existing: Iterable[str],
    ) -> None:
        self._calibrations = deque(calibrations)
        self._uncalibrated = len(self._calibrations)
        self._jobs = deque(jobs)
        self._existing = set(existing)
        self._shards: dict[str, deque[Shard]] = {}
        for shard in shards:
            self._shards.setdefault(shard.model.id, deque()).append(shard)

    def take(self, held: str | None, *, shards_only: bool = False) -> Work | None:
        """The next piece for a worker that holds the model `held`; None if nothing can be done now."""
        if self._calibrations and not shards_only:
            return self._calibrations.popleft()
        if held in self._existing and self._shards.get(held or "") and not self._uncalibrated:
            return self._pop(held or "")
        if self._jobs and not shards_only:
            return self._jobs.popleft()
        if self._uncalibrated:
            return None
        waiting = [model for model, shards in self._shards.items() if shards and model in self._existing]
        return self._pop(max(waiting, key=lambda model: len(self._shards[model]))) if waiting else None

    def put_back(self, work: Work) -> None:
        """Work that has to be tried again, at the end of the line."""
        if isinstance(work, Shard):
            self._shards.setdefault(work.model.id, deque()).append(work)
        elif isinstance(work, Model):
            self._jobs.append(work)
        else:
            self._calibrations.append(work)

    def exists(self, model: Model) -> None:
        """The model has been made: its shards may go."""
        self._existing.add(model.id)

    def calibrated(self) -> None:
        """One more judge may be asked."""
        self._uncalibrated -= 1

    def drop(self, model: Model) -> int:
        """Give up a model: its shards, and how many they were."""
        return len(self._shards.pop(model.id, ()))

    def __len__(self) -> int:
        return len(self._calibrations) + len(self._jobs) + sum(map(len, self._shards.values()))

    def _pop(self, model: str) -> Shard:
        shard = self._shards[model].popleft()
        if not self._shards[model]:
            del self._shards[model]
        return shard
