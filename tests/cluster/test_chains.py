"""Chains of requests: one model after another, each made from the one before and judged on all that was erased."""

import io
import json
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from fake_worker import FakeWorker, expected
from rich.console import Console
from timed_worker import DONE, RecordingCallback, TimedExecutor, all_tasks
from tiny_campaign import ESD, IMAGES_PER_PROMPT, UCE

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run, worker_context
from efface.cluster.run_summary import JobSummary, summarize
from efface.cluster.scheduler.dispatch import dispatch
from efface.cluster.scheduler.queue import Queue
from efface.cluster.storage.remaining import remaining_tasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.model import Model
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask
from efface.cluster.workers.worker import Worker
from efface.errors import Stopped
from efface.eval.judging.image_table import read_table
from efface.models.delta import Delta

MakePlan = Callable[..., Plan]
TARGETS = ["cat", "dog", "bus"]

# Of four concepts, each the nearest of another, three are to go: what is adjacent to them cannot all be kept.
NOT_ADJACENT = {
    "images_per_prompt": IMAGES_PER_PROMPT,
    "prompts_per_concept": {"adjacent": 0, "retain": 1},
    "shard_size": 5,
}


def chains(**changes: Any) -> dict[str, Any]:
    """What makes a campaign one of three requests, by two methods with two seeds."""
    given = {"concepts": {"targets": TARGETS}, "seeds": [0, 1], "evaluation": NOT_ADJACENT}
    return {"strategy": "continual", **given, **changes}


@pytest.fixture
def made(plan: MakePlan) -> Plan:
    return plan(**chains())


def of(plan: Plan, method: str, seed: int) -> list[Model]:
    """The models of one chain in their order."""
    return [model for model in plan.jobs if model.job and (model.job.method, model.job.seed) == (method, seed)]


def trainings_of(plan: Plan, label: str, seed: int) -> list[TrainingTask]:
    """Their trainings."""
    return [TrainingTask(model) for model in of(plan, label, seed)]


# the plan


def test_a_method_may_have_strategies_and_targets_of_its_own(plan: MakePlan) -> None:
    methods = [
        {**UCE, "strategies": ["single", "multi"]},
        {**UCE, "label": "chain", "strategies": ["continual"], "targets": ["dog", "cat", "bus"]},
    ]
    made = plan(methods=methods, concepts={"targets": ["cat", "dog"]}, evaluation=NOT_ADJACENT)
    jobs = [(model.label, model.job.strategy, model.job.concepts) for model in made.jobs if model.job]
    assert jobs == [
        ("uce", "single", ("cat",)),
        ("uce", "single", ("dog",)),
        ("uce-multi", "multi", ("cat", "dog")),
        ("chain 1/3", "continual", ("dog",)),
        ("chain 2/3", "continual", ("dog", "cat")),
        ("chain", "continual", ("dog", "cat", "bus")),
    ]
    assert [target.name for target in made.targets] == ["cat", "dog", "bus"]


def test_each_request_is_a_job_that_knows_all_before_it_and_follows_the_last_of_them(made: Plan) -> None:
    assert len(made.jobs) == 3 * 2 * 2
    for method in ("uce", "esd"):
        for seed in (0, 1):
            chain = of(made, method, seed)
            assert [model.job.concepts for model in chain if model.job] == [
                ("cat",),
                ("cat", "dog"),
                ("cat", "dog", "bus"),
            ]
            assert chain[0].predecessor is None and chain[0].job and chain[0].job.parent is None
            for before, model in pairwise(chain):
                assert model.predecessor == before.folder and model.job and model.job.parent == before.id


def test_stages_are_labelled_by_their_number_and_the_last_one_has_the_methods_name(made: Plan) -> None:
    for method in ("uce", "esd"):
        assert [model.label for model in of(made, method, 1)] == [f"{method} 1/3", f"{method} 2/3", method]


def test_all_ids_are_different_and_those_of_chains_with_other_seeds_too(made: Plan) -> None:
    assert len(set(all_tasks(made))) == len(all_tasks(made))


