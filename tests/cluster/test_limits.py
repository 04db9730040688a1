"""Time limits, stragglers, losses, a full disk and too little memory: what each of them costs, and what it must not."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from timed_worker import DONE, RecordingCallback, TimedExecutor, all_tasks
from tiny_campaign import ESD, ESD_CONFIG, UCE

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import Campaign, Limits
from efface.cluster.run import open_run, worker_context
from efface.cluster.scheduler.dispatch import POLL_INTERVAL, STRAGGLER_FACTOR, dispatch
from efface.cluster.storage.remaining import remaining_tasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.retry_rules import MAX_ATTEMPTS, MAX_WORKER_LOSSES, Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask
from efface.cluster.workers.worker import Worker
from efface.errors import Stopped, StorageError
from efface.models.delta import Delta

LONG = 1000.0
ERROR = Outcome.error("it broke")
WORKER_LOST = Outcome.worker_lost("its node went away", worker_gone=True)


@pytest.fixture
def made(plan: Callable[..., Plan]) -> Plan:
    return plan(seeds=[0, 1])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def execute(
    plan: Plan,
    folder: RunFolder,
    executor: TimedExecutor,
    limits: Limits | None = None,
    should_stop: Any = lambda: False,
) -> RecordingCallback:
    notes = RecordingCallback()
    dispatch(remaining_tasks(plan, folder), folder, executor, [notes], limits, should_stop)
    return notes


# time limits


@pytest.mark.parametrize("workers", [1, 3])
def test_a_job_past_its_limit_is_interrupted_and_tried_again(made: Plan, folder: RunFolder, workers: int) -> None:
    slow = made.trainings[1]
    executor = TimedExecutor(made, workers, lambda task, attempt: LONG if task == slow and attempt == 1 else 1.0)
    notes = execute(made, folder, executor, Limits(job_seconds=10))
    ((interrupted, worker),) = executor.replaced
    (began,) = (at for at, by, task in executor.begun if task == slow and by == worker and at < interrupted)
    assert 10 < interrupted - began <= 10 + 2 * POLL_INTERVAL
    assert notes.of(slow) == [("error", True), ("done", False)]
    assert sorted(executor.done) == all_tasks(made) and not folder.failures(made.models)


def test_a_job_that_runs_past_its_limit_every_time_is_given_up_with_the_reason(made: Plan, folder: RunFolder) -> None:
    slow = made.trainings[0]
    executor = TimedExecutor(made, 2, lambda task, attempt: LONG if task == slow else 1.0)
    execute(made, folder, executor, Limits(job_seconds=10))
    assert len(executor.replaced) == executor.tries[slow.id] == MAX_ATTEMPTS
    failure = folder.failure(slow.model)
    assert failure and failure.reason == "ran past its time limit of 10 s" and failure.stage == "training"
    own = {slow.id, *(shard.id for shard in made.shards[slow.id])}
    assert sorted(executor.done) == sorted(set(all_tasks(made)) - own)


def test_what_waits_behind_a_task_that_is_interrupted_is_lost_and_not_to_blame(made: Plan, folder: RunFolder) -> None:
    slow, behind = made.shards[made.models[0].id][:2]

    def takes(task: Task, attempt: int) -> float:
        return LONG if task == slow and attempt == 1 else 1.0

    def fate(task: Task, attempt: int) -> Outcome:
        return ERROR if task == behind and attempt == 2 else DONE

    executor = TimedExecutor(made, 1, takes, fate)
    notes = execute(made, folder, executor, Limits(shard_seconds=10))
    # Handed out behind the slow one; then one error of its own, after which it may be tried once more.
    assert notes.of(behind) == [("worker_lost", True), ("error", True), ("done", False)]
    assert notes.of(slow) == [("error", True), ("done", False)]
    assert sorted(executor.done) == all_tasks(made) and not folder.failures(made.models)


def test_a_limit_counts_from_when_a_task_comes_first_in_its_line(made: Plan, folder: RunFolder) -> None:
    executor = TimedExecutor(made, 1, lambda task, attempt: 8.0 if isinstance(task, Shard) else 1.0)
    execute(made, folder, executor, Limits(shard_seconds=10))
    assert executor.replaced == [] and set(executor.tries.values()) == {1}


def test_a_limit_of_shards_is_none_of_jobs_and_none_is_none(made: Plan, folder: RunFolder) -> None:
    executor = TimedExecutor(made, 2, lambda task, attempt: LONG if isinstance(task, TrainingTask) else 1.0)
    execute(made, folder, executor, Limits(shard_seconds=10))
    assert executor.replaced == [] and sorted(executor.done) == all_tasks(made)


def test_a_worker_that_cannot_be_replaced_is_waited_for(made: Plan, folder: RunFolder) -> None:
    executor = TimedExecutor(made, 1, lambda task, attempt: 30.0, replaceable=False)
    execute(made, folder, executor, Limits(job_seconds=10, shard_seconds=10))
    assert sorted(executor.done) == all_tasks(made) and set(executor.tries.values()) == {1}


# stragglers


def one_is_slow(slow: Shard, other: float = 1.0) -> Callable[[Task, int], float]:
    return lambda task, attempt: LONG if task == slow and attempt == 1 else other


def test_a_straggling_shard_is_started_again_once_and_the_first_to_end_counts(made: Plan, folder: RunFolder) -> None:
    slow = made.shards[made.jobs[-1].id][0]
    executor = TimedExecutor(made, 3, one_is_slow(slow), depth=1)
    notes = execute(made, folder, executor)
    assert executor.tries[slow.id] == 2 and notes.of(slow) == [("done", False)]
    assert sorted(executor.done) == all_tasks(made) and executor.now < LONG / 10
    (first, one), (again, other) = ((at, worker) for at, worker, task in executor.begun if task == slow)
    assert one != other and again - first > STRAGGLER_FACTOR
    assert {tries for name, tries in executor.tries.items() if name != slow.id} == {1}


def test_what_waits_behind_a_straggler_is_started_elsewhere_too(made: Plan, folder: RunFolder) -> None:
    slow, behind = made.shards[made.models[0].id][:2]
    executor = TimedExecutor(made, 1, one_is_slow(slow))
    execute(made, folder, executor)
    assert executor.tries[behind.id] == 1  # nobody is there to help
    executor = TimedExecutor(made, 2, one_is_slow(made.shards[made.jobs[0].id][0]))
    execute(made, folder, executor)
    assert executor.now < LONG / 10 and set(executor.done) == set(all_tasks(made))


def test_the_copy_that_ends_late_is_superseded(made: Plan, folder: RunFolder) -> None:
    slow, longest = made.shards[made.models[0].id][0], made.trainings[-1]

    def takes(task: Task, attempt: int) -> float:
        return 2 * LONG if task == longest else one_is_slow(slow)(task, attempt)

    executor = TimedExecutor(made, 4, takes)
    notes = execute(made, folder, executor)
    assert notes.of(slow) == [("done", False), ("superseded", False)]
    assert executor.done.count(slow.id) == 2 and not folder.failures(made.models)


@pytest.mark.parametrize("first", [ERROR, Outcome.failed("cannot be"), WORKER_LOST])
def test_a_copy_that_breaks_leaves_the_other_to_count(made: Plan, folder: RunFolder, first: Outcome) -> None:
    slow, longest = made.shards[made.models[0].id][0], made.trainings[-1]

    def takes(task: Task, attempt: int) -> float:
        return 2 * LONG if task == longest else one_is_slow(slow)(task, attempt)

    executor = TimedExecutor(
        made, 4, takes, lambda task, attempt: first if task == slow and attempt == 2 else DONE, depth=1
    )
    notes = execute(made, folder, executor)
    assert notes.of(slow)[0][0] == first.state and ("done", False) in notes.of(slow)
    assert slow.id in executor.done and not folder.failures(made.models)


def test_a_long_job_is_no_straggler_and_neither_is_a_shard_among_equals(made: Plan, folder: RunFolder) -> None:
    executor = TimedExecutor(made, 20, lambda task, attempt: LONG if isinstance(task, TrainingTask) else 50.0)
    execute(made, folder, executor)
    assert set(executor.tries.values()) == {1}


# losses


def test_a_task_lost_with_its_node_is_started_again_and_not_to_blame(made: Plan, folder: RunFolder) -> None:
    unlucky = made.trainings[0]
    executor = TimedExecutor(
        made, 2, fate=lambda task, attempt: WORKER_LOST if task == unlucky and attempt < MAX_WORKER_LOSSES else DONE
    )
    notes = execute(made, folder, executor)
    assert notes.of(unlucky) == [("worker_lost", True)] * (MAX_WORKER_LOSSES - 1) + [("done", False)]
    assert not folder.failures(made.models)


def test_what_is_lost_without_end_is_given_up(made: Plan, folder: RunFolder) -> None:
    cursed = made.trainings[0]
    executor = TimedExecutor(made, 2, fate=lambda task, attempt: WORKER_LOST if task == cursed else DONE)
    execute(made, folder, executor)
    assert executor.tries[cursed.id] == MAX_WORKER_LOSSES
    failure = folder.failure(cursed.model)
    assert failure and failure.reason == "its node went away"
    assert [model.id for model in made.models if folder.failure(model)] == [cursed.id]


def test_losses_do_not_use_up_the_attempts_after_errors(made: Plan, folder: RunFolder) -> None:
    fates = [WORKER_LOST, ERROR, WORKER_LOST, WORKER_LOST, DONE]
    unlucky = made.trainings[2]
    executor = TimedExecutor(made, 2, fate=lambda task, attempt: fates[attempt - 1] if task == unlucky else DONE)
    execute(made, folder, executor)
    assert executor.tries[unlucky.id] == len(fates) and not folder.failures(made.models)


# a full disk, and stopping


def test_results_that_cannot_be_written_stop_the_run_and_fail_nothing(made: Plan, folder: RunFolder) -> None:
    full = Outcome.storage("run/jobs: cannot be written (No space left on device)")
    executor = TimedExecutor(made, 2, fate=lambda task, attempt: full if len(executor.begun) >= 6 else DONE)
    with pytest.raises(StorageError, match="No space left on device"):
        execute(made, folder, executor)
    assert not folder.failures(made.models) and len(executor.done) < len(all_tasks(made))
    assert len(executor.begun) <= 8  # nothing new was started


def test_after_a_stop_request_nothing_begins_and_what_runs_comes_to_its_end(made: Plan, folder: RunFolder) -> None:
    executor = TimedExecutor(made, 2, lambda task, attempt: 3.0)
    with pytest.raises(Stopped, match="the same command continues from there"):
        execute(made, folder, executor, should_stop=lambda: executor.now >= 4)
    assert max(at for at, _, _ in executor.begun) < 4 + 2 * POLL_INTERVAL
    assert len(executor.done) == len(executor.begun) and not folder.failures(made.models)


def test_a_stopped_task_is_not_given_up(made: Plan, folder: RunFolder) -> None:
    stopped = Outcome.stopped()
    executor = TimedExecutor(made, 2, fate=lambda task, attempt: stopped if isinstance(task, TrainingTask) else DONE)
    with pytest.raises(Stopped):
        execute(made, folder, executor, should_stop=lambda: True)
    assert not folder.failures(made.models)


# too little memory

MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
BATCHED = {**ESD, "config": {**ESD_CONFIG, "batch_size": 2}}


@pytest.fixture
def worker(campaign: Callable[..., Campaign], tmp_path: Path) -> Iterator[Worker]:
    """A real worker on a campaign of UCE and of ESD in batches of two."""
    run = open_run(campaign(methods=[UCE, BATCHED]), tmp_path / "run")
    yield Worker(replace(worker_context(run)))


@pytest.fixture
def tasks(plan: Callable[..., Plan]) -> Plan:
    return plan(methods=[UCE, BATCHED])


@pytest.mark.parametrize("error", [MEMORY, MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_training_that_runs_out_of_memory_is_done_with_a_smaller_micro_batch(
    error: Exception, worker: Worker, tasks: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.train import run_job as jobs

    really = jobs.run_job

    def run_job(*given: Any, reduce_micro_batch: bool, **more: Any) -> Any:
        if not reduce_micro_batch:
            raise error
        return really(*given, reduce_micro_batch=reduce_micro_batch, **more)

    monkeypatch.setattr(jobs, "run_job", run_job)
    training = tasks.trainings[1]
    assert worker.run(training) == Outcome.done(smaller_batch=True)
    delta = Delta.load(worker.folder.delta(training.model))
    assert delta.provenance["reduced_micro_batch"] == {"batch_size": 1, "gradient_accumulation_steps": 2}
    assert "out of memory: trying again with a smaller batch" in worker.folder.log(training.model).read_text()


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The memory never suffices for a training; whether each attempt was with a smaller batch."""
    from efface.train import run_job as jobs

    smaller_batch = []

    def run_job(*given: Any, reduce_micro_batch: bool, **more: Any) -> Any:
        smaller_batch.append(reduce_micro_batch)
        raise MEMORY

    monkeypatch.setattr(jobs, "run_job", run_job)
    return smaller_batch


