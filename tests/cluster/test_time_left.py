"""The time left of a run: by the rates from the first second, then by what tasks really take. Worked out by hand."""

import io
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import Rates
from efface.cluster.scheduler.progress import RATE_TASKS, Display
from efface.cluster.scheduler.time_left import TimeLeft, UnderWay
from efface.cluster.storage.remaining import RemainingTasks
from efface.cluster.storage.run_folder import RunFolder
from efface.cluster.storage.under_way import Count, Steps, how_far, last_steps, note_count
from efface.cluster.tasks.retry_rules import Outcome
from efface.files import write_atomic

# The tiny campaign: UCE and ESD of 2 steps; three models of 14 images in shards of 5, 5 and 4; a trial of 8 images.
KNOWN = Rates(
    device="cpu", seconds_per_image={"tiny": 2.0}, seconds_per_job={"uce": 5.0}, seconds_per_step={"esd": 35.0}
)
WHOLE = 8 * 2 + 5 + 70 + 3 * 14 * 2


@pytest.fixture
def made(plan: Callable[..., Plan]) -> Plan:
    return plan()


class Steady:
    """A clock that goes on only when it is set."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Steady:
    steady = Steady()
    monkeypatch.setattr("efface.cluster.scheduler.progress.time", steady)
    return steady


def display(plan: Plan, root: Path, rates: Rates | None = KNOWN, workers: int = 1) -> Display:
    console = Console(file=io.StringIO())
    return Display(plan, RemainingTasks.everything(plan), workers, console, RunFolder(root), rates)


def test_before_anything_is_done_it_is_what_the_rates_say(made: Plan, tmp_path: Path, clock: Steady) -> None:
    assert display(made, tmp_path).time_left.seconds([]) == WHOLE == 175
    assert "0:00:00 elapsed, about 0:02:55 left" in display(made, tmp_path).line()
    assert "about 0:01:28 left" in display(made, tmp_path, workers=2).line()


def test_before_any_worker_has_begun_it_says_that_they_start_and_what_comes_first(
    made: Plan, tmp_path: Path, clock: Steady
) -> None:
    """The judge is calibrated before anything that it judges; then only what is under way is named."""
    seen, (calibration,) = display(made, tmp_path), made.calibrations
    expected = f"; workers are starting, the first task is {calibration.describe()}"
    assert seen.line().endswith(expected)
    console = Console(file=io.StringIO(), width=150)
    console.print(seen._view())
    assert expected[2:] in console.file.getvalue() and "worker 0  starts" in console.file.getvalue()  # type: ignore[attr-defined]
    seen.started(0, made.trainings[0])
    assert "starting" not in seen.line() and seen.line().endswith(made.trainings[0].describe())
    seen.ended(0, made.trainings[0], Outcome.done(), will_retry=False)
    assert "starting" not in seen.line()


def test_a_fast_closed_form_says_nothing_of_the_trainings_and_images_to_come(
    made: Plan, tmp_path: Path, clock: Steady
) -> None:
    seen, (uce, _) = display(made, tmp_path), made.trainings
    seen.started(0, uce)
    clock.now += 1
    seen.ended(0, uce, Outcome.done(), will_retry=False)
    assert seen.time_left.seconds([]) == WHOLE - 5


def test_what_images_really_take_corrects_all_that_are_left(made: Plan, tmp_path: Path, clock: Steady) -> None:
    seen, base = display(made, tmp_path), made.models[0]
    first = made.shards[base.id][0]
    seen.started(0, first)
    clock.now += 30  # 10 by the rates: all other images, those of the trial too, take three times as long
    seen.ended(0, first, Outcome.done(), will_retry=False)
    assert seen.time_left.seconds([]) == WHOLE - 10 + 2 * (9 + 28 + 8) * 2


def test_images_of_one_model_correct_those_of_models_of_which_none_is_done(made: Plan) -> None:
    """The base's took three times what the rates say: of 28 s for 14 images of another model 84 are left."""
    base, uce = (made.shards[model.id] for model in made.models[:2])
    left = TimeLeft([*base, *uce], {shard.id: 2.0 * shard.size for shard in (*base, *uce)}, 1)
    for shard in base:
        left.ended(shard, 6.0 * shard.size)
    assert left.seconds([]) == 84
    assert left.seconds([UnderWay(uce[0], 10.0)]) == 74


def test_a_calibration_that_took_longer_corrects_the_images_to_come(made: Plan) -> None:
    (calibration,), base = made.calibrations, made.shards[made.models[0].id]
    left = TimeLeft([calibration, *base], {calibration.id: 16.0, **{shard.id: 2.0 * shard.size for shard in base}}, 1)
    assert left.seconds([]) == 16 + 28
    left.ended(calibration, 40.0)  # 2.5 times as long
    assert left.seconds([]) == 70


