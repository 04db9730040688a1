"""The simulator: cases that can be worked out by hand, and what must hold for any cluster and any campaign."""

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import pairwise
from types import SimpleNamespace
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_campaign import ESD

from benchmarks.scheduler import simulate as simulator
from benchmarks.scheduler.simulate import FailureModel, Forecast, Span, VirtualGPUs, simulate
from efface.cluster.campaign.rates import Rates, durations, read_rates
from efface.cluster.scheduler.dispatch import dispatch
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.tasks.calibration import CalibrationTask
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.training import TrainingTask
from efface.errors import JobFailure, UserError
from efface.train.job import Job

INF = float("inf")


def rates(load: float = 0.0, start: float = 0.0, **known: Any) -> Rates:
    tables = {"seconds_per_image": {}, "seconds_per_job": {}, **known}
    return Rates(device="a GPU", load_seconds=load, start_seconds=start, **tables)


Task = tuple[RemainingTasks, dict[str, float]]


def task(
    jobs: dict[str, float] | None = None,
    shards: dict[str, Sequence[float]] | None = None,
    base: Sequence[float] = (),
    calibrations: Sequence[float] = (),
) -> Task:
    """What is left, and its seconds: jobs by name, shards of models (those without a job exist), the base's shards."""
    jobs, shards = jobs or {}, shards or {}
    names = {*jobs, *shards}
    models = {name: Model("uce", cast(Job, SimpleNamespace(id=name, stem=name)), "0" * 64) for name in sorted(names)}
    unedited = Model("base", None, "0" * 64)
    tasks = [(models[name], shards.get(name, ())) for name in models] + [(unedited, base)]
    calibration_tasks = [(CalibrationTask("judge", f"trial {i}"), seconds) for i, seconds in enumerate(calibrations)]
    trials = tuple(calibration.id for calibration, _ in calibration_tasks)
    cut = [
        (Shard(m, i, (), f"{m.id}/{i}", (m.folder, *trials)), seconds)
        for m, its in tasks
        for i, seconds in enumerate(its)
    ]
    trainings = [TrainingTask(models[name]) for name in jobs]
    remaining = RemainingTasks(
        [*(calibration for calibration, _ in calibration_tasks), *trainings, *(shard for shard, _ in cut)],
        {unedited.folder, *(model.folder for name, model in models.items() if name not in jobs)},
    )
    return remaining, {**jobs, **{task.id: seconds for task, seconds in [*cut, *calibration_tasks]}}


def forecast(what: Task, speeds: Sequence[float], known: Rates | None = None) -> Forecast:
    return simulate(*what, speeds, known or rates())


def history(what: Task, speeds: Sequence[float], known: Rates, failures: FailureModel) -> tuple[list[Span], set[str]]:
    """What the GPUs did, and the models that were given up."""
    gpus, given_up = VirtualGPUs(what[1], speeds, known, failures), simulator._FailureRecorder()
    dispatch(what[0], given_up, gpus, [])
    return gpus.history, given_up.models


def test_two_equal_jobs_on_two_gpus_take_as_long_as_one_of_them() -> None:
    found = forecast(task({"a": 10, "b": 10}, {"a": [2, 2], "b": [2, 2]}), [1, 1])
    assert (found.makespan, found.bound, found.busy, found.ratio) == (14, 14, 1, 1)


def test_one_long_job_is_what_all_wait_for() -> None:
    short = {name: 10.0 for name in "bcde"}
    found = forecast(task({"a": 100, **short}, {"a": [5], **{name: [5] for name in short}}), [1, 1])
    assert (found.makespan, found.bound, found.bound_by) == (105, 105, "chain")
    assert found.busy == pytest.approx((105 + 4 * 15) / (2 * 105))


def test_a_worker_judges_the_model_it_holds_so_that_each_is_loaded_once() -> None:
    found = forecast(task(shards={"a": [3] * 4, "b": [3] * 4}), [1, 1], rates(load=1))
    assert (found.loads, found.makespan) == (2, 1 + 4 * 3)


def test_the_base_is_judged_without_loading_anything() -> None:
    assert forecast(task(base=[3, 3]), [1], rates(load=1)).makespan == 6


