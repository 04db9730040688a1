"""The fake worker: a run with it comes to exactly what is expected, also one that is stopped, resumed or damaged."""

import io
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest
from fake_worker import STEPS, FakeWorker, expected
from rich.console import Console
from tiny_campaign import ESD, UCE

from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run, worker_context
from efface.cluster.tasks.judging import VERDICTS
from efface.cluster.tasks.model import Model
from efface.errors import Stopped
from efface.eval.judging.image_table import read_table

MakeCampaign = Callable[..., Campaign]
TWO = {"targets": ["cat", "bus"]}


@pytest.fixture
def chain(campaign: MakeCampaign, tmp_path: Path) -> Run:
    """Two chains of two requests each."""
    changes = {"strategy": "continual", "concepts": TWO, "limits": {"checkpoint_steps": 3}}
    return open_run(campaign(**changes), tmp_path / "run")


def pretend(run: Run, worker: type[FakeWorker] = FakeWorker) -> None:
    execute(run, 0, None, Console(file=io.StringIO()), worker)


def is_as_expected(run: Run) -> bool:
    return bool(read_table(run.folder.table).equals(expected(run.plan, worker_context(run))))


def flip(path: Path) -> bytes:
    """Change a bit in the middle of a file, which keeps its size and time; the bytes it had."""
    whole, stat = path.read_bytes(), path.stat()
    offset = len(whole) // 2
    path.write_bytes(whole[:offset] + bytes([whole[offset] ^ 1]) + whole[offset + 1 :])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    return whole


def judge_again(run: Run, model: Model) -> None:
    """Take away the record of a model's first shard."""
    next(run.folder.output(run.plan.shards[model.id][0], VERDICTS).parent.glob("00000-*[0-9a-f].json")).unlink()


@pytest.mark.parametrize("strategy", ["single", "multi", "continual"])
def test_a_run_comes_to_the_table_that_is_computed_without_one(
    strategy: str, campaign: MakeCampaign, tmp_path: Path
) -> None:
    run = open_run(campaign(strategy=strategy, concepts=TWO, methods=[UCE, ESD]), tmp_path / "run")
    pretend(run)
    assert is_as_expected(run)


def test_images_of_two_models_and_of_two_stages_of_a_chain_differ(chain: Run) -> None:
    hashes = expected(chain.plan, worker_context(chain)).group_by("model_id").aggregate([("image_sha256", "distinct")])
    images = [image for model in hashes["image_sha256_distinct"].to_pylist() for image in model]
    assert hashes.num_rows == 5 and len(images) == len(set(images))


class Interrupted(FakeWorker):
    """Somebody elsewhere asks the run to stop when the first job is at step 8."""

    steps: ClassVar[Counter[str]] = Counter()

    def _log_effect(self, line: str) -> None:
        self.steps[line] += 1
        if line.endswith(" 8") and self.steps.total() == 8:
            self.folder.request_stop()


def test_a_wish_to_stop_that_the_worker_hears_first_ends_the_run_and_no_step_is_done_twice(
    chain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interrupted, "steps", Counter())
    with pytest.raises(Stopped):
        pretend(chain, Interrupted)
    assert sum(Interrupted.steps.values()) == 8
    pretend(chain, Interrupted)
    steps = {line: count for line, count in Interrupted.steps.items() if line.startswith("step")}
    assert set(steps.values()) == {1} and len(steps) == STEPS * 4
    assert is_as_expected(chain)


@pytest.mark.parametrize("damage", [flip, lambda path: path.write_bytes(path.read_bytes()[:20])], ids=["bit", "cut"])
def test_a_damaged_checkpoint_counts_for_nothing(
    damage: Callable[[Path], object], chain: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Interrupted, "steps", Counter())
    with pytest.raises(Stopped):
        pretend(chain, Interrupted)
    [checkpoint] = chain.folder.root.rglob("checkpoint.safetensors")
    damage(checkpoint)
    pretend(chain, Interrupted)
    assert max(Interrupted.steps.values()) == 2
    assert is_as_expected(chain)


def test_a_delta_damaged_unseen_is_made_again_before_a_shard_is_judged_by_it(chain: Run) -> None:
    pretend(chain)
    model = chain.plan.jobs[0]
    judge_again(chain, model)
    whole = flip(chain.folder.delta(model))
    assert chain.remaining_tasks.trainings == [] and len(chain.remaining_tasks.shards) == 1
    pretend(chain)
    assert is_as_expected(chain)
    assert chain.folder.delta(model).read_bytes() == whole


def test_a_delta_damaged_unseen_is_made_again_before_a_chain_goes_on_from_it(chain: Run) -> None:
    pretend(chain)
    first, second = chain.plan.jobs[:2]
    whole = flip(chain.folder.delta(first))
    chain.folder.delta(second).unlink()
    pretend(chain)
    assert is_as_expected(chain)
    assert chain.folder.delta(first).read_bytes() == whole


def test_images_damaged_unseen_are_made_again_before_they_are_shown(chain: Run) -> None:
    pretend(chain)
    sheet = next(chain.folder.sheets.iterdir())
    shown = sheet.read_bytes()
    wholes = {path: flip(path) for path in chain.folder.root.rglob("*.images.parquet")}
    pretend(chain)
    assert sheet.read_bytes() == shown
    assert all(path.read_bytes() == whole for path, whole in wholes.items())


def test_work_that_was_finished_is_not_done_again_by_a_worker_that_is_given_it_again(
    chain: Run, tmp_path: Path
) -> None:
    class Noted(FakeWorker):
        effects = str(tmp_path / "effects.txt")

    training = chain.plan.trainings[0]
    tasks = [training, chain.plan.shards[training.id][0]]
    assert [Noted(worker_context(chain)).run(task).state for task in tasks * 2] == ["done"] * 4
    done = Counter((tmp_path / "effects.txt").read_text().splitlines())
    assert set(done.values()) == {1} and done.total() == STEPS + 1