def test_the_task_under_way_counts_as_far_as_it_is_and_no_further_than_it_was_expected(made: Plan) -> None:
    esd = made.trainings[1]
    left = TimeLeft([esd], {esd.id: 70.0}, 1)
    assert [left.seconds([UnderWay(esd, elapsed)]) for elapsed in (0.0, 30.0, 70.0, 500.0)] == [70, 40, 0, 0]


def test_many_workers_do_not_shorten_the_longest_task(made: Plan) -> None:
    esd = made.trainings[1]
    assert TimeLeft([esd], {esd.id: 70.0}, 64).seconds([UnderWay(esd, 10.0)]) == 60


def test_without_rates_it_is_unknown_until_one_of_each_is_done(made: Plan, tmp_path: Path, clock: Steady) -> None:
    seen = display(made, tmp_path, rates=None)
    assert "time left unknown" in seen.line()
    base = made.models[0]
    for task in (*made.calibrations, *made.trainings, made.shards[base.id][0]):
        assert "time left unknown" in seen.line()
        seen.started(0, task)
        clock.now += 10
        seen.ended(0, task, Outcome.done(), will_retry=False)
    # Five images of the base took 10 seconds; nine of it are left, and 14 of either other model.
    assert len(made.shards[base.id]) == 3 and seen.time_left.seconds([]) == pytest.approx((9 + 2 * 14) * 2)


def test_the_images_of_a_calibration_say_how_long_those_of_models_take(made: Plan) -> None:
    """8 images, of which 4 took 6 s; 42 are to come by a recipe that no rates know."""
    (calibration,) = made.calibrations
    shards = [shard for model in made.models for shard in made.shards[model.id]]
    left = TimeLeft([calibration, *shards], {}, 1)
    assert left.seconds([UnderWay(calibration, 1.0)]) is None
    assert left.seconds([UnderWay(calibration, 6.0, Count("image", 4, 8, 6.0))]) == pytest.approx((4 + 42) * 1.5)
    left.ended(calibration, 12.0)
    assert left.seconds([]) == pytest.approx(42 * 1.5)


def test_what_is_given_up_takes_no_time(made: Plan, tmp_path: Path, clock: Steady) -> None:
    seen, esd = display(made, tmp_path), made.trainings[1]
    seen.started(0, esd)
    seen.ended(0, esd, Outcome.failed("the loss is nan"), will_retry=False)
    assert seen.time_left.seconds([]) == WHOLE - 70 - 14 * 2


def test_the_rate_is_that_of_the_last_tasks_and_none_while_none_is_under_way(
    plan: Callable[..., Plan], tmp_path: Path, clock: Steady
) -> None:
    made = plan(evaluation={"images_per_prompt": 4, "shard_size": 1})
    seen, shards = display(made, tmp_path), made.shards[made.models[0].id]
    seen.started(0, made.trainings[0])
    clock.now += 600
    seen.ended(0, made.trainings[0], Outcome.done(), will_retry=False)
    assert "/s)" not in seen.line()
    for number, shard in enumerate(shards[: 2 * RATE_TASKS]):
        seen.started(0, shard)
        clock.now += 10 if number < RATE_TASKS else 0.5  # slow at first, then two a second
        seen.ended(0, shard, Outcome.done(), will_retry=False)
    seen.started(0, shards[-1])
    assert "images (2.0/s)" in seen.line()
    clock.now += 2 * RATE_TASKS
    assert "images (0.4/s)" in seen.line()  # 8 in 4 + 16 seconds


def test_a_log_says_which_training_is_at_which_step(made: Plan, tmp_path: Path, clock: Steady) -> None:
    seen, esd = display(made, tmp_path), made.trainings[1]
    seen.started(0, esd)
    assert seen.line().endswith("; training esd: cat")
    path = seen._folder.task_log(esd)
    assert path
    write_atomic(path, b"loading\nstep 60 of 1000, loss 0.5\nstep 120 of 1000, loss 0.25\n")
    clock.now += 10
    seen.look()
    assert seen.line().endswith("; training esd: cat, step 120 of 1000, loss 0.25")


def test_inside_a_shard_images_are_counted_and_the_rest_goes_by_their_rate(
    made: Plan, tmp_path: Path, clock: Steady
) -> None:
    """3 of 5 images took 12 s: 4 s an image, and 2 by the rates. 2 of this shard are left, and 37 of others."""
    seen, shard = display(made, tmp_path), made.shards[made.models[0].id][0]
    seen.started(0, shard)
    clock.now += 12
    note_count(seen._folder, shard, Count("image", 3, 5, 12.0))
    seen.look()
    assert "judging 3/42 images (0.2/s)" in seen.line()
    assert seen.line().endswith("; judging the base, shard 0, image 3 of 5")
    assert "about 0:04:23 left" in seen.line()  # WHOLE - (42 + 8) * 2 + (42 - 3 + 8) * 4
    seen.ended(0, shard, Outcome.done(), will_retry=False)
    assert "judging 5/42 images," in seen.line()


