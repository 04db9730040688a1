"""The trials of a search as a source of tasks: what the dispatcher does next, given how its tasks ended.

A trial waits until its tasks have ended, then is judged, and goes on to its next rung or ends. A new one begins where a
worker would have nothing to do otherwise: so on one worker each trial knows what came of all before.
"""

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import replace
from typing import Protocol

import optuna

from efface.cluster.campaign.plan import Plan
from efface.cluster.search.result import TrialRow
from efface.cluster.search.spec import Search
from efface.cluster.search.study import Study
from efface.cluster.search.trial import Trial, failed, unjudged
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.retry_rules import Next, Outcome
from efface.cluster.tasks.task import Priority, Task
from efface.errors import JobFailure, StorageError, UserError

MAX_ROUNDS = 4
"""How often a task may be done whose files are found damaged afterwards."""


class Judged(Protocol):
    """What is judged in steps: the base, or a trial."""

    def remaining(self) -> RemainingTasks:
        """What has to be done before the next step."""

    def step(self) -> bool:
        """Called when nothing remains; whether another step follows."""


class TrialSource:
    """A `TaskSource`, which sees how tasks end as a `Callback` and as the `FailureStore`."""

    def __init__(
        self,
        search: Search,
        folder: RunFolder,
        study: Study,
        base: Plan,
        trials: int,
        on_result: Callable[[TrialRow], None] = lambda row: None,
    ) -> None:
        """Judge the `base`, and try configs until the study has `trials`; `on_result` is called with every result."""
        self._search, self._folder, self._study, self._trials = search, folder, study, trials
        self._on_result = on_result
        self._under_way: list[tuple[Judged, set[str]]] = [(_Base(base, folder), set())]
        """In the order they began, each with the ids of the tasks it waits for."""
        self._trainings: deque[Task] = deque()
        """Those that the dispatcher was not given yet."""
        self._open: dict[str, Task] = {}
        """Tasks that somebody waits for and that have not ended, `_trainings` included."""
        self._running: Counter[str] = Counter()
        """On how many workers a task is."""
        self._cannot: set[str] = set()
        """Folders of models of which a task ended in a way that trying again would not change."""
        self._rounds: Counter[str] = Counter()
        for trial in study.unfinished():
            self._start(trial)

    def more(self, idle: int) -> RemainingTasks:
        """All images that can be judged; and jobs one for each idle worker, so that none of a failed trial begins."""
        idle = -(-idle // self._search.resources.processes)  # of which a job takes so many
        tasks = RemainingTasks()
        for judged, needed in list(self._under_way):
            self._step(judged, needed, tasks)
        while len(tasks.tasks) + len(self._trainings) < idle and len(self._study) < self._trials:
            if self._start(self._study.ask()):
                self._step(*self._under_way[-1], tasks)
        while self._trainings and len(tasks.tasks) < idle:
            tasks.tasks.append(self._trainings.popleft())
        return tasks

    def started(self, worker: int, task: Task) -> None:
        self._running[task.id] += 1

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        self._running[task.id] -= 1
        if outcome.next is Next.REDO_INPUT and task.model:
            # The dispatcher gives up what is left of the model, which is made again first.
            self._open.pop(task.id, None)
            self._drop(task.model)
        elif outcome.next in (Next.GO_ON, Next.NOTHING):
            self._open.pop(task.id, None)
        elif outcome.next is Next.GIVE_UP and task.model:
            self._cannot.add(task.model.folder)

    def fail(self, model: Model, stage: str, reason: str, details: str) -> None:
        """Whoever waits for a model that was given up has failed, or may be tried again by the next start."""
        if model.job is None:
            raise JobFailure(f"the unedited base cannot be judged: {reason}")
        cannot = model.folder in self._cannot
        if cannot:
            self._folder.fail(model, stage, reason, details)
        of_model = {id for id, task in self._open.items() if _is_about(task, model)}
        for judged, needed in list(self._under_way):
            if needed & of_model and isinstance(judged, _Trial):
                if not cannot:
                    judged.errored(reason)
                    self._under_way.remove((judged, needed))
                needed.clear()
        self._drop(model)
        required = {id for _, needed in self._under_way for id in needed}
        for training in [training for training in self._trainings if training.id not in required]:
            self._trainings.remove(training)
            del self._open[training.id]

    def tick(self) -> None:
        pass

    def _start(self, trial: optuna.Trial) -> bool:
        """False where no job can be made of the config."""
        try:
            judged = _Trial(self._search, self._folder, self._study, trial, self._on_result)
        except StorageError:
            raise
        except UserError as error:
            self._study.ended(trial, failed(str(error)))
            self._on_result(self._study.row(trial))
            return False
        self._under_way.append((judged, set()))
        return True

    def _step(self, judged: Judged, needed: set[str], tasks: RemainingTasks) -> None:
        """Step by step as far as it goes before something has to be done, which is added to `tasks` or `_trainings`."""
        while not needed & self._open.keys():
            remaining = judged.remaining()
            tasks.products |= remaining.products
            needed.clear()
            if remaining.is_empty:
                if judged.step():
                    continue
                self._under_way.remove((judged, needed))
                return
            for task in remaining.tasks:
                if self._is_new(task):
                    (self._trainings if task.priority is Priority.LONG else tasks.tasks).append(task)
            needed |= {task.id for task in remaining.tasks}

    def _is_new(self, task: Task) -> bool:
        """Whether nobody waits for a task yet, as those of one config wait for the same; it is open from now on."""
        if task.id in self._open:
            return False
        self._open[task.id] = task
        self._rounds[task.id] += 1
        if self._rounds[task.id] > MAX_ROUNDS:
            raise JobFailure(
                f"{self._folder.root}: files there change after they are written, so the search cannot be finished"
            )
        if self._folder.record(task):  # its outputs were changed since
            self._folder.withdraw(self._folder.record_file(task))
        return True

    def _drop(self, model: Model) -> None:
        """Forget the tasks of a model that will not be done: all that do not run."""
        for id, task in list(self._open.items()):
            if _is_about(task, model) and not self._running[id]:
                del self._open[id]
                if task in self._trainings:
                    self._trainings.remove(task)


class _Base:
    """The judge's calibration, and the images of the unedited base."""

    def __init__(self, plan: Plan, folder: RunFolder) -> None:
        self._plan, self._folder = plan, folder

    def remaining(self) -> RemainingTasks:
        return unjudged(self._plan, self._folder)

    def step(self) -> bool:
        return False


class _Trial:
    """A trial of the study, on its rung."""

    def __init__(
        self,
        search: Search,
        folder: RunFolder,
        study: Study,
        trial: optuna.Trial,
        on_result: Callable[[TrialRow], None],
    ) -> None:
        self._study, self._trial, self._on_result = study, trial, on_result
        self._judge = Trial(search, folder, study.point(trial))
        self._rung = study.rung(trial)

    def remaining(self) -> RemainingTasks:
        return self._judge.remaining(self._rung)

    def step(self) -> bool:
        result = self._judge.result(self._rung)
        goes_on = False
        if result.state == "judged":
            goes_on = self._study.judged(self._trial, self._rung, result)
            self._rung += 1
        else:
            self._study.ended(self._trial, result)
        self._on_result(self._study.row(self._trial))
        return goes_on

    def errored(self, reason: str) -> None:
        before = self._study.row(self._trial).result
        self._study.errored(self._trial, replace(before, state="errored", reason=reason))
        self._on_result(self._study.row(self._trial))


def _is_about(task: Task, model: Model) -> bool:
    return task.model is not None and task.model.folder == model.folder