def test_in_a_process_group_it_only_says_so_and_reduces_them_when_all_do(
    worker: Worker, tasks: Plan, tries: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_in_process_group", True)
    outcomes = [worker.run(tasks.trainings[1], smaller_batch) for smaller_batch in (False, True)]
    assert tries == [False, True]
    assert [(outcome.state, outcome.out_of_memory) for outcome in outcomes] == [("error", True)] * 2


def test_one_that_runs_out_of_memory_twice_has_broken(worker: Worker, tasks: Plan, tries: list[bool]) -> None:
    outcome = worker.run(tasks.trainings[1])
    assert tries == [False, True] and outcome.state == "error" and "out of memory" in outcome.reason
    assert worker.folder.record(tasks.trainings[1]) is None


def test_a_method_without_batches_cannot_be_made_smaller(
    worker: Worker, tasks: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.train.method import get_method

    def solve(*given: Any) -> Any:
        raise MEMORY

    monkeypatch.setattr(get_method("uce"), "solve", solve)
    outcome = worker.run(tasks.trainings[0])
    assert outcome.state == "failed" and "needs more memory than there is" in outcome.reason


def test_a_shard_that_runs_out_of_memory_is_sampled_in_batches_of_half_the_size(
    worker: Worker, tasks: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.eval.judging import evaluate as evaluating

    sizes = []
    really = evaluating.evaluate

    def evaluate(base: Any, recipe: Any, *given: Any, **more: Any) -> Any:
        sizes.append(recipe.batch_size)
        if recipe.batch_size > 2:
            raise MEMORY
        return really(base, recipe, *given, **more)

    monkeypatch.setattr(evaluating, "evaluate", evaluate)
    for calibration in tasks.calibrations:
        assert worker.run(calibration) == DONE
    shard = tasks.shards[tasks.models[0].id][0]
    assert worker.run(shard) == Outcome.done(smaller_batch=True) and sizes == [4, 2]
    assert worker.folder.record(shard)


@pytest.mark.filterwarnings("ignore:attention by cudnn")
def test_the_log_of_a_training_says_where_another_attention_was_used_than_requested(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    for requested, output in (("cudnn", True), ("sdpa", False), ("auto", False)):
        run = open_run(campaign(methods=[ESD], training={"attention": requested}), tmp_path / requested)
        training = run.plan.trainings[0]
        assert Worker(worker_context(run)).run(training).is_done
        log = run.folder.log(training.model).read_text()
        assert (f"attention by {requested} is not available on this worker, sdpa was used" in log) == output