def test_without_rates_a_part_of_a_shard_says_how_long_its_like_take(made: Plan) -> None:
    shards = made.shards[made.models[0].id]
    left = TimeLeft(shards, {}, 1)
    assert left.seconds([UnderWay(shards[0], 9.0)]) is None
    assert left.seconds([UnderWay(shards[0], 9.0, Count("image", 3, 5, 9.0))]) == pytest.approx(3.0 * (14 - 3))


def test_the_steps_of_a_training_do_not_say_how_long_it_takes(made: Plan) -> None:
    """A minute may go by before the first one."""
    esd = made.trainings[1]
    assert TimeLeft([esd], {esd.id: 70.0}, 1).seconds([UnderWay(esd, 60.0, Steps(1, 1000, 0.5))]) == 10


def test_what_an_earlier_attempt_left_is_not_shown(made: Plan, tmp_path: Path, clock: Steady) -> None:
    seen, shard = display(made, tmp_path), made.shards[made.models[0].id][0]
    note_count(seen._folder, shard, Count("image", 4, 5, 100.0))
    seen.started(0, shard)
    clock.now += 2
    seen.look()
    assert "judging 0/42 images," in seen.line() and "image 4" not in seen.line()


@pytest.mark.parametrize(
    "note",
    [
        '{"unit": "\\u001b[31mimage", "done": 1, "of": 5, "seconds": 1}',
        '{"unit": "image", "done": Infinity, "of": 5, "seconds": 1}',
        '{"unit": "image", "done": 9, "of": 5, "seconds": 1}',
        '{"unit": "image", "done": 1, "of": 5, "seconds": 0}',
        '{"unit": "image", "done": "1", "of": 5}',
        "[1, 2",
    ],
)
def test_a_note_that_efface_did_not_write_says_nothing(made: Plan, tmp_path: Path, note: str) -> None:
    shard, folder = made.shards[made.models[0].id][0], RunFolder(tmp_path)
    write_atomic(folder.count_file(shard), note.encode())
    assert how_far(folder, shard, 1e9) is None


def test_a_log_whose_loss_is_no_number_says_no_step() -> None:
    assert last_steps("step 1 of 2, loss much") is None
    assert last_steps("step 1 of 2, loss nan") is not None


def test_failures_are_printed_while_the_terminal_is_drawn(made: Plan, tmp_path: Path) -> None:
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=120)
    seen = Display(made, RemainingTasks.everything(made), 1, console, RunFolder(tmp_path), KNOWN)
    seen._live.refresh_per_second = 1000  # a thread draws all the time
    esd = made.trainings[1]
    with seen:
        for _ in range(200):
            seen.started(0, esd)
            seen.ended(0, esd, Outcome.error("it broke"), will_retry=True)
    assert output.getvalue().count("it broke") >= 200 and "calibration" in output.getvalue()


def test_a_log_has_its_first_line_within_seconds(made: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And not after the quarter of a minute that later ones take."""
    monkeypatch.setattr("efface.cluster.scheduler.progress.FIRST_LINE", 0.01)
    seen, esd = display(made, tmp_path), made.trainings[1]
    path = seen._folder.task_log(esd)
    assert path
    write_atomic(path, b"step 1 of 2, loss 0.5\n")
    seen.started(0, esd)
    with seen:
        for _ in range(500):
            if "step 1 of 2" in seen.console.file.getvalue():  # type: ignore[attr-defined]
                break
            time.sleep(0.01)
        assert seen.console.file.getvalue().count("training 0/2 jobs") == 1  # type: ignore[attr-defined]


def test_an_evaluation_of_deltas_counts_no_training(made: Plan, tmp_path: Path, clock: Steady) -> None:
    evaluation, campaign = RunFolder(tmp_path / "evaluation"), RunFolder(tmp_path / "campaign")
    evaluation.root.mkdir()
    evaluation.evaluation.write_text("{}")
    every = RemainingTasks.everything(made)
    trained = replace(every, tasks=[task for task in every.tasks if task not in made.trainings])
    shown = {
        folder.root.name: Display(made, trained, 1, Console(file=io.StringIO()), folder, KNOWN).line()
        for folder in (evaluation, campaign)
    }
    assert "training 2/2 jobs" in shown["campaign"] and "judging 0/42 images" in shown["campaign"]
    assert "training" not in shown["evaluation"] and "judging 0/42 images" in shown["evaluation"]
