"""A search: its file, its trials rung by rung, its front; and the whole of it, killed on the way."""

import csv
import io
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import ray
from rich.console import Console
from tiny_campaign import write_yaml
from tiny_search import UCE, MakeSearch, search_dict

from efface.cluster.search.pareto import front_of, pareto_front
from efface.cluster.search.result import TrialCost, TrialResult, TrialRow, TrialScores
from efface.cluster.search.search import SearchResults, run_search
from efface.cluster.search.spec import Search, read_search
from efface.cluster.search.study import Study
from efface.cluster.search.trial import Trial, check_axes, rung_shards
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.training import TrainingTask, training_facts
from efface.config_files import list_configs
from efface.errors import UserError
from efface.eval.weight_change_values import Norms, WeightChange
from efface.train.training_metrics import TrainingMetrics


@pytest.fixture
def search_file(campaign_inputs: Path, tmp_path: Path) -> Callable[..., str]:
    return lambda **changes: write_yaml(tmp_path / "search.yaml", search_dict(campaign_inputs, **changes))


POINT: dict[str, Any] = {"learning_rate": 1e-3, "steps": 2}


# the file


@pytest.mark.parametrize(
    ("changes", "reported"),
    [
        ({"spaces": {}}, "unknown key 'spaces', did you mean 'space'"),
        ({"space": {"steps": {"intger": [1, 3]}}}, "unknown key 'space.steps.intger', did you mean 'integer'"),
        ({"space": {"step": {"integer": [1, 3]}}}, "space.step is no field of 'esd', did you mean 'steps'"),
        ({"space": {"steps": {"integer": [3, 1]}}}, "low below high"),
        ({"space": {"steps": {"integer": [0, 3]}}}, "steps: .*greater than or equal to 1, not 0"),
        ({"space": {"steps": {"uniform": [1, 3]}}}, "steps: .*integer.* not 2.23"),
        ({"space": {"variant": {"choice": ["x", "y"]}}}, "variant: .*not 'y'"),
        ({"space": {"eta": {"loguniform": [0, 1]}}}, "begin above 0"),
        ({"space": {"eta": {"uniform": [0, 1], "choice": [1, 2]}}}, "exactly one of uniform, loguniform"),
        ({"space": {"eta": {"choice": [1, 1]}}}, "names a value twice"),
        ({"space": {}}, "at least 1 item"),
        ({"space": {"rollout_steps": {"integer": [1, 3]}}}, "'rollout_steps' is in config and in space"),
        ({"config": {"eta": [1, 2]}}, "eta: .*number"),
        ({"rungs": [2, 2]}, "rising numbers"),
        ({"rungs": [0, 2]}, "rising numbers"),
        ({"method": "edd"}, "unknown method 'edd'"),
        ({"evaluation": {"images_per_prompt": 4}}, "given by rungs"),
        ({"evaluation": {"judges": ["a", "b"]}}, "uses one"),
    ],
)
def test_a_wrong_search_is_refused_in_a_sentence(search_file: Any, changes: dict[str, Any], reported: str) -> None:
    with pytest.raises(UserError, match=reported):
        read_search(search_file(**changes))


def test_an_axis_that_is_left_out_leaves_no_err_to_search_by(search: MakeSearch, tmp_path: Path) -> None:
    wanted = search(evaluation={"prompts_per_concept": {"adversarial": 0}})
    with pytest.raises(UserError, match="nothing is asked on the axis adversarial"):
        check_axes(Trial(wanted, RunFolder(tmp_path), POINT).plan)


@pytest.mark.parametrize("name", list_configs("searches"))
def test_every_shipped_search_can_be_read(name: str) -> None:
    assert read_search(name).name == name


# a trial


def finish(folder: RunFolder, training: TrainingTask, weight_change: WeightChange) -> None:
    """Leave the record of a training that took 7 s."""
    folder.finish(training, [], seconds=7.0, **training_facts(training.model, TrainingMetrics(), weight_change))


def change(relative_l2: float) -> WeightChange:
    norms = Norms(1e-9, 1.0, relative_l2, 1.0, 1, 10)
    return WeightChange(norms, norms, {})


def test_the_shards_of_a_rung_are_the_images_that_are_new_there(search: MakeSearch, tmp_path: Path) -> None:
    plan = Trial(search(rungs=[1, 3, 4]), RunFolder(tmp_path), POINT).plan
    parts = rung_shards(plan, (1, 3, 4), 5)
    seeds = [{q.seed for shard in part for q in shard.eval_requests} for part in parts]
    assert seeds == [{0}, {1, 2}, {3}]
    model = plan.jobs[0].id
    asked = [q for part in parts for shard in part if shard.model.id == model for q in shard.eval_requests]
    wanted = [q for shard in plan.shards[model] for q in shard.eval_requests]
    assert sorted(map(repr, asked)) == sorted(map(repr, wanted))
    ids = [shard.id for part in parts for shard in part]
    assert len(set(ids)) == len(ids) and max(len(s.eval_requests) for part in parts for s in part) <= 5


