"""The driver's loop, with workers that only pretend: everything once, in a right order, and faults contained."""

import itertools
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from efface.cluster.dispatch import ATTEMPTS, dispatch, remaining
from efface.cluster.plan import Calibration, Model, Plan, Shard
from efface.cluster.run_folder import RunFolder, Work
from efface.cluster.worker import Outcome
from efface.errors import JobFailure, UserError

DONE, FAILED, FAULT = Outcome("done"), Outcome("failed", "the loss is nan", "log"), Outcome("fault", "the worker died")

Fate = Callable[[Work, int], Outcome]


def always_done(work: Work, attempt: int) -> Outcome:
    return DONE


class PretendedWorkers:
    """Each takes up to two pieces and ends them in turn; whose turn it is to end something is drawn by `seed`.

    What a driver must never do is checked as it happens.
    """

    depth = 2
    gangs = None

    def __init__(self, plan: Plan, workers: int, seed: int, fate: Fate = always_done) -> None:
        self.workers = workers
        self.fate = fate
        self.random = random.Random(seed)
        self.in_flight: list[list[Work]] = [[] for _ in range(workers)]
        self.log: list[tuple[int, Work]] = []
        self.new = list(range(workers))
        self.ended: list[Work] = []
        self.attempts: Counter[str] = Counter()
        self.existing = {plan.models[0].id}
        self.uncalibrated = {trial.id for trial in plan.calibrations}

    def arrived(self) -> list[int]:
        arrived, self.new = self.new, []
        return arrived

    def replace(self, worker: int) -> bool:
        return False

    def clock(self) -> float:
        return 0.0

    def submit(self, worker: int, work: Work) -> None:
        self.log.append((worker, work))
        self.attempts[work.id] += 1
        self.in_flight[worker].append(work)
        assert len(self.in_flight[worker]) <= self.depth
        assert len(self.in_flight[worker]) == 1 or all(isinstance(w, Shard) for w in self.in_flight[worker])
        if isinstance(work, Shard):
            assert work.model.id in self.existing and not self.uncalibrated

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Work, Outcome]]:
        worker = self.random.choice([i for i, doing in enumerate(self.in_flight) if doing])
        work = self.in_flight[worker].pop(0)
        outcome = self.fate(work, self.attempts[work.id])
        if outcome.state == "done":
            self.ended.append(work)
            if isinstance(work, Model):
                self.existing.add(work.id)
            elif isinstance(work, Calibration):
                self.uncalibrated.discard(work.id)
        yield worker, work, outcome

    def close(self) -> None:
        pass


class Notes:
    """What a watcher was told."""

    def __init__(self) -> None:
        self.started_: list[str] = []
        self.ended_: list[tuple[str, str, bool]] = []

    def started(self, worker: int, work: Work) -> None:
        self.started_.append(work.id)

    def ended(self, worker: int, work: Work, outcome: Outcome, again: bool) -> None:
        self.ended_.append((work.id, outcome.state, again))

    def tick(self) -> None:
        pass


@pytest.fixture
def made(plan: Callable[..., Plan]) -> Plan:
    return plan(seeds=[0, 1])


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def everything(plan: Plan) -> list[str]:
    shards = [shard.id for shards in plan.shards.values() for shard in shards]
    return sorted([*(t.id for t in plan.calibrations), *(m.id for m in plan.jobs), *shards])


def carry_out(
    plan: Plan, folder: RunFolder, fate: Fate = always_done, workers: int = 2, seed: int = 0
) -> PretendedWorkers:
    pretended = PretendedWorkers(plan, workers, seed, fate)
    dispatch(remaining(plan, folder), folder, pretended, [Notes()])
    return pretended


def shards_of(plan: Plan, model: Model) -> set[str]:
    return {shard.id for shard in plan.shards[model.id]}


@pytest.mark.parametrize("workers", [1, 2, 3, 20])
@pytest.mark.parametrize("seed", range(5))
def test_all_work_is_done_exactly_once(made: Plan, folder: RunFolder, workers: int, seed: int) -> None:
    pretended = carry_out(made, folder, workers=workers, seed=seed)
    assert sorted(work.id for work in pretended.ended) == everything(made)
    assert set(pretended.attempts.values()) == {1}
    assert not any(map(folder.failure, made.models))


