"""Parts of a run, for arrays of batch jobs: disjoint, together everything, and of any order or at once the same end."""

import io
import itertools
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_worker import FakeWorker, expected
from rich.console import Console

from efface.cluster import run as running
from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, execute_part, open_run, worker_context
from efface.cluster.tasks.attack import AttackTask, TransferTask
from efface.cluster.workers.local_executor import LocalExecutor
from efface.errors import UserError
from efface.eval.judging.image_table import read_table

MakePlan = Callable[..., Plan]
CHAINS = {"strategy": "continual", "concepts": {"targets": ["cat", "bus"]}, "seeds": [0, 1, 2]}


def shard_ids(plan: Plan) -> list[str]:
    return [shard.id for shards in plan.shards.values() for shard in shards]


@pytest.mark.parametrize("changes", [{"seeds": [0, 1, 2]}, CHAINS], ids=["single", "continual"])
@pytest.mark.parametrize("parts", [1, 2, 3, 5, 40])
def test_parts_are_disjoint_and_together_everything(parts: int, changes: dict[str, Any], plan: MakePlan) -> None:
    whole = plan(**changes)
    found = [whole.part(number, parts) for number in range(1, parts + 1)]
    jobs = [model.id for part in found for model in part.jobs]
    assert sorted(jobs) == sorted(model.id for model in whole.jobs)
    assert sorted(itertools.chain(*map(shard_ids, found))) == sorted(shard_ids(whole))
    assert all(part.calibrations == whole.calibrations and part.models[0] == whole.models[0] for part in found)
    assert all(shard.model in part.models for part in found for shards in part.shards.values() for shard in shards)


@pytest.mark.parametrize("parts", [1, 2, 3, 40])
def test_a_part_of_attacks_has_all_that_its_tasks_require(parts: int, plan: MakePlan) -> None:
    whole = plan(seeds=[0, 1], attacks=[{"attack": "paraphrase", "seeds": [0]}])
    found = [whole.part(number, parts) for number in range(1, parts + 1)]
    for part in found:
        there = {*part.products, *(task.provides for task in part.tasks)}
        assert all(there.issuperset(task.requires) for task in part.tasks)
    attacks = [task.id for part in found for task in part.of_kind(AttackTask)]
    assert sorted(attacks) == sorted(task.id for task in whole.of_kind(AttackTask)) and attacks
    assert parts > 1 or found[0].of_kind(TransferTask) == whole.of_kind(TransferTask) != ()


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_a_chain_is_never_torn_apart_and_chains_are_shared_out_evenly(parts: int, plan: MakePlan) -> None:
    whole = plan(**CHAINS)
    assert len(whole.jobs) == 2 * 2 * 3
    chains = []
    for number in range(1, parts + 1):
        part = whole.part(number, parts)
        folders = {model.folder for model in part.jobs}
        assert all(model.predecessor is None or model.predecessor in folders for model in part.jobs)
        chains.append(sum(model.predecessor is None for model in part.jobs))
    assert sum(chains) == 6 and max(chains) - min(chains) <= 1


@pytest.fixture
def run(campaign: Callable[..., Campaign], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """A run of 4 jobs whose workers in this process only pretend."""
    monkeypatch.setattr(
        running, "LocalExecutor", lambda context, should_stop, worker: LocalExecutor(context, should_stop, FakeWorker)
    )
    return open_run(campaign(seeds=[0, 1]), tmp_path / "run")


def quiet() -> Console:
    return Console(file=io.StringIO())


def no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(*given: object) -> LocalExecutor:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(running, "LocalExecutor", start)


@pytest.mark.parametrize("order", [[1, 2, 3], [3, 1, 2]])
def test_after_all_parts_a_run_has_nothing_left_but_to_score(
    order: list[int], run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in order:
        assert not run.folder.table.exists()
        assert execute_part(run, number, 3, quiet()) == 0
        part = run.plan.part(number, 3)
        assert {model.id for model in part.jobs} <= set(run.folder.records(part.trainings))
    no_work(monkeypatch)
    execute(run, 0, None, quiet())
    assert read_table(run.folder.table) == expected(run.plan, worker_context(run))
    assert run.folder.leaderboard.is_file()


def test_parts_side_by_side_come_to_the_same_end(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeWorker, "shard_seconds", 0.01)
    failed: list[int] = []
    threads = [
        threading.Thread(target=lambda n=number: failed.append(execute_part(run, n, 2, quiet()))) for number in (1, 2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == [0, 0]
    no_work(monkeypatch)
    execute(run, 0, None, quiet())
    assert read_table(run.folder.table) == expected(run.plan, worker_context(run))


def test_a_part_does_only_its_own_and_only_what_is_missing(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    execute_part(run, 2, 3, quiet())
    mine = {model.id for model in run.plan.part(2, 3).jobs}
    assert set(run.folder.records(run.plan.trainings)) == mine and len(mine) < len(run.plan.jobs)
    no_work(monkeypatch)
    assert execute_part(run, 2, 3, quiet()) == 0


def test_a_part_says_how_many_of_its_jobs_have_failed(run: Run) -> None:
    first, second = run.plan.part(1, 2).trainings[0], run.plan.part(2, 2).trainings[0]
    run.folder.fail(first.model, "training", "the loss is nan")
    assert execute_part(run, 1, 2, quiet()) == 1
    assert execute_part(run, 2, 2, quiet()) == 0
    assert run.folder.record(second) and not run.folder.record(first)


def test_parts_do_not_shut_each_other_out(run: Run) -> None:
    execute_part(run, 1, 2, quiet())
    assert not (run.folder.root / "leases").exists()


@pytest.mark.parametrize(("number", "parts"), [(0, 3), (4, 3), (1, 0), (-1, 3)])
def test_a_part_that_is_none_is_answered_in_a_sentence(number: int, parts: int, run: Run) -> None:
    with pytest.raises(UserError, match=f"--part {number}/{parts}: should be "):
        execute_part(run, number, parts, quiet())
