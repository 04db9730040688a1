"""A calibration of many images is cut into tasks, and comes to the same as in one."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tiny_campaign import CONCEPTS, UCE, write_campaign_inputs

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.spec import Campaign
from efface.cluster.run import Run, execute, open_run
from efface.cluster.tasks import calibration as calibration_tasks
from efface.cluster.tasks.calibration import ANSWERS, CALIBRATION, CalibrationPart
from efface.eval.calibration.calibration import Calibration, read_calibration

IMAGES = 5


@pytest.fixture
def base(tmp_path: Path, tiny_base_folder: Path) -> str:
    """A world whose judge wants five images of each of its four concepts."""
    write_campaign_inputs(tmp_path, tiny_base_folder)
    text = (tmp_path / "judge.yaml").read_text()
    (tmp_path / "judge.yaml").write_text(text.replace("calibration_images: 2", f"calibration_images: {IMAGES}"))
    return str(tmp_path / "base.yaml")


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    return lambda images: monkeypatch.setattr(calibration_tasks, "PART_IMAGES", images)


def test_many_images_are_cut_into_parts_that_the_calibration_waits_for(
    base: str, plan: Callable[..., Plan], cut: Any
) -> None:
    whole = plan(base=base)
    assert whole.of_kind(CalibrationPart) == ()
    assert len(whole.calibrations[0].requests) == IMAGES * len(CONCEPTS)
    cut(8)
    made = plan(base=base)
    parts = made.of_kind(CalibrationPart)
    assert [part.size for part in parts] == [8, 8, 4]
    assert tuple(r for part in parts for r in part.requests) == whole.calibrations[0].requests
    (calibration,) = made.calibrations
    assert calibration.requires == tuple(part.id for part in parts) and calibration.requests == ()
    assert calibration.id == whole.calibrations[0].id
    assert made.tasks[:4] == (*parts, calibration)


def test_every_part_of_an_array_does_all_of_it_and_begins_elsewhere(
    base: str, plan: Callable[..., Plan], cut: Any
) -> None:
    cut(4)
    whole = plan(base=base)
    parts = whole.of_kind(CalibrationPart)
    first, second = (whole.part(number, 2).of_kind(CalibrationPart) for number in (1, 2))
    assert first == parts and second == (*parts[2:], *parts[:2])
    assert whole.part(2, 2).judged == whole.judged


def finished(base: str, campaign: Callable[..., Campaign], folder: Path) -> tuple[Run, Calibration]:
    evaluation = {"images_per_prompt": 1, "prompts_per_concept": {"adjacent": 1, "retain": 1}}
    run = open_run(campaign(base=base, methods=[UCE], evaluation=evaluation), folder)
    execute(run, 0, None, Console(file=io.StringIO()))
    return run, read_calibration(run.folder.output(run.plan.calibrations[0], CALIBRATION))


def test_cut_and_in_one_a_calibration_is_the_same_and_counts_its_images(
    base: str, campaign: Callable[..., Campaign], cut: Any, tmp_path: Path
) -> None:
    _, in_one = finished(base, campaign, tmp_path / "one")
    cut(8)
    run, in_parts = finished(base, campaign, tmp_path / "parts")
    assert in_parts == in_one
    assert {(a.own, a.others) for a in in_one.accuracy.values()} == {(IMAGES, IMAGES * (len(CONCEPTS) - 1))}
    found = json.loads(run.folder.scores.read_text())["corrected"]
    assert set(found) == {"base", "uce"} and found["uce"]["rates_of"] == "all concepts"


def test_a_part_that_was_changed_is_done_again(
    base: str, campaign: Callable[..., Campaign], cut: Any, tmp_path: Path
) -> None:
    cut(8)
    run, before = finished(base, campaign, tmp_path / "run")
    part, (calibration,) = run.plan.of_kind(CalibrationPart)[1], run.plan.calibrations
    run.folder.output(part, ANSWERS).write_text('{"answers": []}')
    run.folder.output(calibration, CALIBRATION).unlink()
    assert finished(base, campaign, tmp_path / "run")[1] == before