def test_what_is_judged_on_the_first_rungs_is_the_same_however_many_follow(search: MakeSearch, tmp_path: Path) -> None:
    def ids(rungs: list[int]) -> list[str]:
        return [shard.id for shard in Trial(search(rungs=rungs), RunFolder(tmp_path), POINT).rungs[0]]

    assert ids([1, 2]) == ids([1, 4, 8])


def test_the_images_follow_once_all_jobs_are_done(search: MakeSearch, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    trial = Trial(search(concepts={"targets": ["cat", "bus"]}), folder, POINT)
    first, second = trial.plan.trainings
    assert trial.remaining(1).tasks == [first, second]
    finish(folder, first, change(0.1))
    assert trial.remaining(1).tasks == [second]
    finish(folder, second, change(0.1))
    images = [{(q.prompt, q.seed) for s in trial.remaining(rung).shards for q in s.eval_requests} for rung in (0, 1)]
    assert {seed for _, seed in images[0]} == {0} and {seed for _, seed in images[1]} == {0, 1, 2}
    assert {shard.model.id for shard in trial.remaining(0).shards} == {model.id for model in trial.plan.jobs}


def test_a_job_that_failed_gives_the_lowest_score_and_leaves_nothing_to_do(search: MakeSearch, tmp_path: Path) -> None:
    trial = Trial(search(), RunFolder(tmp_path), POINT)
    trial.folder.fail(trial.plan.jobs[0], "training", "the loss is nan at step 1")
    assert trial.remaining(0).is_empty
    assert trial.result(0) == TrialResult("failed", -1, reason="the loss is nan at step 1")


@pytest.mark.parametrize(("changed", "score"), [(0.04, -0.5), (0.2, -0.9)])
def test_a_trial_over_the_budget_is_not_judged_and_scores_below_every_other(
    search: MakeSearch, tmp_path: Path, changed: float, score: float
) -> None:
    folder = RunFolder(tmp_path)
    trial = Trial(search(max_weight_change=0.02), folder, POINT)
    (training,) = trial.plan.trainings
    finish(folder, training, change(changed))
    found = trial.result(0)
    assert found.cost and found.scores is None
    assert (found.state, found.cost.weight_change, found.cost.seconds) == ("over budget", changed, 7)
    assert found.score == pytest.approx(score) and trial.remaining(0).is_empty


# the front


def point(err: float, weight_change: float, seconds: float) -> dict[str, float]:
    return {"err_mean": err, "weight_change": weight_change, "seconds": seconds}


def test_the_front_is_what_no_other_point_dominates() -> None:
    points = [
        point(0.9, 2.0, 10),  # on the front
        point(0.9, 2.0, 11),  # beaten by the first, which is faster
        point(0.8, 1.0, 10),  # on it: less change than the first
        point(0.7, 1.0, 10),  # beaten by the third
        point(0.1, 9.0, 1),  # on it: the fastest
        point(0.9, 2.0, 10),  # the same as the first: neither beats the other
    ]
    assert pareto_front(points) == [0, 2, 4, 5]
    assert pareto_front([]) == []


def test_only_trials_judged_on_the_last_rung_are_on_the_front_and_a_config_once() -> None:
    def row(name: str, images: int, err: float) -> TrialRow:
        scores = TrialScores(err, (0.0, 1.0), {}, images)
        return TrialRow(1, name, {}, True, TrialResult("judged", err, TrialCost(1.0, 1e-9, 1.0, ()), scores))

    failed = TrialRow(1, "c", {}, True, TrialResult("failed", -1.0, reason="the loss is nan"))
    rows = [row("a", 1, 1.0), row("b", 2, 0.5), row("b", 2, 0.5), failed]
    assert front_of(rows, 2) == [row("b", 2, 0.5)]


def test_the_front_begins_with_the_best_err_then_the_least_change_then_the_fastest() -> None:
    def row(number: int, err: float, weight_change: float, seconds: float) -> TrialRow:
        cost = TrialCost(weight_change, 1e-9, seconds, ())
        return TrialRow(
            number, str(number), {}, True, TrialResult("judged", err, cost, TrialScores(err, (0, 1), {}, 2))
        )

    rows = [row(1, 0.5, 1.0, 1.0), row(2, 0.9, 3.0, 1.0), row(3, 0.9, 2.0, 9.0)]
    assert [found.number for found in front_of(rows, 2)] == [3, 2, 1]


# the whole


def execute(search: Search, out: Path, trials: int | None = None, workers: int = 0) -> tuple[SearchResults, str]:
    said = io.StringIO()
    found = run_search(search, out, trials, workers, None, Console(file=said, width=200))
    return found, said.getvalue()


def done_tasks(out: Path) -> dict[str, bytes]:
    """Every record of the run folder, the study apart."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("*/*/*.json")}


def study_rows(search: Search, out: Path) -> list[TrialRow]:
    return Study(search, out / "study.jsonl").rows


@pytest.mark.parametrize("workers", [pytest.param(0, id="in this process"), pytest.param(1, id="on Ray")])
def test_a_search_finds_a_front(search: MakeSearch, tmp_path: Path, workers: int) -> None:
    out = tmp_path / "search"
    found, said = execute(search(**UCE), out, 2, workers)
    assert not ray.is_initialized()
    assert len(found.rows) == 2 and all(row.ended and row.result.state == "judged" for row in found.rows)
    assert all(
        0.1 <= float(row.point["ridge"]) <= 10 and row.point["tokens"] in ("last-subject", "all") for row in found.rows
    )
    assert "trial 1 (ridge=" in said and "trial 2 (ridge=" in said
    assert found.front and {row.result.scores.images_per_prompt for row in found.front} == {3}

    rows = list(csv.DictReader((out / "trials.csv").open()))
    assert [float(row["ridge"]) for row in rows] == [row.point["ridge"] for row in found.rows]
    assert [float(row["err_mean"]) for row in rows] == [row.result.scores.err_mean for row in found.rows]
    front = json.loads((out / "pareto.json").read_text())
    assert front["front"] == json.loads(json.dumps([row.as_json() for row in found.front]))
    assert 0 <= front["base"]["err_mean"] <= 1
    deltas = [out / "jobs" / job / "delta.safetensors" for row in found.front for job in row.result.cost.jobs]
    assert deltas and all(delta.is_file() for delta in deltas)

    shown = io.StringIO()
    found.show(Console(file=shown, width=200))
    assert "2 trials: 2 judged; the unedited base has ERR" in shown.getvalue()
    assert all(f"{row.result.scores.err_mean:.3f}" in shown.getvalue() for row in found.front)
    assert str(out / "pareto.csv") in shown.getvalue()

    # Typed again, nothing is done: not even Ray is started.
    before = done_tasks(out)
    again, said = execute(search(**UCE), out, 2, workers)
    assert again.rows == found.rows and done_tasks(out) == before and said == ""
    with pytest.raises(UserError, match="holds another run"):
        execute(search(**UCE, seed=1), out)
    assert read_search(out / "search.yaml") == search(**UCE)


def test_more_trials_begin_after_those_that_are_there(search: MakeSearch, tmp_path: Path) -> None:
    out = tmp_path / "search"
    found, _ = execute(search(**UCE), out, trials=2)
    before = done_tasks(out)
    more, said = execute(search(**UCE), out, trials=3)
    assert [row.point for row in more.rows[:2]] == [row.point for row in found.rows]
    assert len(more.rows) == 3 and more.rows[2].point not in [row.point for row in found.rows]
    assert before.items() <= done_tasks(out).items()
    assert "trial 3 (" in said and "trial 1 (" not in said


def start(file: str, out: Path, log: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "efface", "search", file, "--out", str(out), "--workers", "1"]
    return subprocess.Popen(command, stdout=log.open("ab"), stderr=subprocess.STDOUT)


def wait_for(pattern: str, out: Path, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 300
    while not list(out.glob(pattern)):
        assert process.poll() is None and time.monotonic() < end, f"no {pattern} came"
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_search_that_is_killed_or_stopped_goes_on_where_it_was(
    search: MakeSearch, search_file: Any, tmp_path: Path, how: signal.Signals
) -> None:
    out, log = tmp_path / "search", tmp_path / "log.txt"
    file, wanted = search_file(trials=3), search(trials=3)
    process = start(file, out, log)
    wait_for("jobs/esd-*/record.json", out, process)
    process.send_signal(how)
    assert process.wait(120) == (130 if how == signal.SIGTERM else -signal.SIGKILL), log.read_text()
    before, known = done_tasks(out), study_rows(wanted, out)
    assert not (out / "pareto.json").exists() and not all(row.ended for row in known)

    assert start(file, out, log).wait(300) == 0, log.read_text()
    after = study_rows(wanted, out)
    assert len(after) == 3 and all(row.ended for row in after)
    assert [row.point for row in after[: len(known)]] == [row.point for row in known]
    records = {name for name in before if name.startswith(("jobs", "evaluations"))}
    assert records and {name: before[name] for name in records}.items() <= done_tasks(out).items()
    # A lone worker judges one trial after the other, so nothing was tried twice.
    assert len(list(out.glob("jobs/esd-*"))) == 3