@pytest.mark.parametrize("seed", range(10))
def test_a_fault_is_tried_again_once(made: Plan, folder: RunFolder, seed: int) -> None:
    pretended = carry_out(made, folder, lambda work, attempt: FAULT if attempt == 1 else DONE, seed=seed)
    assert sorted(work.id for work in pretended.ended) == everything(made)
    assert set(pretended.attempts.values()) == {2}
    assert not any(map(folder.failure, made.models))


@pytest.mark.parametrize("seed", range(10))
def test_what_breaks_every_time_is_given_up_and_the_others_go_on(made: Plan, folder: RunFolder, seed: int) -> None:
    bad = made.jobs[1]
    pretended = carry_out(made, folder, lambda work, attempt: FAULT if work == bad else DONE, seed=seed)
    assert pretended.attempts[bad.id] == ATTEMPTS == 2
    assert folder.failure(bad) == {"stage": "training", "reason": "the worker died", "details": ""}
    lost = {bad.id, *shards_of(made, bad)}
    assert sorted(work.id for work in pretended.ended) == sorted(set(everything(made)) - lost)
    assert not shards_of(made, bad) & pretended.attempts.keys()
    assert [model.id for model in made.models if folder.failure(model)] == [bad.id]


def test_a_job_that_cannot_be_done_is_not_tried_again(made: Plan, folder: RunFolder) -> None:
    bad = made.jobs[0]
    pretended = carry_out(made, folder, lambda work, attempt: FAILED if work == bad else DONE)
    assert pretended.attempts[bad.id] == 1
    assert folder.failure(bad) == {"stage": "training", "reason": "the loss is nan", "details": "log"}


@pytest.mark.parametrize("seed", range(10))
def test_a_shard_given_up_takes_the_rest_of_its_model_along(made: Plan, folder: RunFolder, seed: int) -> None:
    bad = made.shards[made.jobs[2].id][0]
    pretended = carry_out(made, folder, lambda work, attempt: FAULT if work == bad else DONE, seed=seed)
    failure = folder.failure(bad.model)
    assert failure and failure["stage"] == "judging, shard 0"
    others = set(everything(made)) - shards_of(made, bad.model)
    assert others <= {work.id for work in pretended.ended}


def test_what_failed_before_is_left_alone(made: Plan, folder: RunFolder) -> None:
    folder.fail(made.jobs[0], "earlier", "")
    pretended = carry_out(made, folder)
    lost = {made.jobs[0].id, *shards_of(made, made.jobs[0])}
    assert sorted(pretended.attempts) == sorted(set(everything(made)) - lost)


def test_two_workers_train_two_jobs_at_once(made: Plan, folder: RunFolder) -> None:
    pretended = carry_out(made, folder)
    jobs = [worker for worker, work in pretended.log if isinstance(work, Model)]
    assert set(jobs) == {0, 1}


def test_a_model_is_judged_by_the_worker_that_made_it(made: Plan, folder: RunFolder) -> None:
    alone = carry_out(made, folder, workers=1)
    held = [work.model.id if isinstance(work, Shard) else work.id for _, work in alone.log[1:]]
    switches = sum(before != after for before, after in itertools.pairwise(held))
    assert switches == len(made.models) - 1


def test_a_watcher_hears_of_everything_and_whether_it_is_tried_again(made: Plan, folder: RunFolder) -> None:
    notes, bad = Notes(), made.jobs[0]
    pretended = PretendedWorkers(made, 2, 0, lambda work, attempt: FAULT if work == bad else DONE)
    dispatch(remaining(made, folder), folder, pretended, [notes])
    assert notes.started_ == [work.id for _, work in pretended.log]
    assert sorted(name for name, _, _ in notes.ended_) == sorted(notes.started_)
    assert [told for told in notes.ended_ if told[1] != "done"] == [(bad.id, "fault", True), (bad.id, "fault", False)]


def test_a_judge_that_cannot_be_calibrated_ends_the_run_in_a_sentence(made: Plan, folder: RunFolder) -> None:
    for outcome, error in ((FAILED, UserError), (FAULT, JobFailure)):
        with pytest.raises(error, match=r"judge '.*' cannot be calibrated"):
            carry_out(made, folder, lambda work, attempt, o=outcome: o if isinstance(work, Calibration) else DONE)  # type: ignore[misc]


def test_with_nothing_left_nothing_is_asked_of_anybody(made: Plan, folder: RunFolder) -> None:
    from efface.cluster.dispatch import Remaining

    pretended = PretendedWorkers(made, 2, 0)
    dispatch(Remaining(), folder, pretended, [Notes()])
    assert pretended.log == []
