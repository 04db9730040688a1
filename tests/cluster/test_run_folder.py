"""The run folder: a record makes work done, its outputs' bytes keep it so, and one folder holds one campaign."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, open_run, reopen_run
from efface.cluster.storage.lease import Lease
from efface.cluster.storage.records import Failure, list_files
from efface.cluster.storage.remaining import remaining_tasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.tasks.judging import IMAGES, VERDICTS, Shard
from efface.errors import UserError


@pytest.fixture
def made(plan: Callable[..., Plan]) -> Plan:
    return plan()


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def first_shard(plan: Plan) -> Shard:
    return plan.shards[plan.models[0].id][0]


def finish_shard(folder: RunFolder, shard: Shard) -> list[Path]:
    outputs = [folder.output(shard, VERDICTS), folder.output(shard, IMAGES)]
    outputs[0].parent.mkdir(parents=True, exist_ok=True)
    for path in outputs:
        path.write_bytes(path.name.encode())
    folder.finish(shard, outputs, images=5)
    return outputs


def test_nothing_is_done_in_a_folder_that_is_not_there(folder: RunFolder, made: Plan) -> None:
    remaining = remaining_tasks(made, folder)
    assert (remaining.calibrations, remaining.trainings) == (list(made.calibrations), list(made.trainings))
    assert len(remaining.shards) == made.shard_count and remaining.products == {made.models[0].folder}
    assert not folder.root.exists()


def test_finished_work_has_a_record_with_its_outputs_and_facts(folder: RunFolder, made: Plan) -> None:
    shard = first_shard(made)
    outputs = finish_shard(folder, shard)
    record = folder.record(shard)
    assert record and (record.id, record.kind, record.facts) == (shard.id, "judging", {"images": 5})
    assert list(record.outputs) == [path.name for path in outputs]
    assert shard not in remaining_tasks(made, folder).shards


def test_outputs_without_a_record_are_not_done(folder: RunFolder, made: Plan) -> None:
    shard = first_shard(made)
    finish_shard(folder, shard)
    next(folder.output(shard, VERDICTS).parent.glob("*.json")).unlink()
    assert folder.record(shard) is None and shard in remaining_tasks(made, folder).shards


def test_a_record_whose_output_is_gone_is_not_done(folder: RunFolder, made: Plan) -> None:
    shard = first_shard(made)
    finish_shard(folder, shard)[1].unlink()
    assert folder.record(shard) is None and shard in remaining_tasks(made, folder).shards


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff", '{"id": "another"}', '{"outputs": {}}'])
def test_a_damaged_record_is_not_done(text: str, folder: RunFolder, made: Plan) -> None:
    shard = first_shard(made)
    finish_shard(folder, shard)
    next(folder.output(shard, VERDICTS).parent.glob("*.json")).write_bytes(text.encode("latin-1"))
    assert folder.record(shard) is None


def test_a_damaged_output_is_found_and_no_other_record_suffers(folder: RunFolder, made: Plan) -> None:
    shard, other = made.shards[made.models[0].id][:2]
    verdicts, _ = finish_shard(folder, shard)
    finish_shard(folder, other)
    verdicts.write_bytes(verdicts.read_bytes()[:-1])
    assert folder.record(shard) is None and folder.record(other)


def test_a_failed_job_is_neither_done_nor_to_be_done_until_that_is_cleared(folder: RunFolder, made: Plan) -> None:
    model, training = made.jobs[0], made.trainings[0]
    folder.fail(model, training.stage, "the loss is nan", "log")
    assert folder.failure(model) == Failure("training", "the loss is nan", "log")
    remaining = remaining_tasks(made, folder)
    assert remaining.failed == [model] and training not in remaining.trainings
    assert model.folder not in remaining.products
    assert all(shard.model != model for shard in remaining.shards)
    folder.clear_failure(model)
    assert training in remaining_tasks(made, folder).trainings


def test_a_shard_given_up_is_a_failure_of_its_model(folder: RunFolder, made: Plan) -> None:
    shard = made.shards[made.jobs[0].id][2]
    folder.fail(shard.model, shard.stage, "the worker died")
    failure = folder.failure(made.jobs[0])
    assert failure and failure.stage == "judging, shard 2"


def test_a_finished_job_is_no_longer_failed(folder: RunFolder, made: Plan) -> None:
    model, training = made.jobs[0], made.trainings[0]
    folder.fail(model, training.stage, "first")
    folder.delta(model).write_bytes(b"delta")
    folder.finish(training, [folder.delta(model)])
    assert folder.failure(model) is None and folder.record(training)


def test_the_same_campaign_may_be_opened_again_and_changes_nothing(
    campaign: Callable[..., Campaign], folder: RunFolder
) -> None:
    open_run(campaign(), folder.root)
    before = folder.campaign.stat().st_mtime_ns
    open_run(campaign(), folder.root)
    assert folder.campaign.stat().st_mtime_ns == before
    assert reopen_run(folder.root).plan.models == open_run(campaign(), folder.root).plan.models


def begin(run: Run) -> None:
    """Leave something in the folder that was done for the run."""
    log = run.folder.log(run.plan.jobs[0])
    log.parent.mkdir(parents=True)
    log.write_text("step 1")


def test_another_campaign_replaces_one_that_nothing_was_done_for(
    campaign: Callable[..., Campaign], folder: RunFolder
) -> None:
    open_run(campaign(), folder.root)
    open_run(campaign(name="other"), folder.root)
    assert "name: other" in folder.campaign.read_text()
    with Lease(folder.root), pytest.raises(UserError, match="another run"):  # somebody has just begun
        open_run(campaign(), folder.root)


def test_another_campaign_in_the_same_folder_is_refused_with_the_difference(
    campaign: Callable[..., Campaign], folder: RunFolder
) -> None:
    begin(open_run(campaign(), folder.root))
    before = folder.campaign.read_bytes()
    with pytest.raises(UserError, match=r"another run \(there: name: tiny; requested now: name: other\)"):
        open_run(campaign(name="other"), folder.root)
    assert folder.campaign.read_bytes() == before


def test_how_a_campaign_is_executed_may_change_between_starts(
    campaign: Callable[..., Campaign], folder: RunFolder
) -> None:
    before = open_run(campaign(), folder.root)
    changed = campaign(
        resources={"cpus": 2}, limits={"job_seconds": 60, "checkpoint_steps": 7}, training={"tracker": None}
    )
    after = open_run(changed, folder.root)
    assert after.limits.job_seconds == 60 and after.plan.resources.cpus == 2
    assert [model.id for model in after.plan.models] == [model.id for model in before.plan.models]
    assert reopen_run(folder.root).limits == changed.limits  # the last start counts
    open_run(campaign(), folder.root)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": [0, 1]}, "requested now: - 1"),
        ({"strategy": "multi"}, "there: strategy: single; requested now: strategy: multi"),
        ({"evaluation": {"images_per_prompt": 3}}, "images_per_prompt: 3"),
        ({"methods": [{"method": "uce"}], "limits": {"job_seconds": 9}}, "requested now: nothing more"),
    ],
)
def test_what_a_campaign_requests_may_not(
    changes: dict[str, Any], message: str, campaign: Callable[..., Campaign], folder: RunFolder
) -> None:
    begin(open_run(campaign(), folder.root))
    with pytest.raises(UserError, match="another run") as refused:
        open_run(campaign(**changes), folder.root)
    assert "give --out another folder" in str(refused.value)
    assert message in str(refused.value)


@pytest.mark.parametrize("path", ["", "/under/it"])
def test_a_file_in_place_of_the_folder_is_refused(path: str, campaign: Callable[..., Campaign], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(UserError, match="file"):
        open_run(campaign(), Path(f"{tmp_path}/file{path}"))


@pytest.mark.parametrize("path", ["/proc/efface", "/dev/null/run", "/tmp/" + "x" * 300])
def test_a_path_that_cannot_be_written_is_refused(path: str, campaign: Callable[..., Campaign]) -> None:
    with pytest.raises(UserError, match=r"cannot be (written|read)"):
        open_run(campaign(), Path(path))


@pytest.mark.parametrize("text", ["name: [", "\xff\xfe", "name: tiny"])
def test_a_damaged_campaign_in_the_folder_is_reported_in_a_sentence(
    text: str, campaign: Callable[..., Campaign], folder: RunFolder
) -> None:
    begin(open_run(campaign(), folder.root))
    folder.campaign.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=r"campaign\.yaml"):
        open_run(campaign(), folder.root)
    with pytest.raises(UserError, match=r"campaign\.yaml"):
        reopen_run(folder.root)


def test_a_folder_without_a_campaign_is_no_run_folder(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(UserError, match="is not a run folder"):
            reopen_run(path)


def test_records_are_written_whole_or_not_at_all(
    folder: RunFolder, made: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    shard = first_shard(made)
    finish_shard(folder, shard)
    before = folder.record(shard)

    def no_disk(handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", no_disk)
    with pytest.raises(UserError, match="No space left"):
        folder.finish(shard, [], images=6)
    assert folder.record(shard) == before
    assert not [path for path in folder.output(shard, VERDICTS).parent.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("target", ["/nonexistent/x", "dead"])
def test_a_link_to_nothing_hides_no_other_file(tmp_path: Path, target: str) -> None:
    (tmp_path / "record.json").write_text("{}")
    (tmp_path / "dead").symlink_to(target)
    assert list(list_files(tmp_path)) == ["record.json"]
