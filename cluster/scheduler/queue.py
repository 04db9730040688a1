"""The tasks that are left, and which of them a free worker should take next.

Short tasks (`Priority.FILL`) go first to the worker that holds their model, so that a delta is loaded once and a model
is judged as soon as it exists; and long ones (`Priority.LONG`) come before short ones whose model no worker holds.
Towards the end the rule turns round: the last long tasks come before all short ones, which then fill the time of the
workers that have no long task any more, each taking from the model that has most of them left. Of the long tasks, those
come first that the longest chain of others waits for.

A task waits until all products that it requires are there. Tasks with the same requirements wait as one group, so that
100,000 of them cost no more than their models.
"""

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field

from efface.cluster.tasks.model import Model
from efface.cluster.tasks.task import Priority, Task

TAIL_TASKS_PER_WORKER = 4
"""Long tasks for each worker that are the last ones: started before the short tasks of the model it holds."""


@dataclass
class _Group:
    """Tasks that wait for the same products."""

    missing: set[str]
    tasks: list[Task] = field(default_factory=list)

    def empty(self) -> list[Task]:
        """The tasks, which do not wait any more."""
        tasks, self.tasks = self.tasks, []
        return tasks


class Queue:
    """Tasks by priority, and of those that fill the time by model."""

    def __init__(self, tasks: Iterable[Task], products: Iterable[str], workers: int = 1) -> None:
        """`tasks` in an order in which those that provide come before those that require; `products` are there from
        the start; `workers`: how many will take tasks."""
        self.workers = workers
        remaining = list(tasks)
        self._products = set(products)
        self._depth = _chain_lengths(remaining)
        self._order = itertools.count()
        self._first: deque[Task] = deque()
        self._long: list[tuple[int, int, Task]] = []
        """A heap, with the number of tasks that wait for each in front."""
        self._long_of: Counter[str] = Counter()
        """How many of them there are, by the folder of their model."""
        self._fill: dict[str, deque[Task]] = {}
        """By the id of their model ("" for none). A model without any is not in it."""
        self._ready = 0
        """How many of them there are."""
        self._rank: dict[str, int] = {}
        """Models in the order of their first task that fills the time."""
        self._fullest: list[tuple[int, int, str]] = []
        """A heap of (-tasks, rank, model); an entry with an old number of tasks is stale."""
        self._waiting: dict[tuple[str, ...], _Group] = {}
        """By what they require."""
        self._groups: dict[str, list[_Group]] = {}
        """By a product that they wait for."""
        self._groups_of: dict[str, dict[tuple[str, ...], _Group]] = {}
        """By the folder of a model that they have tasks of."""
        for task in remaining:
            if task.priority is Priority.FILL:
                self._rank.setdefault(_model_id(task), len(self._rank))
            self._add(task)

    def add(self, tasks: Iterable[Task], products: Iterable[str]) -> None:
        """More tasks, those that provide before those that require; `products` are there now."""
        for product in products:
            self._provide(product)
        added = list(tasks)
        self._depth.update(_chain_lengths(added))
        for task in added:
            self._add(task)

    def take(self, resident: str | None, *, prefetch: bool = False) -> Task | None:
        """The next task for a worker that holds the model `resident`; None if nothing can be done now.

        prefetch: to wait in line behind another.
        """
        if prefetch:
            return self._take_prefetch(resident)
        if self._first:
            return self._first.popleft()
        own = resident is not None and resident in self._fill
        if self._long and (not own or len(self._long) <= TAIL_TASKS_PER_WORKER * (self.workers - 1)):
            return self._pop_long()
        return self._pop(resident) if resident is not None and own else self._pop_fullest()

    def _take_prefetch(self, resident: str | None) -> Task | None:
        """Only what fills the time, and only where there is enough of it for workers that have nothing."""
        if self._ready < self.workers:
            return None
        if resident is not None and resident in self._fill:
            return self._pop(resident)
        return None if self._long else self._pop_fullest()

    @property
    def ready_long(self) -> int:
        """How many long tasks can start."""
        return len(self._long)

    def take_packed(self, key: str, most: int, alone: Collection[str] = ()) -> list[Task]:
        """Long tasks of one `pack_key` that can start, in the order they would be taken; none with an id in `alone`."""
        if most < 1:
            return []
        fitting = [entry for entry in self._long if entry[-1].pack_key == key and entry[-1].id not in alone]
        taken = sorted(fitting, key=lambda entry: entry[:2])[:most]
        chosen = {number for _, number, _ in taken}
        self._long = [entry for entry in self._long if entry[1] not in chosen]
        heapq.heapify(self._long)
        for _, _, task in taken:
            if task.model:
                self._long_of[task.model.folder] -= 1
        return [task for _, _, task in taken]

    def requeue(self, task: Task) -> None:
        """A task that has to be tried again, at the end of its line."""
        self._add(task)

    def done(self, task: Task) -> None:
        """What it provides is there: whatever waited for that alone can start."""
        if task.provides is not None:
            self._provide(task.provides)

    def _provide(self, product: str) -> None:
        if product in self._products:
            return
        self._products.add(product)
        for group in self._groups.pop(product, ()):
            group.missing.discard(product)
            if not group.missing:
                self._release(group.empty())

    def drop(self, task: Task) -> None:
        """Give up what is left of the task's model, and of all models that require what is not provided any more."""
        lost = [task]
        dropped: set[str] = set()
        while lost:
            task = lost.pop()
            lost += self._remove_waiting_for(task.provides)
            if task.model and task.model.folder not in dropped:
                dropped.add(task.model.folder)
                lost += self._remove_tasks_of(task.model)

    def _remove_waiting_for(self, product: str | None) -> list[Task]:
        """The tasks that wait for what will not be there."""
        groups = self._groups.pop(product, ()) if product and product not in self._products else ()
        return [task for group in groups for task in group.empty()]

    def _remove_tasks_of(self, model: Model) -> list[Task]:
        """All that is not started of a model."""
        removed = list(self._fill.pop(model.id, ()))
        self._ready -= len(removed)
        if self._long_of.pop(model.folder, 0):
            removed += [task for _, _, task in self._long if _is_about(task, model)]
            self._long = [entry for entry in self._long if not _is_about(entry[-1], model)]
            heapq.heapify(self._long)
        for group in self._groups_of.pop(model.folder, {}).values():
            removed += [task for task in group.tasks if _is_about(task, model)]
            group.tasks = [task for task in group.tasks if not _is_about(task, model)]
        return removed

    def __len__(self) -> int:
        waiting = sum(len(group.tasks) for group in self._waiting.values())
        return len(self._first) + len(self._long) + self._ready + waiting

    def _add(self, task: Task) -> None:
        group = self._waiting.get(task.requires)
        if group is None:
            group = self._waiting[task.requires] = _Group(set(task.requires) - self._products)
            for product in group.missing:
                self._groups.setdefault(product, []).append(group)
        if group.missing:
            group.tasks.append(task)
            if task.model:
                self._groups_of.setdefault(task.model.folder, {})[task.requires] = group
        else:
            self._release([task])

    def _release(self, tasks: Sequence[Task]) -> None:
        """Tasks that can start."""
        filled: dict[str, None] = {}
        for task in tasks:
            if task.priority is Priority.FIRST:
                self._first.append(task)
            elif task.priority is Priority.LONG:
                heapq.heappush(self._long, (-self._depth[task.provides or ""], next(self._order), task))
                if task.model:
                    self._long_of[task.model.folder] += 1
            else:
                name = _model_id(task)
                self._fill.setdefault(name, deque()).append(task)
                self._ready += 1
                filled[name] = None
        for name in filled:
            self._push_fullest(name)

    def _push_fullest(self, model: str) -> None:
        rank = self._rank.setdefault(model, len(self._rank))
        heapq.heappush(self._fullest, (-len(self._fill[model]), rank, model))

    def _pop_long(self) -> Task:
        task = heapq.heappop(self._long)[-1]
        if task.model:
            self._long_of[task.model.folder] -= 1
        return task

    def _pop(self, model: str) -> Task:
        task = self._fill[model].popleft()
        self._ready -= 1
        if self._fill[model]:
            self._push_fullest(model)
        else:
            del self._fill[model]
        return task

    def _pop_fullest(self) -> Task | None:
        while self._fullest:
            count, _, model = self._fullest[0]
            if len(self._fill.get(model, ())) == -count:
                return self._pop(model)
            heapq.heappop(self._fullest)
        return None


def _is_about(task: Task, model: Model) -> bool:
    return task.model is not None and task.model.folder == model.folder


def _model_id(task: Task) -> str:
    return task.model.id if task.model else ""


def _chain_lengths(tasks: Sequence[Task]) -> Counter[str]:
    """By product, how many long tasks wait for it, one after the other."""
    lengths: Counter[str] = Counter()
    for task in reversed(tasks):
        if task.priority is Priority.LONG:
            for product in task.requires:
                lengths[product] = max(lengths[product], 1 + (lengths[task.provides] if task.provides else 0))
    return lengths