def test_what_is_asked_later_changes_nothing_of_what_was_made_before(plan: MakePlan) -> None:
    def ids(*targets: str) -> list[str]:
        return [model.id for model in of(plan(**chains(concepts={"targets": list(targets)})), "esd", 0)]

    whole = ids("cat", "dog", "bus")
    assert ids("cat", "dog") == whole[:2] and ids("cat") == whole[:1]
    other = ids("cat", "bus", "dog")
    assert other[0] == whole[0] and not set(other[1:]) & set(whole)
    assert not set(ids("dog", "cat", "bus")) & set(whole)


def test_the_first_request_of_a_chain_is_not_the_job_of_the_concept_alone(plan: MakePlan) -> None:
    alone = plan(**chains(strategy="single"))
    assert not {model.id for model in alone.jobs} & {model.id for model in plan(**chains()).jobs}


def test_every_stage_is_judged_on_all_erased_so_far_and_not_asked_to_have_kept_any(made: Plan) -> None:
    for model in made.jobs:
        assert model.job
        asks = {a for shard in made.shards[model.id] for question in shard.eval_requests for a in question.asks}
        gone = set(model.job.concepts)
        for axis in ("forget", "indirect", "adversarial"):
            assert {ask.asked_concept for ask in asks if ask.axis == axis} == gone
        assert {ask.concept for ask in asks if ask.axis == "retain"} == gone
        assert not {ask.asked_concept for ask in asks if ask.axis == "retain"} & gone


# what comes when


@pytest.mark.parametrize("workers", [1, 2, 3, 7, 30])
@pytest.mark.parametrize("seed", range(6))
def test_whatever_breaks_nothing_begins_before_its_parent_and_followers_of_the_failed_never(
    seed: int, workers: int, made: Plan, tmp_path: Path
) -> None:
    generator = random.Random(f"{seed} {workers}")
    folder = RunFolder(tmp_path / "run")
    fates = [DONE] * 12 + [Outcome.failed("no")] + [Outcome.error("broke"), Outcome.worker_lost(worker_gone=True)] * 2

    def fate(task: Task, attempt: int) -> Outcome:
        return generator.choice(fates) if isinstance(task, TrainingTask) else DONE

    executor = TimedExecutor(made, workers, lambda task, attempt: generator.uniform(0.1, 9), fate)
    dispatch(
        remaining_tasks(made, folder), folder, executor, [RecordingCallback()]
    )  # `TimedExecutor` looks that each parent is there
    models = {model.folder: model for model in made.jobs}
    for model in made.jobs:
        before = models[model.predecessor] if model.predecessor else None
        ended = executor.done.count(model.id)
        assert ended == (0 if before and before.id not in executor.done else 0 if folder.failure(model) else 1)
        shards = {shard.id for shard in made.shards[model.id]}
        assert shards <= set(executor.done) if ended else not shards & set(executor.tries)
        assert not (before and before.id not in executor.done and executor.tries[model.id])


def test_a_chain_with_more_requests_to_come_goes_first(made: Plan) -> None:
    short, long = trainings_of(made, "uce", 0), trainings_of(made, "esd", 1)
    queue = Queue([*short[1:], *long], {*made.products, short[0].provides})
    assert queue.take(None) == long[0]
    assert queue.take(None) == short[1]
    assert queue.take(None) is None and len(queue) == 3
    queue.done(short[1])
    queue.done(long[0])
    assert [queue.take(None), queue.take(None)] == [long[1], short[2]]


def test_one_worker_takes_all_first_requests_before_any_second(made: Plan) -> None:
    queue = Queue(made.trainings, made.products)
    firsts = [queue.take(None) for _ in range(4)]
    assert {task.label for task in firsts if isinstance(task, TrainingTask)} == {"uce 1/3", "esd 1/3"}


def test_a_chain_given_up_leaves_the_queue_with_all_that_would_follow(made: Plan) -> None:
    chain, other = trainings_of(made, "esd", 0), trainings_of(made, "esd", 1)
    shards = [shard for training in (*chain, *other) for shard in made.shards[training.id]]
    queue = Queue([*chain, *other, *shards], ())
    assert queue.take(None) == chain[0]
    queue.drop(chain[0])
    assert len(queue) == len(other) + sum(len(made.shards[training.id]) for training in other)


# executed


def run_here(run: Run, worker: Any = FakeWorker) -> None:
    execute(run, 0, None, Console(file=io.StringIO()), worker)


