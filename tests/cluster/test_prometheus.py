"""The metrics of a run: what they say at the start, after each event, and what a real Ray exports of them."""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from efface.cluster.campaign.plan import Plan
from efface.cluster.scheduler import prometheus as module
from efface.cluster.scheduler.prometheus import PROMETHEUS_METRICS, STATES, PrometheusMetrics, cause_of
from efface.cluster.storage.remaining import RemainingTasks, remaining_tasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.retry_rules import Outcome

DONE, WORKER_LOST = Outcome.done(), Outcome.worker_lost("its node went away")
ERROR = Outcome.error("OSError: no route")
NO_MEMORY = Outcome.error("OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB")

Key = tuple[str, ...]


class Board:
    """What meters were set to: the last value of a gauge, the sum of a counter, all values of a histogram."""

    def __init__(self) -> None:
        self.gauges: dict[Key, float] = {}
        self.counters: dict[Key, float] = {}
        self.seen: dict[Key, list[float]] = {}
        self.meters = {metric.name: _Meter(self, metric.name, metric.tags) for metric in PROMETHEUS_METRICS}

    def states(self, kind: str) -> dict[str, float]:
        found = {state: self.gauges["efface_tasks", kind, state] for state in STATES}
        return {state: value for state, value in found.items() if value}


class _Meter:
    def __init__(self, board: Board, name: str, tags: tuple[str, ...]) -> None:
        self.board, self.name, self.tags = board, name, tags

    def _key(self, tags: dict[str, str]) -> Key:
        assert set(tags) == set(self.tags)
        return (self.name, *(tags[tag] for tag in self.tags))

    def set(self, value: float, tags: dict[str, str]) -> None:
        self.board.gauges[self._key(tags)] = value

    def inc(self, value: float, tags: dict[str, str]) -> None:
        key = self._key(tags)
        self.board.counters[key] = self.board.counters.get(key, 0) + value

    def observe(self, value: float, tags: dict[str, str]) -> None:
        self.board.seen.setdefault(self._key(tags), []).append(value)


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    board = Board()
    monkeypatch.setattr(module, "_meters", lambda: board.meters)
    return board


