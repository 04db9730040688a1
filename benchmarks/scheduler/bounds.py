"""What no scheduler can beat, and what a textbook one would do: pure arithmetic on the durations of a plan's tasks.

A calibration of the judges comes before every image; a job is trained on one GPU from end to end, and only then can its
model be judged, in shards, on any of them. All durations are seconds on a GPU of speed 1.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heapreplace
from itertools import accumulate
from math import floor, inf
from typing import Literal, NamedTuple

Reason = Literal["work", "waiting", "chain", "rounds"]


class Chain(NamedTuple):
    """A model: its training (0 for the base) and its shards. `load` is what it takes to load the model."""

    training: float
    shards: tuple[float, ...]
    load: float = 0.0

    @property
    def judging(self) -> float:
        return sum(self.shards) + (self.load if self.shards else 0.0)

    @property
    def last_shard(self) -> float:
        """The least time from the model's existence to the end of its judging."""
        return max(self.shards) + self.load if self.shards else 0.0


@dataclass(frozen=True)
class Bound:
    """No schedule ends before `seconds`, because of

    `work`: all GPUs together are only so fast;
    `waiting`: nothing of a model can be judged before it has been trained, so GPUs must wait for work;
    `chain`: one model's training and its longest shard come one after the other;
    `rounds`: there are more trainings than GPUs, and a GPU does whole ones.
    """

    seconds: float
    reason: Reason


def lower_bound(calibrations: Sequence[float], chains: Sequence[Chain], speeds: Sequence[float]) -> Bound:
    """The strongest of four lower bounds on the makespan."""
    gate = max(calibrations, default=0.0)
    fastest, together = max(speeds), sum(speeds)
    heads = sorted([*calibrations, *(chain.training for chain in chains)])
    unlocks = sorted((max(chain.training, gate), chain.judging) for chain in chains)
    heads_from = _suffix_sums(heads)
    judging_from = _suffix_sums([judging for _, judging in unlocks])

    def waiting(moment: float) -> float:
        """By `moment` (in seconds of work on the fastest GPU) at least what is counted here is still to be done."""
        first = bisect_left(heads, moment)
        unfinished = heads_from[first] - (len(heads) - first) * moment
        return moment / fastest + (unfinished + judging_from[bisect_left(unlocks, (moment, -inf))]) / together

    made = [chain for chain in chains if chain.training]
    ends = [max(chain.training, gate if chain.shards else 0.0) + chain.last_shard for chain in chains]
    tail = min((chain.last_shard for chain in made), default=0.0)
    bounds: list[tuple[float, Reason]] = [
        (waiting(0.0), "work"),
        (max(map(waiting, {*heads, *(unlock for unlock, _ in unlocks)}), default=0.0), "waiting"),
        (max([gate, *ends]) / fastest, "chain"),
        (_rounds([chain.training for chain in made], speeds) + tail / fastest, "rounds"),
    ]
    seconds, reason = max(bounds, key=lambda bound: bound[0])
    return Bound(seconds, reason)


def longest_first(tasks: Sequence[float], speeds: Sequence[float]) -> float:
    """The makespan of LPT: longest task first, each where it ends first, as if no task waited for another."""
    groups = [(speed, [0.0] * count) for speed, count in Counter(speeds).items()]
    for _, ends in groups:
        heapify(ends)
    for task in sorted(tasks, reverse=True):
        speed, ends = min(groups, key=lambda group: group[1][0] + task / group[0])
        heapreplace(ends, ends[0] + task / speed)
    return max(max(ends) for _, ends in groups)


def _rounds(trainings: Sequence[float], speeds: Sequence[float]) -> float:
    """The least time in which the GPUs could train the k longest as if all were as short as the k-th; worst k."""
    worst, fastest = 0.0, max(speeds)
    counts = Counter(speeds)
    for k, shortest in enumerate(sorted(trainings, reverse=True), 1):
        if _trained(worst, shortest, counts) >= k:
            continue
        low, high = worst, shortest * k / fastest
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if _trained(middle, shortest, counts) >= k else (middle, high)
        worst = low
    return worst


def _trained(seconds: float, training: float, counts: Counter[float]) -> int:
    # The small addition errs on the side of the schedule, so that the bound stays one.
    return sum(count * floor(seconds * speed / training + 1e-9) for speed, count in counts.items())


def _suffix_sums(values: Sequence[float]) -> list[float]:
    """Element i is the sum of values[i:]; one more, 0, at the end."""
    return [*reversed(list(accumulate(reversed(values), initial=0.0)))]
