"""A whole campaign on a tiny model, in this process: run, run again, damaged, cut short, failed."""

import io
import json
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pytest
from rich.console import Console
from tiny_campaign import IMAGES_PER_PROMPT, PROMPTS

from efface.cluster import run as running
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run, reopen_run
from efface.cluster.run_results import Results
from efface.cluster.run_summary import JobSummary, KindSummary, summarize
from efface.cluster.tasks.calibration import CALIBRATION
from efface.cluster.tasks.judging import IMAGES, VERDICTS, Shard
from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.tasks.task import Task
from efface.cluster.workers.local_executor import LocalExecutor
from efface.cluster.workers.worker import Worker
from efface.eval.judging.image_table import read_images, read_table
from efface.eval.judging.judge_spec import load_judge
from efface.models.base import load_base
from efface.models.delta import Delta
from efface.models.sampling.sampler import ImageRequest, sample

MakeCampaign = Callable[..., Campaign]


def run_here(run: Run) -> Results:
    return execute(run, 0, None, Console(file=io.StringIO()))


def mtimes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def contents(folder: Path) -> dict[str, bytes]:
    """What must be the same however a campaign was run: everything but the seconds it took."""
    kept = [
        path for path in folder.rglob("*") if path.is_file() and path.suffix in (".parquet", ".safetensors", ".png")
    ]
    return {str(path.relative_to(folder)): path.read_bytes() for path in kept}


@pytest.fixture
def done(campaign: MakeCampaign, tmp_path: Path, finished: Path) -> Run:
    """A finished campaign in a folder that the test may spoil."""
    shutil.copytree(finished, tmp_path / "run")
    return open_run(campaign(), tmp_path / "run")


@pytest.fixture
def worked(monkeypatch: pytest.MonkeyPatch) -> list[Task]:
    """The tasks that workers of this process have been given since."""
    given: list[Task] = []
    really = Worker.run

    def run(self: Worker, task: Task) -> Outcome:
        given.append(task)
        return really(self, task)

    monkeypatch.setattr(Worker, "run", run)
    return given


def test_the_table_has_every_row_of_the_plan_once(done: Run) -> None:
    table = read_table(done.folder.table)
    planned = [
        (shard.model.id, shard.model.label, ask.concept, ask.axis, ask.asked_concept, question.prompt, question.seed)
        for shards in done.plan.shards.values()
        for shard in shards
        for question in shard.eval_requests
        for ask in question.asks
    ]
    columns = ("model_id", "method", "concept", "axis", "asked_concept", "prompt", "seed")
    found = list(zip(*(table[name].to_pylist() for name in columns), strict=True))
    assert sorted(found) == sorted(planned)
    assert set(table["base_id"].to_pylist()) == {done.plan.base_id}
    assert set(table["recipe_id"].to_pylist()) == {done.plan.recipe.id}


def test_every_image_behind_the_table_is_kept(done: Run) -> None:
    shards = (shard for shards in done.plan.shards.values() for shard in shards)
    kept = {
        sha256
        for shard in shards
        for sha256 in read_images(done.folder.output(shard, IMAGES))["image_sha256"].to_pylist()
    }
    assert kept == set(read_table(done.folder.table)["image_sha256"].to_pylist())


def images_of(done: Run, position: int) -> tuple[list[tuple[str, int]], list[str]]:
    parts = [
        read_images(done.folder.output(shard, IMAGES)) for shard in done.plan.shards[done.plan.models[position].id]
    ]
    table = pa.concat_tables(parts)
    requests = list(zip(table["prompt"].to_pylist(), table["seed"].to_pylist(), strict=True))
    return requests, table["image_sha256"].to_pylist()


@pytest.mark.parametrize("position", [0, 1, 2], ids=["base", "uce", "esd"])
def test_the_images_are_those_of_the_base_with_the_models_delta(position: int, done: Run) -> None:
    from efface.eval.judging.evaluate import pixel_sha256

    requests, hashes = images_of(done, position)
    base = load_base(done.plan.base)
    if position:
        base.swap(Delta.load(done.folder.delta(done.plan.models[position])))
    images = sample(base, done.plan.recipe, [ImageRequest(prompt, seed) for prompt, seed in requests])
    assert len(requests) == PROMPTS * IMAGES_PER_PROMPT
    assert [pixel_sha256(image) for image in images] == hashes