def test_a_model_is_loaded_for_its_judging_even_where_it_was_trained() -> None:
    found = forecast(task({"a": 10}, {"a": [2, 2]}), [1], rates(load=1))
    assert (found.loads, found.makespan, found.bound) == (1, 15, 15)


def test_idle_gpus_share_the_shards_of_the_only_model() -> None:
    found = forecast(task({"a": 10}, {"a": [2] * 4}), [1] * 4)
    assert found.makespan == 12


def test_the_base_is_judged_while_models_are_trained() -> None:
    found = forecast(task({"a": 10}, {"a": [2]}, base=[3, 3, 3]), [1, 1])
    assert found.makespan == 12


def test_no_image_is_judged_before_the_judges_are_calibrated() -> None:
    assert forecast(task(base=[2, 2], calibrations=[3]), [1, 1]).makespan == 5
    assert forecast(task(base=[2, 2], calibrations=[3, 4]), [1, 1]).makespan == 6


def test_a_slow_gpu_takes_longer_in_proportion() -> None:
    found = forecast(task({"a": 10, "b": 10}, {"a": [2], "b": [2]}), [1, 0.5])
    # The bound's optimist trains both one after the other on the fast GPU, or one on each: 20 s, and 2 s of judging,
    # which the fast one does, as it has nothing else to do by then.
    assert (found.makespan, found.bound_by) == (20 + 2, "rounds") and found.bound == pytest.approx(20 + 2)
    assert forecast(task(base=[3]), [0.5]).makespan == 6


def test_every_worker_starts_before_it_works() -> None:
    found = forecast(task(base=[3, 3]), [1, 1], rates(start=60))
    assert (found.makespan, found.bound, found.lpt) == (63, 63, 63)


