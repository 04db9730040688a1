"""A search: its file, its trials rung by rung, its ledger, and the same search whole on Ray Tune, killed on the way."""

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
from tiny_campaign import LIMITS, write_yaml

from efface.cluster.search.ledger import Ledger
from efface.cluster.search.pareto import front_of, pareto_front
from efface.cluster.search.search import SearchResults, run_search
from efface.cluster.search.spec import Search, read_search
from efface.cluster.search.trial import Trial, check_axes, rung_shards
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.task import Outcome
from efface.cluster.tasks.training import TrainingMetrics, training_facts
from efface.config_files import list_configs, parse
from efface.errors import Stopped, UserError

MakeSearch = Callable[..., Search]


def search_dict(campaign_inputs: Path, **changes: Any) -> dict[str, Any]:
    """A search of ESD on one target; `changes` replace its keys."""
    return {
        "name": "tiny",
        "base": str(campaign_inputs / "base.yaml"),
        "concepts": {"targets": ["cat"]},
        "method": "esd",
        "config": {"rollout_steps": 3},
        "space": {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "steps": {"integer": [1, 3]}},
        "trials": 4,
        "rungs": [1, 3],
        "evaluation": {"prompts_per_concept": LIMITS, "shard_size": 5},
        **changes,
    }


@pytest.fixture
def search(campaign_inputs: Path) -> MakeSearch:
    """A function from changed keys to a search."""
    return lambda **changes: parse(Search, search_dict(campaign_inputs, **changes), "search")


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
        ({"evaluation": {"images_per_prompt": 4}}, "said by rungs"),
        ({"evaluation": {"judges": ["a", "b"]}}, "goes by one"),
    ],
)
def test_a_wrong_search_is_told_in_a_sentence(search_file: Any, changes: dict[str, Any], reported: str) -> None:
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


class Doer:
    """Does nothing but remember; work ends as `outcome` says."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self.asked: list[Any] = []

    def __call__(self, task: Any) -> Outcome:
        self.asked.append(task)
        return self.outcome


def test_the_shards_of_a_rung_are_the_images_that_come_new(search: MakeSearch, tmp_path: Path) -> None:
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


def test_work_that_fails_gives_the_lowest_score_and_is_not_tried_again(search: MakeSearch, tmp_path: Path) -> None:
    trial = Trial(search(), RunFolder(tmp_path), POINT)
    run_task = Doer(Outcome.failed("the loss is nan at step 1"))
    for _ in range(2):
        found = trial.judge(0, run_task)
        assert (found["state"], found["score"], found["reason"]) == ("failed", -1, "the loss is nan at step 1")
    assert run_task.asked == [trial.plan.trainings[0]]


def test_work_that_breaks_is_left_to_tune_and_work_laid_down_to_the_driver(search: MakeSearch, tmp_path: Path) -> None:
    trial = Trial(search(), RunFolder(tmp_path), POINT)
    with pytest.raises(RuntimeError, match="out of luck"):
        trial.judge(0, Doer(Outcome.error("out of luck")))
    with pytest.raises(Stopped):
        trial.judge(0, Doer(Outcome.stopped()))


def change(relative_l2: float) -> dict[str, Any]:
    return {
        "all": {"relative_l2": relative_l2, "challenge": 1e-9, "parameters": 10},
        "unet": {"parameters": 9},
        "groups": {},
    }


@pytest.mark.parametrize(("changed", "score"), [(0.04, -0.5), (0.2, -0.9)])
def test_a_trial_over_the_budget_is_not_judged_and_scores_below_every_other(
    search: MakeSearch, tmp_path: Path, changed: float, score: float
) -> None:
    folder = RunFolder(tmp_path)
    trial = Trial(search(max_weight_change=0.02), folder, POINT)
    (training,) = trial.plan.trainings
    facts = training_facts(training.model, TrainingMetrics(), change(changed))
    folder.finish(training, [], seconds=7.0, **facts)
    run_task = Doer(Outcome.done())
    found = trial.judge(0, run_task)
    assert (found["state"], found["weight_change"], found["seconds"]) == ("over budget", changed, 7)
    assert found["score"] == pytest.approx(score) and run_task.asked == []


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
    def row(name: str, images: int, err: float) -> dict[str, Any]:
        return {"id": name, "state": "judged", "images_per_prompt": images, **point(err, 1.0, 1.0)}

    rows = [row("a", 1, 1.0), row("b", 2, 0.5), row("b", 2, 0.5), {"id": "c", "state": "failed", "score": -1.0}]
    assert front_of(rows, 2) == [row("b", 2, 0.5)]


# the ledger


def judged(score: float, images: int) -> dict[str, Any]:
    return {"state": "judged", "score": score, "images_per_prompt": images, "trial_id": "Tune's own"}


def test_the_ledger_remembers_points_in_their_order(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = Ledger(folder)
    for name in "ab":
        first.started(name, {"eta": name})
    first.judged("a", judged(0.5, 1))
    first.ended("a")
    again = Ledger(folder)
    assert again.points == [{"eta": "a"}, {"eta": "b"}]
    assert [(row["number"], row["state"], row["ended"]) for row in again.rows] == [
        (1, "judged", True),
        (2, "started", False),
    ]
    assert not again.is_complete(2)


def test_a_search_that_goes_on_keeps_what_it_has_not_come_to_yet(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    first = Ledger(folder)
    for name in "abc":
        first.started(name, {"eta": name})
        first.judged(name, judged(0.5, 2))
        first.ended(name)
    again = Ledger(folder)
    # Several workers start in any order, and Tune is shown the rungs again, from the first.
    again.started("y", {"eta": "b"})
    again.started("x", {"eta": "a"})
    again.judged("x", judged(0.4, 1))
    third = Ledger(folder)
    assert third.points == first.points and third.is_complete(3) and not third.is_complete(4)
    assert [(row["number"], row["images_per_prompt"]) for row in third.rows] == [(1, 2), (2, 2), (3, 2)]


def test_a_point_that_comes_twice_is_two_trials(tmp_path: Path) -> None:
    ledger = Ledger(RunFolder(tmp_path))
    for start in ("a", "b"):
        ledger.started(start, {"eta": 1})
    assert [row["number"] for row in ledger.rows] == [1, 2]
    again = Ledger(RunFolder(tmp_path))
    for start in ("c", "d"):
        again.started(start, {"eta": 1})
    assert len(again.rows) == 2


def test_a_broken_trial_is_not_at_its_end(tmp_path: Path) -> None:
    reported: list[dict[str, Any]] = []
    ledger = Ledger(RunFolder(tmp_path), reported.append)
    ledger.started("a", {"eta": 1})
    ledger.errored("a", "out of luck")
    assert reported[-1]["state"] == "errored" and reported[-1]["reason"] == "out of luck"
    assert not Ledger(RunFolder(tmp_path)).is_complete(1)


def test_a_damaged_ledger_is_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "trials.json").write_text("[{")
    assert Ledger(RunFolder(tmp_path)).rows == []


# on Ray Tune


UCE: dict[str, Any] = {
    "method": "uce",
    "config": {},
    "space": {"ridge": {"loguniform": [0.1, 10.0]}, "tokens": {"choice": ["last-subject", "all"]}},
}


def execute(search: Search, out: Path, trials: int | None = None) -> tuple[SearchResults, str]:
    said = io.StringIO()
    found = run_search(search, out, trials, 1, None, Console(file=said, width=200))
    return found, said.getvalue()


def done_tasks(out: Path) -> dict[str, bytes]:
    """Every record of the run folder but the ledger's."""
    return {str(path.relative_to(out)): path.read_bytes() for path in out.glob("*/*/*.json")}