def test_a_model_draws_other_images_than_the_base(done: Run) -> None:
    base, uce, esd = (images_of(done, position)[1] for position in range(3))
    assert all(one != other for one, other in zip(base, uce, strict=True))
    assert all(one != other for one, other in zip(base, esd, strict=True))


def test_the_judge_is_calibrated_on_the_base_and_its_accuracy_reported(done: Run) -> None:
    from efface.eval.calibration.calibration import read_calibration

    calibration_task = done.plan.calibrations[0]
    calibration = read_calibration(done.folder.output(calibration_task, CALIBRATION))
    assert calibration.base_id == done.plan.base_id
    assert set(calibration.accuracy) == {"cat", "dog", "bus", "tram"}
    assert calibration.judge_version == load_judge(calibration_task.judge).version
    assert list(json.loads(done.folder.scores.read_text())["judges"]) == [calibration_task.judge]


def test_results_for_people_are_written(done: Run) -> None:
    scores = json.loads(done.folder.scores.read_text())
    assert set(scores["methods"]) == {"uce", "esd"}
    assert scores["methods"]["uce"]["base"] is not None and scores["seconds"]["esd"] > 0
    lines = done.folder.leaderboard.read_text().splitlines()
    assert lines[0].startswith("method,") and {line.split(",")[0] for line in lines[1:]} == {"base", "uce", "esd"}
    assert [path.name for path in done.folder.sheets.iterdir()] == ["cat.png"]


def test_the_headline_goes_by_the_first_of_two_judges(
    campaign: MakeCampaign, campaign_inputs: Path, tmp_path: Path
) -> None:
    judges = [str(tmp_path / "eye-1.5-large.yaml"), str(campaign_inputs / "judge.yaml")]
    Path(judges[0]).write_text((campaign_inputs / "judge.yaml").read_text() + "threshold: 0.001\n")
    evaluation = {"images_per_prompt": 1, "judges": judges, "prompts_per_concept": {"adjacent": 1, "retain": 1}}
    run = open_run(campaign(methods=[{"method": "uce"}], evaluation=evaluation), tmp_path / "run")
    results = run_here(run)
    assert [row.method for row in results.rows] == ["base", "uce"] and results.unscored == []
    # From a probability of 0.001 on the eye sees everything everywhere: nothing is forgotten, and everything kept.
    assert [(row.forget, row.retain) for row in results.rows] == [(0, 1), (0, 1)]
    assert set(read_table(run.folder.table)["judge"].to_pylist()) == {"eye-1.5-large", "judge"}


def test_run_again_nothing_is_done_and_no_file_touched(
    done: Run, worked: list[Task], monkeypatch: pytest.MonkeyPatch, campaign: MakeCampaign
) -> None:
    def no_worker(*given: object) -> LocalExecutor:
        raise AssertionError("a worker was started")

    monkeypatch.setattr(running, "LocalExecutor", no_worker)
    before = mtimes(done.folder.root)
    results = run_here(open_run(campaign(), done.folder.root))
    assert worked == [] and mtimes(done.folder.root) == before
    assert results.rows[0].method == "base" and results.failures == []


@pytest.mark.parametrize("what", ["verdicts", "images"])
def test_a_shard_whose_file_is_gone_is_done_again_and_nothing_else(what: str, done: Run, worked: list[Task]) -> None:
    before = contents(done.folder.root)
    shard = done.plan.shards[done.plan.models[1].id][1]
    done.folder.output(shard, f"{what}.parquet").unlink()
    run_here(done)
    assert worked == [shard] and contents(done.folder.root) == before


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [truncate, flip_a_bit])
@pytest.mark.parametrize("what", ["verdicts", "images", "delta", "calibration"])
def test_a_damaged_file_is_made_again_as_it_was(
    what: str, harm: Callable[[Path], None], done: Run, worked: list[Task]
) -> None:
    before = contents(done.folder.root)
    shard = done.plan.shards[done.plan.jobs[0].id][0]
    calibration, training = done.plan.calibrations[0], done.plan.trainings[0]
    task, path = {
        "verdicts": (shard, done.folder.output(shard, VERDICTS)),
        "images": (shard, done.folder.output(shard, IMAGES)),
        "delta": (training, done.folder.delta(training.model)),
        "calibration": (calibration, done.folder.output(calibration, CALIBRATION)),
    }[what]
    written = path.read_bytes()
    harm(path)
    run_here(done)
    assert worked == [task] and path.read_bytes() == written
    assert contents(done.folder.root) == before


