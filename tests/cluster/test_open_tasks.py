"""A kind of task of somebody else: one class in one file, and everything of a run treats it like the built-in kinds."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from examples.task import SizeTask, with_sizes
from fake_worker import FakeWorker
from rich.console import Console

from efface.cluster import run as running
from efface.cluster.campaign.cost import estimate
from efface.cluster.campaign.rates import Rates
from efface.cluster.campaign.spec import Campaign
from efface.cluster.measured_rates import measure_rates
from efface.cluster.run import Run, execute, open_run
from efface.cluster.run_summary import KindSummary, summarize
from efface.cluster.scheduler import prometheus
from efface.cluster.scheduler.progress import Display
from efface.cluster.scheduler.prometheus import PrometheusMetrics
from efface.cluster.scheduler.queue import Queue
from efface.cluster.storage.journal import TaskEnded, TaskStarted, read_journal
from efface.cluster.storage.records import Failure
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.tasks.metric import MetricTask
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.workers.worker import Worker
from efface.errors import JobFailure, UserError
from efface.eval.metric import METRICS
from efface.models.base import Base
from efface.models.delta import Delta

MakeCampaign = Callable[..., Campaign]


def sizes(run: Run) -> list[SizeTask]:
    return list(run.plan.of_kind(SizeTask))


@pytest.fixture
def run(campaign: MakeCampaign, tmp_path: Path) -> Run:
    """A campaign of two models, by UCE and by ESD."""
    opened = open_run(campaign(), tmp_path / "run")
    return replace(opened, plan=with_sizes(opened.plan))


def run_here(run: Run, worker: type = FakeWorker) -> str:
    """Execute it in this process; what was printed."""
    output = io.StringIO()
    execute(run, 0, None, Console(file=output, width=300), worker)
    return output.getvalue()


def test_it_is_done_once_its_model_is_there_and_leaves_outputs_and_record(run: Run) -> None:
    run_here(run)
    for task in sizes(run):
        expected = run.folder.delta(task.model).stat().st_size
        record = run.folder.record(task)
        assert record and (record.kind, record.facts) == ("size", {"bytes": expected})
        assert json.loads(run.folder.output(task, "size.json").read_text()) == {"bytes": expected}
    ends = [event.id for event in read_journal(run.folder) if isinstance(event, TaskEnded)]
    assert all(ends.index(task.model.id) < ends.index(task.id) for task in sizes(run))


def test_killed_anywhere_it_is_done_exactly_once(run: Run) -> None:
    done: list[str] = []

    class Killed(BaseException):
        pass

    class Mortal(FakeWorker):
        def run(self, task: Task) -> Outcome:
            if len(done) in kills:
                kills.remove(len(done))
                raise Killed
            outcome = super().run(task)
            done.append(task.id)
            return outcome

    kills = set(range(len(run.plan.tasks)))
    for _ in range(len(run.plan.tasks)):
        with pytest.raises(Killed):
            run_here(run, Mortal)
    run_here(run, Mortal)
    assert sorted(done) == sorted(task.id for task in run.plan.tasks)


def test_run_again_it_starts_no_worker_and_damaged_it_alone_is_done_again(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_here(run)
    path = run.folder.output(sizes(run)[1], "size.json")
    written = path.read_bytes()
    path.write_bytes(b"{}")
    given: list[Task] = []

    class Noting(FakeWorker):
        def run(self, task: Task) -> Outcome:
            given.append(task)
            return super().run(task)

    run_here(run, Noting)
    assert given == [sizes(run)[1]] and path.read_bytes() == written
    monkeypatch.setattr(running, "LocalExecutor", lambda *given: pytest.fail("a worker was started"))
    run_here(run)


def test_journal_summary_and_progress_speak_of_it(run: Run) -> None:
    assert summarize(run.plan, run.folder).tasks["size"] == KindSummary("task", all=2, done=0, failed=0, left=2)
    printed = run_here(run)
    assert printed.splitlines()[-1].startswith(
        "calibration 1/1 judges, training 2/2 jobs, judging 42/42 images, size 2/2,"
    )
    of_kind = [e for e in read_journal(run.folder) if isinstance(e, TaskStarted | TaskEnded) and e.task == "size"]
    assert {event.description for event in of_kind} == {"size uce: cat", "size esd: cat"}
    assert sorted(event.event for event in of_kind) == ["ended", "ended", "started", "started"]
    assert summarize(run.plan, run.folder).tasks["size"] == KindSummary("task", all=2, done=2, failed=0, left=0)


def test_metrics_count_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[tuple[str, ...], float] = {}

    class Meter:
        def __init__(self, name: str) -> None:
            self.name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            seen[self.name, *sorted(tags.values())] = value

        inc = observe = set

    monkeypatch.setattr(
        prometheus, "_meters", lambda: {metric.name: Meter(metric.name) for metric in prometheus.PROMETHEUS_METRICS}
    )
    metrics = PrometheusMetrics(run.plan, RemainingTasks.everything(run.plan), 1)
    assert seen["efface_tasks", "size", "waiting"] == 2
    metrics.started(0, sizes(run)[0])
    metrics.ended(0, sizes(run)[0], Outcome.done(), will_retry=False)
    metrics.tick()
    assert (seen["efface_tasks", "done", "size"], seen["efface_tasks", "size", "waiting"]) == (1, 1)
    assert seen["efface_units", "size", "uce"] == 1 and ("efface_task_seconds", "size", "uce") in seen


def test_where_it_fails_its_model_fails_with_it_and_no_other(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    uce, esd = run.plan.jobs
    really = SizeTask.run

    def fail_for_uce(self: SizeTask, worker: Worker) -> None:
        if self.model.id == uce.id:
            raise JobFailure("no room")
        really(self, worker)

    monkeypatch.setattr(SizeTask, "run", fail_for_uce)

    class Careful(FakeWorker):
        def run(self, task: Task) -> Outcome:
            try:
                return super().run(task)
            except JobFailure as error:
                return Outcome.failed(str(error))

    run_here(run, Careful)
    assert run.folder.failure(uce) == Failure("size", "no room") and run.folder.failure(esd) is None


def test_what_it_takes_is_estimated_and_learned_by_its_kind(run: Run) -> None:
    known = Rates(device="cpu", seconds_per_image={}, seconds_per_job={}, seconds_per_task={"size": 7.0})
    assert estimate(run.plan, sizes(run), known).by_kind == {"size": {"uce": 7.0, "esd": 7.0}}
    assert estimate(run.plan, sizes(run), Rates(device="cpu", seconds_per_image={}, seconds_per_job={})).unknown == (
        "size by 'size' (2 tasks)",
    )
    run_here(run)
    (learned,) = [
        rates.seconds_per_task for rates in measure_rates(run.plan, run.folder.records(run.plan.tasks), run.plan.tasks)
    ]
    assert set(learned) == {"size"}


# metrics of a whole model, which a campaign names


def test_a_metric_that_a_campaign_names_is_measured_for_every_model(campaign: MakeCampaign, tmp_path: Path) -> None:
    both = {**EVALUATION, "metrics": ["weight-change", "compositional"]}
    run = open_run(campaign(methods=[{"method": "uce"}], evaluation=both), tmp_path / "run")
    run_here(run, Worker)
    task, judged = run.plan.of_kind(MetricTask)
    assert task.requires == (task.model.folder,)
    assert judged.requires == (task.model.folder, run.plan.calibrations[0].id)
    record, training = run.folder.record(task), run.folder.record(run.plan.trainings[0])
    assert record and training
    change = training.facts["weight_change"]
    assert record.facts["numbers"]["all.global_l2"] == change["all"]["global_l2"] > 0
    scores = json.loads(run.folder.scores.read_text())
    assert scores["metrics"]["uce"]["weight-change"] == record.facts["numbers"]
    assert 0 <= scores["metrics"]["uce"]["compositional"]["base_other_present"] <= 1


EVALUATION = {
    "images_per_prompt": 1,
    "prompts_per_concept": {"adjacent": 1, "retain": 1},
    "metrics": ["weight-change"],
}


def test_a_metric_waits_for_its_model(campaign: MakeCampaign, tmp_path: Path) -> None:
    run = open_run(campaign(methods=[{"method": "uce"}], evaluation=EVALUATION), tmp_path / "run")
    (task,) = run.plan.of_kind(MetricTask)
    queue = Queue([task], run.plan.products, workers=1)
    assert queue.take(None) is None
    queue.done(run.plan.trainings[0])
    assert queue.take(None) == task


def test_the_mean_over_the_models_of_a_label_is_reported(
    campaign: MakeCampaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = iter([3.0, 5.0])

    @METRICS.register("counting")
    def counting(base: Base, delta: Delta) -> dict[str, float]:
        return {"count": next(counts)}

    methods = [{"method": "esd", "config": {"steps": 1, "rollout_steps": 3}}]
    wanted = campaign(methods=methods, seeds=[0, 1], evaluation={**EVALUATION, "metrics": ["counting"]})
    run = open_run(wanted, tmp_path / "run")
    run_here(run, Worker)
    assert json.loads(run.folder.scores.read_text())["metrics"] == {"esd": {"counting": {"count": 4.0}}}


def test_tasks_about_the_base_and_trainings_find_it_unedited(campaign: MakeCampaign, tmp_path: Path) -> None:
    @METRICS.register("edited-tensors")
    def edited(base: Base, delta: Delta) -> dict[str, float]:
        originals, now = base.originals(), base.tensors()
        return {"edited": float(sum(not originals[name].equal(now[name]) for name in now))}

    wanted = campaign(methods=[{"method": "uce"}], evaluation={**EVALUATION, "metrics": ["edited-tensors"]})
    run = open_run(wanted, tmp_path / "run")
    worker = Worker(running.worker_context(run))
    (training,), (task,) = run.plan.trainings, run.plan.of_kind(MetricTask)
    assert worker.run(training).is_done
    for again in (task, training):
        worker.set_resident(training.model)  # as after a shard of it
        run.folder.withdraw(run.folder.record_file(again))
        assert worker.run(again).is_done
    record = run.folder.record(task)
    assert record and record.facts["numbers"] == {"edited": 0.0}


def test_a_task_that_a_worker_out_of_reach_has_finished_is_not_done_again(run: Run) -> None:
    run_here(run)
    task = sizes(run)[0]
    before = run.folder.record_file(task).stat().st_mtime_ns
    assert Worker(running.worker_context(run)).run(task).is_done
    assert run.folder.record_file(task).stat().st_mtime_ns == before


def test_an_unknown_metric_is_refused_before_anything_is_done(campaign: MakeCampaign, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown metric 'weight-chang': did you mean 'weight-change'"):
        open_run(campaign(evaluation={**EVALUATION, "metrics": ["weight-chang"]}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_metric_that_is_not_finite_fails_its_model(campaign: MakeCampaign, tmp_path: Path) -> None:
    METRICS.register("endless")(lambda base, delta: {"size": float("inf")})
    wanted = campaign(methods=[{"method": "uce"}], evaluation={**EVALUATION, "metrics": ["endless"]})
    run = open_run(wanted, tmp_path / "run")
    run_here(run, Worker)
    failure = run.folder.failure(run.plan.jobs[0])
    assert failure and (failure.stage, failure.reason) == (
        "metric endless",
        "metric 'endless': size is inf, should be a finite number",
    )


def test_progress_counts_units_of_an_unknown_kind(run: Run) -> None:
    remaining = RemainingTasks.everything(run.plan)
    display = Display(run.plan, remaining, 1, Console(file=io.StringIO()), run.folder)
    display.started(0, sizes(run)[0])
    assert "size 0/2" in display.line() and "size uce: cat" in display.line()
    display.ended(0, sizes(run)[0], Outcome.done(), will_retry=False)
    assert "size 1/2" in display.line()