@pytest.fixture
def run(campaign: Callable[..., Campaign], tmp_path: Path) -> Run:
    return open_run(campaign(**chains()), tmp_path / "run")


def test_a_failed_request_blocks_those_after_it_until_that_is_cleared(run: Run) -> None:
    chain = of(run.plan, "esd", 0)

    class Unlucky(FakeWorker):
        def run(self, task: Task) -> Outcome:
            return Outcome.failed("the loss is nan") if task.id == chain[1].id else super().run(task)

    run_here(run, Unlucky)
    remaining = run.remaining_tasks
    assert remaining.failed == [chain[1]] and remaining.blocked == [chain[2]] and remaining.is_empty
    assert chain[0].folder in remaining.products
    assert summarize(run.plan, run.folder).jobs == JobSummary(all=12, done=10, failed=1, blocked=1, left=0)
    run.folder.clear_failure(chain[1])
    remaining = run.remaining_tasks
    assert [training.model for training in remaining.trainings] == [chain[1], chain[2]] and not remaining.blocked
    run_here(run)
    assert read_table(run.folder.table) == expected(run.plan, worker_context(run))


def test_a_request_whose_judging_failed_blocks_nobody(run: Run) -> None:
    run_here(run)
    chain = of(run.plan, "esd", 0)
    run.folder.fail(chain[0], "judging, shard 0", "the judge broke")
    remaining = run.remaining_tasks
    assert (
        remaining.failed == [chain[0]]
        and not remaining.blocked
        and {chain[1].folder, chain[2].folder} <= remaining.products
    )


# with real models

LONGER = {**ESD, "config": {**ESD["config"], "steps": 4}}  # type: ignore[dict-item]


@pytest.fixture
def real(campaign: Callable[..., Campaign], tmp_path: Path) -> Run:
    """Two requests by UCE and by ESD, on the tiny base."""
    return open_run(
        campaign(strategy="continual", concepts={"targets": ["cat", "bus"]}, methods=[UCE, LONGER]), tmp_path / "real"
    )


def contents(root: Path) -> dict[str, bytes]:
    kept = (path for path in root.rglob("*") if path.suffix in (".parquet", ".safetensors", ".png"))
    return {str(path.relative_to(root)): path.read_bytes() for path in kept}


def test_a_chain_of_real_models_is_scored_stage_by_stage_and_goes_on_inside_a_job(
    real: Run, campaign: Callable[..., Campaign], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    undisturbed = open_run(
        campaign(strategy="continual", concepts={"targets": ["cat", "bus"]}, methods=[UCE, LONGER]), tmp_path / "whole"
    )
    run_here(undisturbed, Worker)

    monkeypatch.setattr("efface.cluster.workers.worker.STOP_POLL_INTERVAL", 0.0)
    second = of(real.plan, "esd", 0)[1]
    steps: list[int] = []
    really = Worker.on_step

    def on_step(self: Worker, task: Task, done: int, of_all: int, loss: float) -> None:
        if task.id == second.id:
            steps.append(done)
            if steps == [1, 2]:
                real.folder.request_stop()
        really(self, task, done, of_all, loss)

    monkeypatch.setattr(Worker, "on_step", on_step)
    with pytest.raises(Stopped):
        run_here(real, Worker)
    assert real.folder.checkpoint(second).is_file() and second in [
        training.model for training in real.remaining_tasks.trainings
    ]
    assert not real.remaining_tasks.failed
    run_here(real, Worker)
    assert steps == [1, 2, 3, 4] and not real.folder.checkpoint(second).exists()
    assert contents(real.folder.root) == contents(undisturbed.folder.root)

    stages = json.loads(real.folder.scores.read_text())["stages"]
    assert set(stages) == {"uce", "esd"}
    assert [stage["request"] for stage in stages["esd"]["stages"]] == ["cat", "bus"]
    assert stages["esd"]["stages"][1]["relapse"]
    header = real.folder.stages("esd").read_text().splitlines()[0]
    assert header.startswith("stage,label,request,err_mean") and "relapse_forget" in header
    delta = Delta.load(real.folder.delta(second))
    assert [entry["concepts"] for entry in delta.lineage] == [["cat"], ["bus"]]
    rows = real.folder.leaderboard.read_text().splitlines()[1:]
    assert {row.split(",")[0] for row in rows} == {"base", "uce", "esd"}