class Steady:
    """A clock that goes on only when it is set."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Steady:
    steady = Steady()
    monkeypatch.setattr("efface.cluster.scheduler.prometheus.time", steady)
    monkeypatch.setattr("efface.cluster.storage.journal.time", steady)
    return steady


@pytest.fixture
def made(plan: Callable[..., Plan]) -> Plan:
    """Two jobs, uce and esd, and the base: 3 shards for each model, of 5, 5 and 4 images."""
    return plan()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def all_tasks(plan: Plan) -> RemainingTasks:
    """Nothing is done yet."""
    return RemainingTasks.everything(plan)


def test_at_the_start_all_work_waits_and_nobody_is_busy(made: Plan, board: Board) -> None:
    PrometheusMetrics(made, all_tasks(made), 2)
    assert board.states("training") == {"waiting": 2}
    assert board.states("judging") == {"waiting": 9}
    assert board.gauges["efface_busy_fraction",] == 0
    assert {key[1]: value for key, value in board.gauges.items() if key[0] == "efface_cache_hits"} == {
        "calibration": 0,
        "training": 0,
        "judging": 0,
    }


def test_what_a_run_folder_holds_already_is_done_and_a_cache_hit(made: Plan, folder: RunFolder, board: Board) -> None:
    base, uce, esd = made.models
    for task in (made.calibrations[0], made.trainings[0], *made.shards[base.id], made.shards[uce.id][0]):
        folder.finish(task, [])
    folder.fail(esd, "training", "the loss is nan")
    PrometheusMetrics(made, remaining_tasks(made, folder), 2)
    assert board.states("training") == {"done": 1, "failed": 1}
    assert board.states("judging") == {"done": 4, "waiting": 2, "failed": 3}
    hits = {key[1]: value for key, value in board.gauges.items() if key[0] == "efface_cache_hits"}
    assert hits == {"calibration": 1, "training": 1, "judging": 4}


def test_work_goes_from_waiting_to_running_to_done(made: Plan, board: Board, clock: Steady) -> None:
    uce = made.trainings[0]
    metrics = PrometheusMetrics(made, all_tasks(made), 4)
    metrics.started(0, uce)
    metrics.started(1, made.shards[made.models[0].id][0])
    metrics.tick()
    assert board.states("training") == {"running": 1, "waiting": 1}
    assert board.states("judging") == {"running": 1, "waiting": 8}
    assert board.gauges["efface_busy_fraction",] == 0.5
    clock.now += 7
    metrics.ended(0, uce, DONE, will_retry=False)
    metrics.tick()
    assert board.states("training") == {"done": 1, "waiting": 1}
    assert board.gauges["efface_busy_fraction",] == 0.25
    assert board.seen["efface_task_seconds", "training", "uce"] == [7]


def test_images_are_counted_by_the_method_that_made_the_model(made: Plan, board: Board) -> None:
    base, uce, _ = made.models
    metrics = PrometheusMetrics(made, all_tasks(made), 1)
    for shard in (*made.shards[base.id], made.shards[uce.id][0]):
        metrics.started(0, shard)
        metrics.ended(0, shard, DONE, will_retry=False)
    assert board.counters == {("efface_units", "judging", "base"): 14, ("efface_units", "judging", "uce"): 5}


def test_of_two_copies_of_a_shard_one_counts(made: Plan, board: Board) -> None:
    shard = made.shards[made.models[0].id][0]
    metrics = PrometheusMetrics(made, all_tasks(made), 2)
    for worker in (0, 1):
        metrics.started(worker, shard)
    metrics.ended(1, shard, DONE, will_retry=False)
    metrics.ended(0, shard, Outcome.superseded(), will_retry=False)
    metrics.tick()
    assert board.counters == {("efface_units", "judging", "base"): 5}
    assert board.states("judging") == {"done": 1, "waiting": 8}


def test_a_shard_is_still_running_when_one_of_two_workers_is_lost(made: Plan, board: Board) -> None:
    shard = made.shards[made.models[0].id][0]
    metrics = PrometheusMetrics(made, all_tasks(made), 2)
    for worker in (0, 1):
        metrics.started(worker, shard)
    metrics.ended(0, shard, WORKER_LOST, will_retry=True)
    metrics.tick()
    assert board.states("judging") == {"running": 1, "waiting": 8}


@pytest.mark.parametrize(
    "outcome, cause",
    [
        (WORKER_LOST, "worker lost"),
        (ERROR, "error"),
        (NO_MEMORY, "out of memory"),
        (Outcome.error("RuntimeError: [enforce fail] DefaultCPUAllocator: not enough memory"), "error"),
    ],
)
def test_a_retry_has_one_of_three_causes(outcome: Outcome, cause: str, made: Plan, board: Board) -> None:
    assert cause_of(outcome) == cause
    metrics = PrometheusMetrics(made, all_tasks(made), 1)
    metrics.started(0, made.trainings[0])
    metrics.ended(0, made.trainings[0], outcome, will_retry=True)
    metrics.tick()
    assert board.counters == {("efface_retries", cause): 1}
    assert board.states("training") == {"waiting": 2}


def test_tasks_done_with_a_smaller_batch_are_counted(made: Plan, board: Board) -> None:
    metrics = PrometheusMetrics(made, all_tasks(made), 1)
    metrics.started(0, made.trainings[0])
    metrics.ended(0, made.trainings[0], Outcome.done(smaller_batch=True), will_retry=False)
    assert board.counters["efface_out_of_memory_smaller_batches", "training"] == 1


@pytest.mark.parametrize("outcome", [Outcome.stopped(), Outcome.storage("the disk is full")])
def test_a_task_that_was_stopped_waits_and_is_no_retry(made: Plan, board: Board, outcome: Outcome) -> None:
    metrics = PrometheusMetrics(made, all_tasks(made), 1)
    metrics.started(0, made.trainings[0])
    metrics.ended(0, made.trainings[0], outcome, will_retry=False)
    metrics.tick()
    assert board.states("training") == {"waiting": 2}
    assert board.counters == {}


def test_a_job_given_up_takes_its_shards_with_it(made: Plan, board: Board) -> None:
    metrics = PrometheusMetrics(made, all_tasks(made), 1)
    metrics.started(0, made.trainings[0])
    metrics.ended(0, made.trainings[0], ERROR, will_retry=False)
    metrics.tick()
    assert board.states("training") == {"failed": 1, "waiting": 1}
    assert board.states("judging") == {"failed": 3, "waiting": 6}


def test_a_shard_given_up_takes_its_job_and_the_shards_that_wait(made: Plan, board: Board) -> None:
    uce = made.trainings[0]
    first, second, _ = made.shards[uce.id]
    metrics = PrometheusMetrics(made, all_tasks(made), 2)
    metrics.started(0, uce)
    metrics.ended(0, uce, DONE, will_retry=False)
    metrics.started(0, first)
    metrics.started(1, second)
    metrics.ended(0, first, ERROR, will_retry=False)
    metrics.tick()
    assert board.states("training") == {"failed": 1, "waiting": 1}
    assert board.states("judging") == {"failed": 2, "running": 1, "waiting": 6}


def test_a_request_given_up_takes_those_that_continue_it(plan: Callable[..., Plan], board: Board) -> None:
    made = plan(strategy="continual", concepts={"targets": ["cat", "bus"]}, methods=[{"method": "uce"}])
    metrics = PrometheusMetrics(made, all_tasks(made), 1)
    metrics.started(0, made.trainings[0])
    metrics.ended(0, made.trainings[0], ERROR, will_retry=False)
    metrics.tick()
    assert board.states("training") == {"failed": 2}
    assert board.states("judging") == {
        "waiting": len(made.shards[made.models[0].id]),
        "failed": sum(len(made.shards[job.id]) for job in made.jobs),
    }


def test_waiting_begins_when_the_work_could_be_done(made: Plan, board: Board, clock: Steady) -> None:
    uce, esd = made.trainings
    shard = made.shards[uce.id][0]
    metrics = PrometheusMetrics(made, all_tasks(made), 1)
    clock.now += 3
    metrics.started(0, uce)
    clock.now += 10
    metrics.ended(0, uce, DONE, will_retry=False)  # from now on its shards could be judged, were the judge calibrated
    metrics.started(0, made.calibrations[0])
    clock.now += 20
    metrics.ended(0, made.calibrations[0], DONE, will_retry=False)
    clock.now += 4
    metrics.started(0, shard)
    clock.now += 50
    metrics.ended(0, shard, ERROR, will_retry=True)
    clock.now += 6
    metrics.started(0, shard)
    metrics.started(0, esd)
    assert board.seen["efface_queue_wait_seconds", "training"] == [3, 93]
    assert board.seen["efface_queue_wait_seconds", "calibration"] == [13]
    assert board.seen["efface_queue_wait_seconds", "judging"] == [4, 6]


def test_without_ray_nothing_is_exported(made: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(module.sys.modules, "ray", raising=False)
    metrics = PrometheusMetrics(made, all_tasks(made), 1)
    metrics.started(0, made.trainings[0])
    metrics.ended(0, made.trainings[0], DONE, will_retry=False)
    metrics.tick()
    assert metrics._meters == {}
    assert "ray" not in module.sys.modules


def test_no_tag_could_have_a_value_for_every_job() -> None:
    assert {tag for metric in PROMETHEUS_METRICS for tag in metric.tags} == {"state", "method", "kind", "cause"}


@pytest.fixture(scope="module")
def metrics_url() -> Iterator[str]:
    """Where a Ray of its own, on the loopback address, exports its metrics; it reports twice a second."""
    import ray
    from ray._private import ray_constants

    patch = pytest.MonkeyPatch()
    patch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)
    with TemporaryDirectory(prefix="efface-m-", ignore_cleanup_errors=True) as scratch:
        ray.init(
            "local",
            num_cpus=1,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            _temp_dir=scratch,
            _system_config={"metrics_report_interval_ms": 500},
        )
        node = ray.nodes()[0]
        yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"
        ray.shutdown()
    patch.undo()


def test_every_tick_sets_every_gauge(made: Plan, board: Board) -> None:
    """Ray forgets a gauge that was not set since it was last exported."""
    metrics = PrometheusMetrics(made, all_tasks(made), 1)
    gauges = set(board.gauges)
    assert {name for name, *_ in gauges} == {metric.name for metric in PROMETHEUS_METRICS if metric.kind == "gauge"}
    board.gauges.clear()
    metrics.tick()
    assert set(board.gauges) == gauges


def scraped(url: str) -> dict[str, dict[str, float]]:
    """Our series as Prometheus would read them: name -> the values of our own tags -> value."""
    with urllib.request.urlopen(url, timeout=10) as answer:
        text = answer.read().decode()
    found: dict[str, dict[str, float]] = {}
    for name, tags, value in re.findall(r"^(ray_efface_\w+)\{(.*)\} (\S+)$", text, re.M):
        own = re.findall(r'(state|method|kind|cause|le)="([^"]*)"', tags)
        found.setdefault(name, {})[",".join(value for _, value in sorted(own))] = float(value)
    return found


def test_ray_exports_all_of_them_under_the_names_in_the_list(made: Plan, metrics_url: str) -> None:
    base = made.models[0]
    uce, esd = made.trainings
    PrometheusMetrics(made, all_tasks(made), 2)  # the round before, in the same process
    metrics = PrometheusMetrics(made, all_tasks(made), 2)
    first, second, _ = made.shards[base.id]
    for task, outcome, will_retry in (
        (first, DONE, False),
        (second, WORKER_LOST, True),
        (uce, Outcome.done(smaller_batch=True), False),
        (esd, ERROR, False),
    ):
        metrics.started(0, task)
        metrics.ended(0, task, outcome, will_retry)
    metrics.started(1, second)
    metrics.tick()
    expected = {name for metric in PROMETHEUS_METRICS for name in metric.exported}
    for _ in range(40):
        found = scraped(metrics_url)
        if set(found) == expected and found["ray_efface_tasks"].get("training,done"):
            break
        time.sleep(0.5)
    assert set(found) == expected
    tasks = found["ray_efface_tasks"]
    assert [tasks[f"training,{state}"] for state in STATES] == [0, 0, 1, 1]
    assert [tasks[f"judging,{state}"] for state in STATES] == [4, 1, 1, 3]
    assert found["ray_efface_units_total"] == {"judging,base": 5, "training,uce": 1}
    assert found["ray_efface_retries_total"] == {"worker lost": 1}
    assert found["ray_efface_out_of_memory_smaller_batches_total"] == {"training": 1}
    assert found["ray_efface_busy_fraction"] == {"": 0.5}
    assert found["ray_efface_task_seconds_count"] == {"judging,base": 1, "training,uce": 1}
    assert found["ray_efface_queue_wait_seconds_count"] == {"training": 2, "judging": 3}  # one shard twice
