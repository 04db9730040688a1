"""Which task a free worker takes next."""

from collections.abc import Callable

import pytest

from efface.cluster.campaign.plan import Plan
from efface.cluster.scheduler.queue import Queue
from efface.cluster.tasks.judging import Shard
from efface.cluster.tasks.task import Task
from efface.cluster.tasks.training import TrainingTask


@pytest.fixture
def made(plan: Callable[..., Plan]) -> Plan:
    return plan()


def queue(plan: Plan, *, judge_calibrated: bool = True, jobs: bool = True, workers: int = 1) -> Queue:
    """All the tasks of a plan; `judge_calibrated`: the judges are; `jobs`: the models that jobs make are still
    to be made."""
    done = [*(plan.calibrations if judge_calibrated else ()), *(() if jobs else plan.trainings)]
    products = {*plan.products, *(task.provides for task in done if task.provides)}
    return Queue([task for task in plan.tasks if task not in done], products, workers)


def drain(queue: Queue, resident: str | None = None, *, prefetch: bool = False) -> list[Task]:
    taken = []
    while task := queue.take(resident, prefetch=prefetch):
        taken.append(task)
    return taken


def test_a_worker_keeps_to_the_model_it_holds(made: Plan) -> None:
    waiting = queue(made, jobs=False)
    resident = made.models[1].id
    assert [waiting.take(resident) for _ in range(3)] == list(made.shards[resident])
    following = waiting.take(resident)
    assert isinstance(following, Shard) and following.model.id != resident


def test_jobs_come_before_the_shards_of_a_model_that_nobody_holds(made: Plan) -> None:
    taken = drain(queue(made), resident=None)
    assert taken == [*made.trainings, *made.shards[made.models[0].id]]


def test_shards_of_the_held_model_come_before_jobs(made: Plan) -> None:
    base = made.models[0].id
    taken = drain(queue(made), resident=base)
    assert taken == [*made.shards[base], *made.trainings]


def test_a_models_shards_wait_until_it_exists(made: Plan) -> None:
    waiting = queue(made)
    drain(waiting)
    assert len(waiting) == 6 and waiting.take(made.jobs[0].id) is None
    waiting.done(made.trainings[1])
    assert drain(waiting) == list(made.shards[made.jobs[1].id])
    assert len(waiting) == 3


def test_all_shards_wait_until_every_judge_is_calibrated_but_jobs_do_not(made: Plan) -> None:
    waiting = queue(made, judge_calibrated=False)
    taken = drain(waiting, resident=made.models[0].id)
    assert taken == [*made.calibrations, *made.trainings]
    for calibration in made.calibrations:
        assert waiting.take(made.models[0].id) is None
        waiting.done(calibration)
    assert isinstance(waiting.take(None), Shard)


def test_the_last_jobs_are_shared_out_before_even_the_shards_of_the_held_model(made: Plan) -> None:
    base = made.models[0].id
    assert drain(queue(made, workers=2), resident=base)[:2] == list(made.trainings)


def test_a_second_task_is_a_shard_or_nothing(made: Plan) -> None:
    base = made.models[0].id
    assert drain(queue(made), base, prefetch=True) == list(made.shards[base])
    assert drain(queue(made, judge_calibrated=False), base, prefetch=True) == []
    assert len(drain(queue(made, jobs=False), None, prefetch=True)) == 9


def test_a_second_task_of_another_model_waits_for_the_jobs(made: Plan) -> None:
    assert drain(queue(made), resident=None, prefetch=True) == []


def test_no_second_task_is_taken_from_workers_that_have_none(made: Plan) -> None:
    waiting = queue(made, workers=3)
    assert waiting.take(made.models[0].id, prefetch=True) == made.shards[made.models[0].id][0]
    assert waiting.take(made.models[0].id, prefetch=True) is None


def test_of_models_nobody_holds_the_one_with_most_shards_goes_first(made: Plan) -> None:
    waiting = queue(made, jobs=False)
    first, second = made.models[:2]
    assert waiting.take(first.id) == made.shards[first.id][0]
    following = waiting.take(None)
    assert following == made.shards[second.id][0]


def test_a_dropped_model_takes_its_shards_along_and_no_others(made: Plan) -> None:
    waiting = queue(made, jobs=False)
    before = len(waiting)
    waiting.drop(made.trainings[0])
    assert len(waiting) == before - 3
    left = {task.model.id for task in drain(waiting) if isinstance(task, Shard)}
    assert left == {made.models[0].id, made.jobs[1].id}
    waiting.drop(made.trainings[0])
    assert len(waiting) == 0


def test_a_requeued_task_comes_again_once_after_the_rest(made: Plan) -> None:
    waiting = queue(made, judge_calibrated=False)
    calibration, job = waiting.take(None), waiting.take(None)
    assert calibration and isinstance(job, TrainingTask)
    waiting.requeue(job)
    waiting.requeue(calibration)
    assert drain(waiting) == [calibration, made.trainings[1], job]
    waiting.done(calibration)
    shard = waiting.take(None)
    assert isinstance(shard, Shard)
    waiting.requeue(shard)
    assert drain(waiting)[-1] == shard and len(waiting) == 6