def test_a_search_on_ray_tune_finds_a_front(search: MakeSearch, tmp_path: Path) -> None:
    out = tmp_path / "search"
    found, said = execute(search(**UCE), out, trials=2)
    assert not ray.is_initialized()
    assert len(found.rows) == 2 and all(row["ended"] and row["state"] == "judged" for row in found.rows)
    assert all(
        0.1 <= row["point"]["ridge"] <= 10 and row["point"]["tokens"] in ("last-subject", "all") for row in found.rows
    )
    assert "trial 1 (ridge=" in said and "trial 2 (ridge=" in said
    assert found.front and {row["images_per_prompt"] for row in found.front} == {3}

    rows = list(csv.DictReader((out / "trials.csv").open()))
    assert [float(row["ridge"]) for row in rows] == [row["point"]["ridge"] for row in found.rows]
    front = json.loads((out / "pareto.json").read_text())
    assert front["front"] == found.front and 0 <= front["base"]["err_mean"] <= 1
    deltas = [out / "jobs" / job / "delta.safetensors" for row in found.front for job in row["jobs"]]
    assert deltas and all(delta.is_file() for delta in deltas)

    shown = io.StringIO()
    found.show(Console(file=shown, width=200))
    assert "2 trials: 2 judged; the unedited base has ERR" in shown.getvalue()
    assert all(f"{row['err_mean']:.3f}" in shown.getvalue() for row in found.front)
    assert str(out / "pareto.csv") in shown.getvalue()

    # Typed again, nothing is done: not even Ray is started.
    before = done_tasks(out)
    again, said = execute(search(**UCE), out, trials=2)
    assert again.rows == found.rows and done_tasks(out) == before and said == ""
    with pytest.raises(UserError, match="holds another run"):
        execute(search(**UCE, seed=1), out)
    assert read_search(out / "search.yaml") == search(**UCE)


@pytest.mark.slow
def test_more_trials_begin_after_those_that_are_there(search: MakeSearch, tmp_path: Path) -> None:
    out = tmp_path / "search"
    found, _ = execute(search(**UCE), out, trials=2)
    before = done_tasks(out)
    more, said = execute(search(**UCE), out, trials=3)
    assert [row["point"] for row in more.rows[:2]] == [row["point"] for row in found.rows]
    assert len(more.rows) == 3 and more.rows[2]["point"] not in [row["point"] for row in found.rows]
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
def test_a_search_that_is_killed_or_laid_down_goes_on_where_it_was(
    search: MakeSearch, search_file: Any, tmp_path: Path, how: signal.Signals
) -> None:
    out, log = tmp_path / "search", tmp_path / "log.txt"
    file = search_file(trials=3)
    process = start(file, out, log)
    wait_for("jobs/esd-*/record.json", out, process)
    process.send_signal(how)
    assert process.wait(120) == (130 if how == signal.SIGTERM else -signal.SIGKILL), log.read_text()
    before, ledger = done_tasks(out), json.loads((out / "trials.json").read_text())
    assert not (out / "pareto.json").exists() and not all(row["ended"] for row in ledger)

    assert start(file, out, log).wait(300) == 0, log.read_text()
    after = json.loads((out / "trials.json").read_text())
    assert len(after) == 3 and all(row["ended"] for row in after)
    assert [row["point"] for row in after[: len(ledger)]] == [row["point"] for row in ledger]
    records = {name for name in before if name.startswith(("jobs", "evaluations"))}
    assert records and {name: before[name] for name in records}.items() <= done_tasks(out).items()
    # A lone worker judges one trial after the other, so nothing was tried twice.
    assert len(list(out.glob("jobs/esd-*"))) == 3
