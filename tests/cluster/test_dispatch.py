"""The driver's loop, with fake workers: everything once, in a right order, and errors contained."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from efface.cluster.campaign.plan import Plan
from efface.cluster.scheduler.dispatch import dispatch
from efface.cluster.storage.records import Failure
from efface.cluster.storage.remaining import RemainingTasks, remaining_tasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.calibration import CalibrationTask
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.retry_rules import MAX_ATTEMPTS, Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask
from efface.errors import JobFailure, UserError

DONE, FAILED, ERROR = Outcome.done(), Outcome.failed("the loss is nan", "log"), Outcome.error("the worker died")

Fate = Callable[[Task, int], Outcome]


def always_done(task: Task, attempt: int) -> Outcome:
    return DONE


class FakeExecutor:
    """Each takes up to two tasks and ends them in turn; whose turn it is to end something is random, by `seed`.

    What a driver must never do is checked as it happens.
    """

    depth = 2
    process_groups = None

    def __init__(self, plan: Plan, workers: int, seed: int, fate: Fate = always_done) -> None:
        self.workers = workers
        self.fate = fate
        self.random = random.Random(seed)
        self.in_flight: list[list[Task]] = [[] for _ in range(workers)]
        self.log: list[tuple[int, Task]] = []
        self.new = list(range(workers))
        self.ended: list[Task] = []
        self.attempts: Counter[str] = Counter()
        self.products = set(plan.products)

    def new_workers(self) -> list[int]:
        new_workers, self.new = self.new, []
        return new_workers

    def speed(self, worker: int) -> float:
        return 1.0

    def replace(self, worker: int) -> bool:
        return False

    def clock(self) -> float:
        return 0.0

    def submit(self, worker: int, task: Task) -> None:
        self.log.append((worker, task))
        self.attempts[task.id] += 1
        self.in_flight[worker].append(task)
        assert len(self.in_flight[worker]) <= self.depth
        assert len(self.in_flight[worker]) == 1 or all(isinstance(w, Shard) for w in self.in_flight[worker])
        assert self.products.issuperset(task.requires)

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Task, Outcome]]:
        worker = self.random.choice([i for i, doing in enumerate(self.in_flight) if doing])
        task = self.in_flight[worker].pop(0)
        outcome = self.fate(task, self.attempts[task.id])
        if outcome.is_done:
            self.ended.append(task)
            if task.provides:
                self.products.add(task.provides)
        yield worker, task, outcome

    def close(self) -> None:
        pass


class RecordingCallback:
    """What a callback was called with."""

    def __init__(self) -> None:
        self.started_: list[str] = []
        self.ended_: list[tuple[str, str, bool]] = []

    def started(self, worker: int, task: Task) -> None:
        self.started_.append(task.id)

    def ended(self, worker: int, task: Task, outcome: Outcome, will_retry: bool) -> None:
        self.ended_.append((task.id, outcome.state, will_retry))

    def tick(self) -> None:
        pass


@pytest.fixture
def made(plan: Callable[..., Plan]) -> Plan:
    return plan(seeds=[0, 1])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def all_tasks(plan: Plan) -> list[str]:
    return sorted(task.id for task in plan.tasks)


def execute(plan: Plan, folder: RunFolder, fate: Fate = always_done, workers: int = 2, seed: int = 0) -> FakeExecutor:
    executor = FakeExecutor(plan, workers, seed, fate)
    dispatch(remaining_tasks(plan, folder), folder, executor, [RecordingCallback()])
    return executor


def shards_of(plan: Plan, model: Model) -> set[str]:
    return {shard.id for shard in plan.shards[model.id]}


@pytest.mark.parametrize("workers", [1, 2, 3, 20])
@pytest.mark.parametrize("seed", range(5))
def test_all_work_is_done_exactly_once(made: Plan, folder: RunFolder, workers: int, seed: int) -> None:
    executor = execute(made, folder, workers=workers, seed=seed)
    assert sorted(task.id for task in executor.ended) == all_tasks(made)
    assert set(executor.attempts.values()) == {1}
    assert not any(map(folder.failure, made.models))


@pytest.mark.parametrize("seed", range(10))
def test_an_error_is_tried_again_once(made: Plan, folder: RunFolder, seed: int) -> None:
    executor = execute(made, folder, lambda task, attempt: ERROR if attempt == 1 else DONE, seed=seed)
    assert sorted(task.id for task in executor.ended) == all_tasks(made)
    assert set(executor.attempts.values()) == {2}
    assert not any(map(folder.failure, made.models))


@pytest.mark.parametrize("seed", range(10))
def test_what_breaks_every_time_is_given_up_and_the_others_go_on(made: Plan, folder: RunFolder, seed: int) -> None:
    bad = made.jobs[1]
    executor = execute(made, folder, lambda task, attempt: ERROR if task.id == bad.id else DONE, seed=seed)
    assert executor.attempts[bad.id] == MAX_ATTEMPTS == 2
    assert folder.failure(bad) == Failure("training", "the worker died", "")
    lost = {bad.id, *shards_of(made, bad)}
    assert sorted(task.id for task in executor.ended) == sorted(set(all_tasks(made)) - lost)
    assert not shards_of(made, bad) & executor.attempts.keys()
    assert [model.id for model in made.models if folder.failure(model)] == [bad.id]


def test_a_job_that_cannot_be_done_is_not_tried_again(made: Plan, folder: RunFolder) -> None:
    bad = made.jobs[0]
    executor = execute(made, folder, lambda task, attempt: FAILED if task.id == bad.id else DONE)
    assert executor.attempts[bad.id] == 1
    assert folder.failure(bad) == Failure("training", "the loss is nan", "log")


@pytest.mark.parametrize("seed", range(10))
def test_a_shard_given_up_takes_the_rest_of_its_model_along(made: Plan, folder: RunFolder, seed: int) -> None:
    bad = made.shards[made.jobs[2].id][0]
    executor = execute(made, folder, lambda task, attempt: ERROR if task == bad else DONE, seed=seed)
    failure = folder.failure(bad.model)
    assert failure and failure.stage == "judging, shard 0"
    others = set(all_tasks(made)) - shards_of(made, bad.model)
    assert others <= {task.id for task in executor.ended}


def test_what_failed_before_is_left_alone(made: Plan, folder: RunFolder) -> None:
    folder.fail(made.jobs[0], "training", "earlier")
    executor = execute(made, folder)
    lost = {made.jobs[0].id, *shards_of(made, made.jobs[0])}
    assert sorted(executor.attempts) == sorted(set(all_tasks(made)) - lost)


def test_two_workers_train_two_jobs_at_once(made: Plan, folder: RunFolder) -> None:
    executor = execute(made, folder)
    jobs = [worker for worker, task in executor.log if isinstance(task, TrainingTask)]
    assert set(jobs) == {0, 1}


def test_a_model_is_judged_by_the_worker_that_made_it(made: Plan, folder: RunFolder) -> None:
    alone = execute(made, folder, workers=1)
    held = [task.resident for _, task in alone.log[1:]]
    switches = sum(before != after for before, after in itertools.pairwise(held))
    assert switches == len(made.models) - 1


def test_a_callback_sees_everything_and_whether_it_is_tried_again(made: Plan, folder: RunFolder) -> None:
    notes, bad = RecordingCallback(), made.trainings[0]
    executor = FakeExecutor(made, 2, 0, lambda task, attempt: ERROR if task == bad else DONE)
    dispatch(remaining_tasks(made, folder), folder, executor, [notes])
    assert notes.started_ == [task.id for _, task in executor.log]
    assert sorted(name for name, _, _ in notes.ended_) == sorted(notes.started_)
    assert [event for event in notes.ended_ if event[1] != "done"] == [
        (bad.id, "error", True),
        (bad.id, "error", False),
    ]


def test_a_judge_that_cannot_be_calibrated_ends_the_run_in_a_sentence(made: Plan, folder: RunFolder) -> None:
    for outcome, error in ((FAILED, UserError), (ERROR, JobFailure)):
        with pytest.raises(error, match=r"judge '.*' cannot be calibrated"):
            execute(made, folder, lambda task, attempt, o=outcome: o if isinstance(task, CalibrationTask) else DONE)  # type: ignore[misc]


def test_with_nothing_left_no_worker_is_given_a_task(made: Plan, folder: RunFolder) -> None:
    executor = FakeExecutor(made, 2, 0)
    dispatch(RemainingTasks(), folder, executor, [RecordingCallback()])
    assert executor.log == []


@pytest.mark.parametrize("seed", range(3))
def test_what_takes_long_begins_on_the_fastest_workers(made: Plan, folder: RunFolder, seed: int) -> None:
    """Workers 1 and 3 are twice as fast as the others, but for what a measurement is off by."""
    speeds = {1: 1.0, 3: 0.98}

    class TwoSpeeds(FakeExecutor):
        def speed(self, worker: int) -> float:
            return speeds.get(worker, 0.5)

    executor = TwoSpeeds(made, 5, seed)
    dispatch(remaining_tasks(made, folder), folder, executor, [RecordingCallback()])
    first = [worker for worker, _ in executor.log[:5]]
    assert set(first[:2]) == {1, 3} and sorted(first) == list(range(5))
    assert sorted(task.id for task in executor.ended) == all_tasks(made)