@pytest.fixture
def breaks(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A function that says after how many seconds the tasks started fail, or their workers are preempted."""

    def script(failures: list[float], preemptions: list[float]) -> None:
        due = {1.0: iter(failures), 2.0: iter(preemptions)}
        monkeypatch.setattr(VirtualGPUs, "_sample_delay", lambda self, per_hour: next(due[per_hour], INF))

    return script


RARE = FailureModel(failures_per_hour=1.0, preemptions_per_hour=2.0)


def test_work_that_fails_is_done_again(breaks: Any) -> None:
    breaks([4], [])
    found = simulate(*task({"a": 10}, {"a": [2]}), [1], rates(), RARE)
    assert (found.makespan, found.failures, found.given_up, found.busy) == (4 + 10 + 2, 1, 0, 1)


def test_a_preempted_worker_starts_anew_and_loads_its_model_anew(breaks: Any) -> None:
    breaks([], [INF, 3])
    found = simulate(*task({"a": 10}, {"a": [4]}), [1], rates(load=1, start=5), RARE)
    assert (found.makespan, found.loads, found.failures) == (5 + 10 + 3 + 5 + 1 + 4, 2, 1)


def test_a_preempted_worker_loses_the_piece_in_line_too(breaks: Any) -> None:
    breaks([], [1])
    remaining = task(base=[4, 4])
    spans, _ = history(remaining, [1], rates(), RARE)
    assert [(s.fate, s.start, s.end) for s in spans] == [("preemption", 0, 1), ("done", 1, 5), ("done", 5, 9)]


def test_a_model_that_breaks_twice_is_given_up_with_its_shards(breaks: Any) -> None:
    breaks([4, 4], [])
    found = simulate(*task({"a": 10}, {"a": [2]}, base=[1]), [1], rates(), RARE)
    assert (found.given_up, found.ratio, found.makespan) == (1, None, 4 + 4 + 1)


def test_judges_that_break_twice_end_the_run(breaks: Any) -> None:
    breaks([1, 1], [])
    with pytest.raises(JobFailure, match="cannot be calibrated"):
        simulate(*task(base=[2], calibrations=[3]), [1], rates(), RARE)


def test_the_last_jobs_begin_before_the_judging_of_what_is_made() -> None:
    # Six jobs on two GPUs: two rounds may be judged on the way, then 4 of a worker's jobs are the last ones.
    jobs = {name: 10.0 for name in "abcdef"}
    remaining = task(jobs, {name: [1.0] for name in jobs})
    spans, _ = history(remaining, [1, 1], rates(), FailureModel())
    kinds = [isinstance(s.task, Shard) for s in sorted(spans, key=lambda s: s.start)]
    assert kinds == [False] * 6 + [True] * 6


def test_a_worker_always_has_its_next_shard_in_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    in_hand = []
    real = VirtualGPUs.outcomes
    monkeypatch.setattr(
        VirtualGPUs, "outcomes", lambda gpus, timeout: in_hand.append(len(gpus._queues[0])) or real(gpus, timeout)
    )
    forecast(task(base=[1] * 6), [1])
    assert in_hand == [2, 2, 2, 2, 2, 1]


seconds = st.floats(0.1, 100)
worlds = st.builds(
    task,
    st.dictionaries(st.sampled_from("abcdefgh"), seconds),
    st.dictionaries(st.sampled_from("abcdefghij"), st.lists(seconds, max_size=5)),
    st.lists(seconds, min_size=1, max_size=5),
    st.lists(seconds, max_size=2),
)
clusters = st.lists(st.sampled_from([0.25, 0.5, 1.0, 3.0]), min_size=1, max_size=9)
overheads = st.builds(rates, st.floats(0, 5), st.floats(0, 5))


EXAMPLES = pytest.mark.parametrize("examples", [75, pytest.param(1000, marks=pytest.mark.slow)])


@EXAMPLES
def test_no_cluster_is_faster_than_the_bound(examples: int) -> None:
    settings(max_examples=examples)(given(worlds, clusters, overheads)(is_within_the_bound))()


def is_within_the_bound(remaining: Task, speeds: list[float], known: Rates) -> None:
    found = simulate(*remaining, speeds, known)
    assert found.makespan >= found.bound * (1 - 1e-9)
    assert 0 <= found.busy <= 1 + 1e-9


@EXAMPLES
def test_everything_is_done_once_in_order_and_one_at_a_time(examples: int) -> None:
    worlds_that_break = given(worlds, clusters, overheads, st.integers(0, 9), st.sampled_from([0, 2, 20]))
    settings(max_examples=examples)(worlds_that_break(is_done_once_in_order_and_one_at_a_time))()


def is_done_once_in_order_and_one_at_a_time(
    remaining: Task, speeds: list[float], known: Rates, seed: int, per_hour: float
) -> None:
    try:
        spans, worker_lost = history(remaining, speeds, known, FailureModel(per_hour, per_hour, seed))
    except JobFailure:
        return
    wanted, done = remaining[0], {s.task.id: s for s in spans if s.fate == "done"}
    times = Counter(s.task.id for s in spans if s.fate == "done")
    assert all(times[s.task.id] == 1 for s in done.values() if not isinstance(s.task, Shard))
    assert max(times.values(), default=0) <= 2  # a straggling shard is started a second time
    assert {c.id for c in wanted.calibrations} <= set(done)
    assert all(job.id in done or job.id in worker_lost for job in wanted.trainings)
    assert all(shard.id in done or shard.model.id in worker_lost for shard in wanted.shards)
    assert not worker_lost or any(s.fate != "done" for s in spans)
    calibrated = max((done[c.id].end for c in wanted.calibrations), default=0.0)
    made = {job.id: done[job.id].end for job in wanted.trainings if job.id in done}
    for span in spans:
        if isinstance(span.task, Shard):
            assert span.start >= max(calibrated, made.get(span.task.model.id, 0.0))
    for worker in range(len(speeds)):
        own = sorted((s for s in spans if s.worker == worker), key=lambda s: s.start)
        assert all(first.end <= second.start for first, second in pairwise(own))
        assert all(s.start >= known.start_seconds for s in own)


def test_without_errors_nothing_is_left_undone() -> None:
    remaining = task({"a": 3, "b": 50, "c": 7}, {"a": [1] * 9, "b": [2], "d": [5] * 3}, [4] * 6, [2, 6])
    spans, worker_lost = history(remaining, [1, 1, 0.5], rates(1, 1), FailureModel())
    assert {s.task.id for s in spans} == set(remaining[1]) and not worker_lost


def test_the_same_seed_gives_the_same_day_and_another_seed_another() -> None:
    jobs = {f"job {i}": 100.0 for i in range(20)}
    remaining = task(jobs, {name: [10.0] * 5 for name in jobs}, [10.0] * 9)
    days = [simulate(*remaining, [1] * 6, rates(1, 5), FailureModel(2, 1, seed)) for seed in (0, 0, 1)]
    assert days[0] == days[1] != days[2]
    assert days[0].failures > 0


def test_1024_gpus_and_600_jobs_are_within_5_percent_of_the_bound() -> None:
    jobs = {f"job {i}": 1050.0 for i in range(600)}
    remaining = task(jobs, {name: [64.0] * 15 for name in jobs}, [64.0] * 62, [320.0])
    found = forecast(remaining, [1.0] * 1024, rates(0.5, 60))
    assert found.ratio and found.ratio < 1.05


@pytest.fixture
def tiny(campaign_file: Any) -> Iterator[str]:
    yield str(campaign_file())


def test_a_plans_durations_follow_its_images_and_methods(plan: Any) -> None:
    made = plan()
    known = rates(seconds_per_image={"tiny": 2.0}, seconds_per_job={"uce": 5.0, "esd": 70.0})
    found = durations(made, known)
    assert [found[job.id] for job in made.jobs] == [5, 70]
    assert [found[shard.id] for shard in made.shards[made.models[0].id]] == [10, 10, 8]
    # Each of the four concepts once with each of two seeds.
    assert found[made.calibrations[0].id] == 2.0 * 4 * 2
    assert set(found) == {task.id for task in made.tasks}


def test_spread_is_about_the_mean_and_random_by_task_and_seed(plan: Any) -> None:
    made = plan(methods=[ESD], seeds=[0, 1])
    known = rates(seconds_per_image={"tiny": 2.0}, seconds_per_job={"esd": 70.0}, spread=0.1)
    sampled = [durations(made, known, seed) for seed in range(50)]
    assert durations(made, known, 0) == sampled[0] != sampled[1]
    trained = [found[job.id] for found in sampled for job in made.jobs]
    assert len(set(trained)) == 100
    mean = sum(trained) / len(trained)
    assert mean == pytest.approx(70, rel=0.03)
    assert (sum((t - mean) ** 2 for t in trained) / len(trained)) ** 0.5 == pytest.approx(7, rel=0.2)


def test_a_method_or_recipe_without_a_rate_is_named(plan: Any) -> None:
    with pytest.raises(UserError, match="seconds_per_job knows no method 'esd', only uce"):
        durations(plan(), rates(seconds_per_image={"tiny": 2.0}, seconds_per_job={"uce": 5.0}))
    with pytest.raises(UserError, match="seconds_per_image knows no recipe 'tiny', only reference"):
        durations(plan(), rates(seconds_per_image={"reference": 2.0}))


def test_the_shipped_rates_know_the_shipped_recipes_and_what_every_method_is_counted_by() -> None:
    known = read_rates("h200")
    assert {"reference", "fast-sd"} <= set(known.seconds_per_image)
    assert set(known.tflops) == {"fp32", "bf16"}


OPTIONS = {"speeds": "1", "failures_per_hour": 0.0, "preemptions_per_hour": 0.0, "seed": 0, "as_json": True}


def test_the_command_prints_a_forecast_for_each_size(
    tiny: str, tmp_path: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "rates.json"
    known = rates(seconds_per_image={"tiny": 2.0}, seconds_per_job={"uce": 5.0, "esd": 70.0})
    file.write_text(known.model_dump_json())
    simulator.main(tiny, gpus="1,2", rates=str(file), **OPTIONS)
    output = json.loads(capsys.readouterr().out)
    # Two jobs, three models of 14 images, 8 images of calibration, on one GPU without any overhead.
    assert output["forecasts"][0]["makespan"] == 5 + 70 + 2.0 * (3 * 14 + 8)
    assert [f["gpus"] for f in output["forecasts"]] == [1, 2]
    simulator.main(tiny, gpus="1", rates=str(file), **{**OPTIONS, "as_json": False})
    assert "0:02:55" in capsys.readouterr().out


@pytest.mark.parametrize("wrong", [{"gpus": "8,x"}, {"gpus": "0"}, {"gpus": "1.5"}, {"gpus": ""}, {"speeds": "-1"},
                                   {"speeds": "nan"}, {"rates": "h2000"}])  # fmt: skip
def test_a_wrong_option_is_answered_in_a_sentence(tiny: str, wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError):
        simulator.main(tiny, **{"gpus": "1", "rates": "h200", **OPTIONS, **wrong})
