"""Time limits, stragglers, losses, a full disk and too little memory: what each of them costs, and what it must not."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from clocked import DONE, Clocked, Notes, everything
from tiny_campaign import ESD, ESD_CONFIG, UCE

from efface.cluster.campaign import Campaign, Limits
from efface.cluster.dispatch import ATTEMPTS, LOOK, LOSSES, STRAGGLER, dispatch, remaining
from efface.cluster.plan import Model, Plan, Shard
from efface.cluster.run import open_run, setting_of
from efface.cluster.run_folder import RunFolder, Work
from efface.cluster.worker import Outcome, Worker
from efface.errors import Stopped, StorageError
from efface.models.delta import Delta

LONG = 1000.0
FAULT = Outcome("fault", "it broke")
LOST = Outcome("lost", "its node went away", worker_gone=True)


@pytest.fixture
def made(plan: Callable[..., Plan]) -> Plan:
    return plan(seeds=[0, 1])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def carry_out(
    plan: Plan, folder: RunFolder, executor: Clocked, limits: Limits | None = None, stopping: Any = lambda: False
) -> Notes:
    notes = Notes()
    dispatch(remaining(plan, folder), folder, executor, [notes], limits, stopping)
    return notes


# time limits


@pytest.mark.parametrize("workers", [1, 3])
def test_a_job_past_its_limit_is_broken_off_and_tried_again(made: Plan, folder: RunFolder, workers: int) -> None:
    slow = made.jobs[1]
    executor = Clocked(made, workers, lambda work, attempt: LONG if work == slow and attempt == 1 else 1.0)
    notes = carry_out(made, folder, executor, Limits(job_seconds=10))
    ((broken_off, worker),) = executor.replaced
    (began,) = (at for at, by, work in executor.begun if work == slow and by == worker and at < broken_off)
    assert 10 < broken_off - began <= 10 + 2 * LOOK
    assert notes.of(slow) == [("fault", True), ("done", False)]
    assert sorted(executor.done) == everything(made) and not folder.failures(made.models)


def test_a_job_that_runs_past_its_limit_every_time_is_given_up_with_the_reason(made: Plan, folder: RunFolder) -> None:
    slow = made.jobs[0]
    executor = Clocked(made, 2, lambda work, attempt: LONG if work == slow else 1.0)
    carry_out(made, folder, executor, Limits(job_seconds=10))
    assert len(executor.replaced) == executor.tries[slow.id] == ATTEMPTS
    failure = folder.failure(slow)
    assert failure and failure["reason"] == "ran past its time limit of 10 s" and failure["stage"] == "training"
    own = {slow.id, *(shard.id for shard in made.shards[slow.id])}
    assert sorted(executor.done) == sorted(set(everything(made)) - own)


def test_what_waits_behind_a_piece_that_is_broken_off_is_lost_and_not_to_blame(made: Plan, folder: RunFolder) -> None:
    slow, behind = made.shards[made.models[0].id][:2]

    def takes(work: Work, attempt: int) -> float:
        return LONG if work == slow and attempt == 1 else 1.0

    def fate(work: Work, attempt: int) -> Outcome:
        return FAULT if work == behind and attempt == 2 else DONE

    executor = Clocked(made, 1, takes, fate)
    notes = carry_out(made, folder, executor, Limits(shard_seconds=10))
    # Handed out behind the slow one; then one fault of its own, after which it may be tried once more.
    assert notes.of(behind) == [("lost", True), ("fault", True), ("done", False)]
    assert notes.of(slow) == [("fault", True), ("done", False)]
    assert sorted(executor.done) == everything(made) and not folder.failures(made.models)


def test_a_limit_counts_from_when_a_piece_comes_first_in_its_line(made: Plan, folder: RunFolder) -> None:
    executor = Clocked(made, 1, lambda work, attempt: 8.0 if isinstance(work, Shard) else 1.0)
    carry_out(made, folder, executor, Limits(shard_seconds=10))
    assert executor.replaced == [] and set(executor.tries.values()) == {1}


def test_a_limit_of_shards_is_none_of_jobs_and_none_is_none(made: Plan, folder: RunFolder) -> None:
    executor = Clocked(made, 2, lambda work, attempt: LONG if isinstance(work, Model) else 1.0)
    carry_out(made, folder, executor, Limits(shard_seconds=10))
    assert executor.replaced == [] and sorted(executor.done) == everything(made)


def test_a_worker_that_cannot_be_replaced_is_waited_for(made: Plan, folder: RunFolder) -> None:
    executor = Clocked(made, 1, lambda work, attempt: 30.0, replaceable=False)
    carry_out(made, folder, executor, Limits(job_seconds=10, shard_seconds=10))
    assert sorted(executor.done) == everything(made) and set(executor.tries.values()) == {1}


# stragglers


def one_is_slow(slow: Shard, other: float = 1.0) -> Callable[[Work, int], float]:
    return lambda work, attempt: LONG if work == slow and attempt == 1 else other


def test_a_straggling_shard_is_begun_again_once_and_the_first_to_end_counts(made: Plan, folder: RunFolder) -> None:
    slow = made.shards[made.jobs[-1].id][0]
    executor = Clocked(made, 3, one_is_slow(slow), depth=1)
    notes = carry_out(made, folder, executor)
    assert executor.tries[slow.id] == 2 and notes.of(slow) == [("done", False)]
    assert sorted(executor.done) == everything(made) and executor.now < LONG / 10
    (first, one), (again, other) = ((at, worker) for at, worker, work in executor.begun if work == slow)
    assert one != other and again - first > STRAGGLER
    assert {tries for name, tries in executor.tries.items() if name != slow.id} == {1}


def test_what_waits_behind_a_straggler_is_begun_elsewhere_too(made: Plan, folder: RunFolder) -> None:
    slow, behind = made.shards[made.models[0].id][:2]
    executor = Clocked(made, 1, one_is_slow(slow))
    carry_out(made, folder, executor)
    assert executor.tries[behind.id] == 1  # nobody is there to help
    executor = Clocked(made, 2, one_is_slow(made.shards[made.jobs[0].id][0]))
    carry_out(made, folder, executor)
    assert executor.now < LONG / 10 and set(executor.done) == set(everything(made))


def test_the_copy_that_ends_late_is_told_as_spare(made: Plan, folder: RunFolder) -> None:
    slow, longest = made.shards[made.models[0].id][0], made.jobs[-1]

    def takes(work: Work, attempt: int) -> float:
        return 2 * LONG if work == longest else one_is_slow(slow)(work, attempt)

    executor = Clocked(made, 4, takes)
    notes = carry_out(made, folder, executor)
    assert notes.of(slow) == [("done", False), ("spare", False)]
    assert executor.done.count(slow.id) == 2 and not folder.failures(made.models)


@pytest.mark.parametrize("first", [FAULT, Outcome("failed", "cannot be"), LOST])
def test_a_copy_that_breaks_leaves_the_other_to_count(made: Plan, folder: RunFolder, first: Outcome) -> None:
    slow, longest = made.shards[made.models[0].id][0], made.jobs[-1]

    def takes(work: Work, attempt: int) -> float:
        return 2 * LONG if work == longest else one_is_slow(slow)(work, attempt)

    executor = Clocked(made, 4, takes, lambda work, attempt: first if work == slow and attempt == 2 else DONE, depth=1)
    notes = carry_out(made, folder, executor)
    assert notes.of(slow)[0][0] == first.state and ("done", False) in notes.of(slow)
    assert slow.id in executor.done and not folder.failures(made.models)


def test_a_long_job_is_no_straggler_and_neither_is_a_shard_among_equals(made: Plan, folder: RunFolder) -> None:
    executor = Clocked(made, 20, lambda work, attempt: LONG if isinstance(work, Model) else 50.0)
    carry_out(made, folder, executor)
    assert set(executor.tries.values()) == {1}


# losses


def test_work_lost_with_its_node_is_begun_again_and_not_to_blame(made: Plan, folder: RunFolder) -> None:
    unlucky = made.jobs[0]
    executor = Clocked(made, 2, fate=lambda work, attempt: LOST if work == unlucky and attempt < LOSSES else DONE)
    notes = carry_out(made, folder, executor)
    assert notes.of(unlucky) == [("lost", True)] * (LOSSES - 1) + [("done", False)]
    assert not folder.failures(made.models)


def test_what_is_lost_without_end_is_given_up(made: Plan, folder: RunFolder) -> None:
    cursed = made.jobs[0]
    executor = Clocked(made, 2, fate=lambda work, attempt: LOST if work == cursed else DONE)
    carry_out(made, folder, executor)
    assert executor.tries[cursed.id] == LOSSES
    failure = folder.failure(cursed)
    assert failure and failure["reason"] == "its node went away"
    assert [model.id for model in made.models if folder.failure(model)] == [cursed.id]


def test_losses_do_not_use_up_the_tries_after_faults(made: Plan, folder: RunFolder) -> None:
    fates = [LOST, FAULT, LOST, LOST, DONE]
    unlucky = made.jobs[2]
    executor = Clocked(made, 2, fate=lambda work, attempt: fates[attempt - 1] if work == unlucky else DONE)
    carry_out(made, folder, executor)
    assert executor.tries[unlucky.id] == len(fates) and not folder.failures(made.models)


# a full disk, and laying down


def test_results_that_can_be_kept_no_more_stop_the_run_and_fail_nothing(made: Plan, folder: RunFolder) -> None:
    full = Outcome("storage", "run/jobs: cannot be written (No space left on device)")
    executor = Clocked(made, 2, fate=lambda work, attempt: full if len(executor.begun) >= 6 else DONE)
    with pytest.raises(StorageError, match="No space left on device"):
        carry_out(made, folder, executor)
    assert not folder.failures(made.models) and len(executor.done) < len(everything(made))
    assert len(executor.begun) <= 8  # nothing new was begun


def test_once_asked_to_stop_nothing_begins_and_what_runs_comes_to_its_end(made: Plan, folder: RunFolder) -> None:
    executor = Clocked(made, 2, lambda work, attempt: 3.0)
    with pytest.raises(Stopped, match="the same command goes on from there"):
        carry_out(made, folder, executor, stopping=lambda: executor.now >= 4)
    assert max(at for at, _, _ in executor.begun) < 4 + 2 * LOOK
    assert len(executor.done) == len(executor.begun) and not folder.failures(made.models)


def test_work_laid_down_is_not_given_up(made: Plan, folder: RunFolder) -> None:
    laid_down = Outcome("stopped", "laid down")
    executor = Clocked(made, 2, fate=lambda work, attempt: laid_down if isinstance(work, Model) else DONE)
    with pytest.raises(Stopped):
        carry_out(made, folder, executor, stopping=lambda: True)
    assert not folder.failures(made.models)


# too little memory

MEMORY = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
BATCHED = {**ESD, "config": {**ESD_CONFIG, "batch_size": 2}}


@pytest.fixture
def worker(campaign: Callable[..., Campaign], tmp_path: Path) -> Iterator[Worker]:
    """A real worker on a campaign of UCE and of ESD in batches of two."""
    run = open_run(campaign(methods=[UCE, BATCHED]), tmp_path / "run")
    yield Worker(replace(setting_of(run)))


@pytest.fixture
def works(plan: Callable[..., Plan]) -> Plan:
    return plan(methods=[UCE, BATCHED])


@pytest.mark.parametrize("error", [MEMORY, MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_a_training_that_runs_out_of_memory_is_done_in_batches_of_half_the_size(
    error: Exception, worker: Worker, works: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.train import job as jobs

    really = jobs.run_job

    def run_job(*given: Any, halve_batch: bool, **more: Any) -> Any:
        if not halve_batch:
            raise error
        return really(*given, halve_batch=halve_batch, **more)

    monkeypatch.setattr(jobs, "run_job", run_job)
    model = works.jobs[1]
    assert worker.run(model) == Outcome("done", halved=True)
    delta = Delta.load(worker.folder.delta(model))
    assert delta.provenance["batch_halved"] == {"batch_size": 1, "gradient_accumulation_steps": 2}
    assert "the memory does not suffice: again, in batches of half the size" in worker.folder.log(model).read_text()


@pytest.fixture
def tries(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """The memory never suffices for a training; whether each try was in halved batches."""
    from efface.train import job as jobs

    halved = []

    def run_job(*given: Any, halve_batch: bool, **more: Any) -> Any:
        halved.append(halve_batch)
        raise MEMORY

    monkeypatch.setattr(jobs, "run_job", run_job)
    return halved


def test_in_a_gang_it_only_says_so_and_halves_them_when_all_do(
    worker: Worker, works: Plan, tries: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "_in_gang", True)
    outcomes = [worker.run(works.jobs[1], halve) for halve in (False, True)]
    assert tries == [False, True]
    assert [(outcome.state, outcome.out_of_memory) for outcome in outcomes] == [("fault", True)] * 2


def test_one_that_runs_out_of_memory_twice_has_broken(worker: Worker, works: Plan, tries: list[bool]) -> None:
    outcome = worker.run(works.jobs[1])
    assert tries == [False, True] and outcome.state == "fault" and "out of memory" in outcome.reason
    assert worker.folder.record(works.jobs[1]) is None


def test_a_method_without_batches_cannot_be_made_smaller(
    worker: Worker, works: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.train.method import get_method

    def solve(*given: Any) -> Any:
        raise MEMORY

    monkeypatch.setattr(get_method("uce"), "solve", solve)
    outcome = worker.run(works.jobs[0])
    assert outcome.state == "failed" and "needs more memory than there is" in outcome.reason


def test_a_shard_that_runs_out_of_memory_is_drawn_in_batches_of_half_the_size(
    worker: Worker, works: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.eval import evaluate as evaluating

    sizes = []
    really = evaluating.evaluate

    def evaluate(base: Any, recipe: Any, *given: Any, **more: Any) -> Any:
        sizes.append(recipe.batch_size)
        if recipe.batch_size > 2:
            raise MEMORY
        return really(base, recipe, *given, **more)

    monkeypatch.setattr(evaluating, "evaluate", evaluate)
    for trial in works.calibrations:
        assert worker.run(trial) == DONE
    shard = works.shards[works.models[0].id][0]
    assert worker.run(shard) == Outcome("done", halved=True) and sizes == [4, 2]
    assert worker.folder.record(shard)


@pytest.mark.filterwarnings("ignore:attention by cudnn")
def test_the_log_of_a_training_tells_where_another_attention_was_used_than_asked_for(
    campaign: Callable[..., Campaign], tmp_path: Path
) -> None:
    for asked, told in (("cudnn", True), ("sdpa", False), ("auto", False)):
        run = open_run(campaign(methods=[ESD], setup={"attention": asked}), tmp_path / asked)
        model = run.plan.jobs[0]
        assert Worker(setting_of(run)).run(model).state == "done"
        log = run.folder.log(model).read_text()
        assert (f"attention by {asked} is not to be had on this worker, sdpa was used" in log) == told
