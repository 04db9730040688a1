"""A search by the campaign's engine: killed at every moment, with tasks that fail, on many workers."""

import io
import itertools
import json
import os
import random
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fake_worker import FakeWorker
from rich.console import Console
from tiny_search import MakeSearch, search_dict

from efface.cluster.run import Run, worker_context
from efface.cluster.search.result import TrialRow
from efface.cluster.search.search import run_search
from efface.cluster.search.spec import Search
from efface.cluster.search.study import RunFolderJournal
from efface.cluster.tasks.calibration import CalibrationTask
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask
from efface.cluster.workers.executor import WorkerClass
from efface.config_files import parse
from efface.errors import JobFailure, Stopped, UserError

Fate = Callable[[Task, int], Outcome | None]
"""From a task and how often it began, to how it ends; None: well."""


class Killed(BaseException):
    """The end of the process, which nothing catches."""


def execute(search: Search, out: str | Path, worker: WorkerClass = FakeWorker) -> tuple[list[TrialRow], str]:
    said = io.StringIO()
    return run_search(search, out, None, 0, None, Console(file=said, width=200), worker).rows, said.getvalue()


def facts(rows: list[TrialRow]) -> list[Any]:
    """What two runs of one search have in common: all but how long the training took."""
    return [
        (row.number, row.point, row.ended, row.result.state, row.result.score, row.result.scores, row.result.reason)
        for row in rows
    ]


@pytest.fixture(scope="module")
def wanted(campaign_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Search:
    """A search with one of three trials over the budget. Optuna's first ten do not depend on what came of others."""

    def of_three(**changes: Any) -> Search:
        return parse(Search, search_dict(campaign_inputs, trials=3, **changes), "search")

    costs = [row.result.cost for row in execute(of_three(), tmp_path_factory.mktemp("no budget"))[0]]
    *_, second, first = sorted(cost.weight_change for cost in costs if cost)
    return of_three(max_weight_change=(first + second) / 2)


@pytest.fixture(scope="module")
def whole(wanted: Search, tmp_path_factory: pytest.TempPathFactory) -> list[TrialRow]:
    """What it comes to undisturbed."""
    return execute(wanted, tmp_path_factory.mktemp("whole"))[0]


def with_fate(fate: Fate) -> tuple[WorkerClass, Counter[str]]:
    """A worker to whose tasks things happen, and how often it began each."""
    began: Counter[str] = Counter()

    class Fated(FakeWorker):
        def run(self, task: Task) -> Outcome:
            began[task.id] += 1
            return fate(task, began[task.id]) or super().run(task)

    return Fated, began


def dying(number: int, after: bool, effects: Path | None = None) -> WorkerClass:
    """A worker that is killed before or after its task `number` (1, …)."""
    ran = 0

    class Dying(FakeWorker):
        def run(self, task: Task) -> Outcome:
            nonlocal ran
            ran += 1
            if ran == number and not after:
                raise Killed
            outcome = super().run(task)
            if ran == number:
                raise Killed
            return outcome

    Dying.effects = str(effects) if effects else None
    return Dying


def spoil(path: Path) -> None:
    """Change a file so that neither its size nor its time gives it away."""
    changed = path.stat().st_mtime_ns
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(changed, changed))


# killed