def test_a_lost_table_is_written_again_without_a_worker(done: Run, worked: list[Task]) -> None:
    before = done.folder.table.read_bytes()
    done.folder.table.unlink()
    run_here(done)
    assert worked == [] and done.folder.table.read_bytes() == before


def test_a_run_killed_anywhere_goes_on_to_the_same_end(
    campaign: MakeCampaign, tmp_path: Path, finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "run"
    really = Worker.run
    done: list[str] = []
    kills = iter([0, 1, 1, 3, 100])

    class Killed(BaseException):
        pass

    def run(self: Worker, task: Task) -> Outcome:
        if len(done) == self.killed_after:  # type: ignore[attr-defined]
            raise Killed
        outcome = really(self, task)
        done.append(task.id)
        return outcome

    for after in kills:
        monkeypatch.setattr(Worker, "killed_after", len(done) + after, raising=False)
        monkeypatch.setattr(Worker, "run", run)
        try:
            run_here(open_run(campaign(), root))
        except Killed:
            continue
    assert len(done) == len(set(done)) == 1 + 2 + 9
    assert contents(root) == contents(finished)


def test_a_summary_counts_what_is_done(done: Run) -> None:
    model = done.plan.jobs[1]
    for shard in done.plan.shards[model.id][:2]:
        done.folder.output(shard, VERDICTS).unlink()
    run = reopen_run(done.folder.root)
    counts = summarize(run.plan, run.folder)
    images = 3 * PROMPTS * IMAGES_PER_PROMPT
    assert counts.jobs == JobSummary(all=2, done=2, failed=0, blocked=0, left=0)
    assert counts.tasks["judging"] == KindSummary("image", all=images, done=images - 10, failed=0, left=10)
    assert counts.tasks["training"] == KindSummary("job", all=2, done=2, failed=0, left=0)


def test_a_job_without_a_finite_loss_fails_alone_and_says_where_and_why(
    campaign: MakeCampaign, tmp_path: Path, finished: Path
) -> None:
    hot = {"method": "esd", "label": "hot", "config": {"steps": 4, "learning_rate": 1e30, "rollout_steps": 3}}
    run = open_run(campaign(methods=[{"method": "uce"}, hot]), tmp_path / "run")
    results = run_here(run)
    assert [row.method for row in results.rows] == ["base", "uce"]
    (failure,) = results.failures
    assert failure.startswith(run.plan.jobs[1].folder) and "(training)" in failure
    assert " of 4: the learning rate 1e+30 is probably too high" in failure
    counts = summarize(run.plan, run.folder)
    assert counts.jobs == JobSummary(all=2, done=1, failed=1, blocked=0, left=0)
    assert counts.tasks["judging"].failed == PROMPTS * IMAGES_PER_PROMPT and counts.tasks["judging"].left == 0
    assert [failure.job for failure in counts.failures] == [run.plan.jobs[1].folder]
    delta = run.folder.delta(run.plan.jobs[0])
    assert delta.read_bytes() == (finished / delta.relative_to(run.folder.root)).read_bytes()


def test_an_error_in_one_shard_fails_its_model_and_no_other(
    campaign: MakeCampaign, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = open_run(campaign(), tmp_path / "run")
    bad = run.plan.shards[run.plan.jobs[0].id][1]
    really = Shard.run

    def judge(self: Shard, worker: Worker) -> None:
        if self.id == bad.id:
            logging.getLogger("efface.eval").info("what the worker logged before")
            raise ZeroDivisionError("broken")
        really(self, worker)

    monkeypatch.setattr(Shard, "run", judge)
    results = run_here(run)
    assert results.failures == [f"{bad.model.folder} (judging, shard 1): ZeroDivisionError: broken"]
    details = run.folder.failure(bad.model)
    assert details and "what the worker logged before" in details.details and "Traceback" in details.details
    assert [row.method for row in results.rows] == ["base", "esd"]