def test_a_search_that_is_killed_around_any_save_comes_to_the_same(
    wanted: Search, whole: list[TrialRow], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert {row.result.state for row in whole} == {"judged", "over budget"}
    save = RunFolderJournal.save

    def killing_save(number: int, after: bool) -> Callable[[RunFolderJournal], None]:
        saves = 0

        def killed_save(journal: RunFolderJournal) -> None:
            nonlocal saves
            saves += 1
            if saves != number or after:
                save(journal)
            if saves == number:
                raise Killed

        return killed_save

    for number, after in itertools.product(range(1, 100), (False, True)):
        out, effects = tmp_path / f"{number} {after}", tmp_path / f"{number} {after}.txt"
        worker = dying(0, False, effects)
        monkeypatch.setattr(RunFolderJournal, "save", killing_save(number, after))
        try:
            execute(wanted, out, worker)
        except Killed:
            monkeypatch.setattr(RunFolderJournal, "save", save)
            assert facts(execute(wanted, out, worker)[0]) == facts(whole)
            assert set(Counter(effects.read_text().splitlines()).values()) == {1}  # nothing is done twice
        else:
            break
    assert number > 6  # three times of asking, and a result of each at least


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_a_search_that_is_killed_around_any_task_comes_to_the_same(
    stride: int, wanted: Search, whole: list[TrialRow], tmp_path: Path
) -> None:
    for number, after in itertools.product(range(1, 100, stride), (False, True)):
        out, effects = tmp_path / f"{number} {after}", tmp_path / f"{number} {after}.txt"
        worker = dying(number, after, effects)
        try:
            execute(wanted, out, worker)
        except Killed:
            assert facts(execute(wanted, out, worker)[0]) == facts(whole)
            assert set(Counter(effects.read_text().splitlines()).values()) == {1}
        else:
            break
    assert number > 8


def test_a_stop_request_stops_a_search_and_the_same_command_goes_on(
    wanted: Search, whole: list[TrialRow], tmp_path: Path
) -> None:
    out = tmp_path / "search"

    class Stopping(FakeWorker):
        def run(self, task: Task) -> Outcome:
            outcome = super().run(task)
            if isinstance(task, TrainingTask):
                self.folder.request_stop()
            return outcome

    with pytest.raises(Stopped):
        # The second training finds the request.
        execute(wanted, out, Stopping)
    assert len(list(out.glob("jobs/*/delta.safetensors"))) == 1
    assert facts(execute(wanted, out)[0]) == facts(whole)


def test_a_damaged_study_is_begun_anew_over_what_is_done(wanted: Search, tmp_path: Path) -> None:
    whole, _ = execute(wanted, tmp_path)
    (tmp_path / "study.jsonl").write_bytes(b"[{")
    worker, began = with_fate(lambda task, count: None)
    again, said = execute(wanted, tmp_path, worker)
    assert facts(again) == facts(whole) and not began
    assert "study.jsonl: damaged" in said


# tasks that fail


def test_a_job_that_fails_is_scored_lowest_and_neither_it_nor_the_rest_of_its_trial_is_tried(
    search: MakeSearch, tmp_path: Path
) -> None:
    wanted = search(concepts={"targets": ["cat", "bus"]}, trials=3)
    jobs: list[str] = []

    def fate(task: Task, count: int) -> Outcome | None:
        if isinstance(task, TrainingTask) and task.id not in jobs:
            jobs.append(task.id)
            if len(jobs) == 1:
                return Outcome.failed("the loss is nan at step 1")
        return None

    worker, began = with_fate(fate)
    rows, said = execute(wanted, tmp_path, worker)
    assert [row.result.state for row in rows] == ["failed", "judged", "judged"]
    assert (rows[0].result.score, rows[0].result.reason) == (-1, "the loss is nan at step 1") and rows[0].ended
    assert "failed: the loss is nan at step 1" in said
    assert len(jobs) == 5 and set(began.values()) == {1}
    assert execute(wanted, tmp_path, worker)[0] == rows and set(began.values()) == {1}


@pytest.mark.parametrize("kind", [TrainingTask, Shard])
def test_a_trial_that_breaks_twice_is_tried_again_by_the_next_start(
    wanted: Search, whole: list[TrialRow], tmp_path: Path, kind: type[TrainingTask] | type[Shard]
) -> None:
    broken: list[str] = []

    def fate(task: Task, count: int) -> Outcome | None:
        if isinstance(task, kind) and not broken and (isinstance(task, TrainingTask) or task.model.job):
            broken.append(task.id)
        return Outcome.error("out of luck") if task.id in broken else None

    worker, began = with_fate(fate)
    rows, said = execute(wanted, tmp_path / "search", worker)
    assert began[broken[0]] == 2
    judged = next(row.number for row in whole if row.result.state == "judged")
    number = 1 if kind is TrainingTask else judged  # a trial over the budget has no images
    assert [row.number for row in rows if not row.ended and row.result.state == "errored"] == [number]
    assert "errored: out of luck" in said
    assert not list((tmp_path / "search").glob("jobs/*/failure.json"))
    assert "errored" in (tmp_path / "search" / "trials.csv").read_text()

    again, said = execute(wanted, tmp_path / "search")
    assert facts(again)[number - 1] == facts(whole)[number - 1] and all(row.ended for row in again)
    assert f"trial {number} (" in said and len(again) == 3


def test_a_task_that_breaks_once_is_tried_again(wanted: Search, whole: list[TrialRow], tmp_path: Path) -> None:
    worker, _ = with_fate(lambda task, count: Outcome.error("out of luck") if count == 1 else None)
    assert facts(execute(wanted, tmp_path, worker)[0]) == facts(whole)


def test_a_delta_that_is_damaged_is_made_again(search: MakeSearch, tmp_path: Path) -> None:
    wanted = search(trials=1, rungs=[1])
    whole, _ = execute(wanted, tmp_path / "whole")
    jobs: Counter[str] = Counter()

    class Damaging(FakeWorker):
        def run(self, task: Task) -> Outcome:
            outcome = super().run(task)
            if isinstance(task, TrainingTask):
                jobs[task.id] += 1
                if jobs[task.id] == 1:
                    spoil(self.folder.delta(task.model))
            return outcome

    assert facts(execute(wanted, tmp_path / "search", Damaging)[0]) == facts(whole)
    assert set(jobs.values()) == {2}


def test_verdicts_that_were_changed_are_judged_again(search: MakeSearch, tmp_path: Path) -> None:
    wanted, out = search(trials=1), tmp_path / "search"
    whole, _ = execute(wanted, out)
    for path in out.glob("evaluations/*/*.verdicts.parquet"):
        spoil(path)
    (out / "study.jsonl").unlink()
    assert facts(execute(wanted, out)[0]) == facts(whole)


def test_a_base_that_cannot_be_judged_ends_the_search(wanted: Search, tmp_path: Path) -> None:
    def fate(task: Task, count: int) -> Outcome | None:
        return Outcome.failed("no such prompt") if isinstance(task, Shard) and not task.model.job else None

    with pytest.raises(JobFailure, match="the unedited base cannot be judged: no such prompt"):
        execute(wanted, tmp_path / "search", with_fate(fate)[0])
    assert execute(wanted, tmp_path / "search")[0]


def test_a_judge_that_cannot_be_calibrated_ends_the_search(wanted: Search, tmp_path: Path) -> None:
    def fate(task: Task, count: int) -> Outcome | None:
        return Outcome.failed("it sees nothing") if isinstance(task, CalibrationTask) else None

    with pytest.raises(UserError, match="cannot be calibrated, so nothing can be judged: it sees nothing"):
        execute(wanted, tmp_path / "search", with_fate(fate)[0])


# how many at a time


def test_on_one_worker_a_trial_ends_before_the_next_begins(search: MakeSearch, tmp_path: Path) -> None:
    models: list[str] = []

    class Noting(FakeWorker):
        def run(self, task: Task) -> Outcome:
            if task.model:
                models.append(task.model.folder)
            return super().run(task)

    rows, _ = execute(search(concepts={"targets": ["cat", "bus"]}, trials=3), tmp_path, Noting)
    trial_of = {job: row.number for row in rows if row.result.cost for job in row.result.cost.jobs}
    order = [trial_of.get(model, 0) for model in models]  # 0: the base
    assert order == sorted(order) and set(order) == {0, 1, 2, 3}
    operations = [json.loads(line)["op_code"] for line in (tmp_path / "study.jsonl").read_text().splitlines()]
    begun, ended = 4, 6  # as Optuna numbers them
    assert [operation for operation in operations if operation in (begun, ended)] == [begun, ended] * 3


class ManyWorkers:
    """Several workers in this process; whose turn it is to end something is decided by `seed`."""

    depth = 2
    process_groups = None

    def __init__(self, run: Run, workers: int, seed: int) -> None:
        self.workers = workers
        self._worker = FakeWorker(worker_context(run), lambda: False)
        self._random = random.Random(seed)
        self._lines: list[list[Task]] = [[] for _ in range(workers)]
        self._coming = list(range(-2, workers))
        self.ran: Counter[str] = Counter()

    def new_workers(self) -> list[int]:
        """None at first, then one more each time, as workers of a cluster come up."""
        coming, self._coming = self._coming[:1], self._coming[1:]
        return [worker for worker in coming if worker >= 0]

    def submit(self, worker: int, task: Task) -> None:
        self._lines[worker].append(task)

    def outcomes(self, timeout: float) -> Iterator[tuple[int, Task, Outcome]]:
        busy = [worker for worker, line in enumerate(self._lines) if line]
        if not busy or (self._coming and self._random.random() < 0.5):
            return
        worker = self._random.choice(busy)
        task = self._lines[worker].pop(0)
        self.ran[task.id] += 1
        yield worker, task, self._worker.run(task)

    def speed(self, worker: int) -> float:
        return 1.0

    def replace(self, worker: int) -> bool:
        return False

    def clock(self) -> float:
        return 0.0

    def close(self) -> None:
        pass


@pytest.mark.parametrize("seed", [0, 1, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (2, 3))])
@pytest.mark.parametrize("workers", [2, 5, 30])
def test_any_number_of_workers_does_everything_once(
    search: MakeSearch, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, seed: int
) -> None:
    # Of a space this small, several trials have one config.
    space = {"steps": {"integer": [1, 2]}, "variant": {"choice": ["x", "u"]}}
    wanted, few = (search(space=space, trials=trials, concepts={"targets": ["cat", "bus"]}) for trials in (8, 1))
    execute(few, tmp_path)  # so that the base is judged
    made: list[ManyWorkers] = []

    def make_executor(run: Run, *arguments: Any) -> ManyWorkers:
        made.append(ManyWorkers(run, workers, seed))
        return made[0]

    monkeypatch.setattr("efface.cluster.search.search.make_executor", make_executor)
    rows, _ = execute(wanted, tmp_path)
    assert len(rows) == 8 and all(row.ended and row.result.state == "judged" for row in rows)
    assert set(made[0].ran.values()) == {1}
    assert len(list(tmp_path.glob("jobs/*/record.json"))) == 2 * len({row.id for row in rows})
    by_config: dict[str, set[Any]] = {}
    for row in rows:
        assert row.result.scores
        by_config.setdefault(f"{row.id} {row.result.scores.images_per_prompt}", set()).add(row.result.score)
    assert all(len(scores) == 1 for scores in by_config.values())
