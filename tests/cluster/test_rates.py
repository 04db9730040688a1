"""Rates: seconds by steps and concepts, means learned from records, and measured numbers before estimates."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, cast

import pytest

from efface.cluster.campaign import rates as rates_module
from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import (
    Rates,
    durations,
    find_rates,
    measured_file,
    rates_for,
    read_rates,
    task_bytes,
    task_seconds,
)
from efface.cluster.measured_rates import measure_rates, merge_rates, update_measured_rates
from efface.cluster.storage.records import Output, Record
from efface.cluster.storage.run_folder import RunFolder
from efface.errors import UserError
from efface.models.shapes import model_shapes
from efface.train.cost.flops import step_flops
from efface.train.method import get_method, parse_config

MakePlan = Callable[..., Plan]


def rates(**known: Any) -> Rates:
    return Rates(**{"device": "cpu", "seconds_per_image": {}, "seconds_per_job": {}, **known})


class Records:
    """A run folder of which only the records are read."""

    def __init__(self, records: dict[str, Record]) -> None:
        self._records = records

    def records(self, tasks: Iterable[Any]) -> dict[str, Record]:
        return {task.id: self._records[task.id] for task in tasks if task.id in self._records}


def record(seconds: float, size: int = 100, device: str = "cpu") -> Record:
    return Record("", "", {"a": Output(size, "")}, seconds, device)


def folder(records: dict[str, Record]) -> RunFolder:
    return cast(RunFolder, Records(records))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_gradient_job_takes_its_steps_times_the_seconds_of_one(plan: MakePlan) -> None:
    made = plan()
    esd = made.trainings[1]
    assert esd.job.config["steps"] == 2
    assert task_seconds(esd, made, rates(seconds_per_step={"esd": 3.0})) == 6
    assert task_seconds(esd, made, rates(seconds_per_step={"esd": 3.0}, seconds_per_job={"esd": 10.0})) == 16
    assert task_seconds(esd, made, rates(seconds_per_job={"esd": 10.0})) == 10
    assert task_seconds(esd, made, rates(seconds_per_job={"uce": 10.0})) is None


def test_other_numbers_of_steps_are_estimated_in_proportion(plan: MakePlan) -> None:
    made = plan(methods=[{"method": "esd", "config": {"steps": [2, 50], "rollout_steps": 3}}])
    known = rates(seconds_per_image={"tiny": 1.0}, seconds_per_step={"esd": 3.0})
    assert [durations(made, known)[job.id] for job in made.jobs] == [6, 150]


def test_ca_counts_the_steps_that_its_samples_take(plan: MakePlan) -> None:
    made = plan(methods=[{"method": "ca", "config": {"samples_seen": 25, "batch_size": 8}}])
    assert task_seconds(made.trainings[0], made, rates(seconds_per_step={"ca": 1.0})) == 4


def test_what_comes_before_the_first_step_is_done_for_each_concept(plan: MakePlan) -> None:
    made = plan(strategy="multi", concepts={"targets": ["cat", "bus"]}, evaluation={"prompts_per_concept": {}})
    assert task_seconds(made.trainings[0], made, rates(seconds_per_job={"uce": 5.0})) == 10


def test_a_request_of_a_chain_is_trained_on_its_last_concept_and_solved_for_all(plan: MakePlan) -> None:
    limits = {"prompts_per_concept": {"retain": 0}}
    made = plan(strategy="continual", concepts={"targets": ["cat", "bus"]}, evaluation=limits)
    known = rates(seconds_per_job={"uce": 5.0, "esd": 100.0}, seconds_per_step={"esd": 3.0})
    seconds = [task_seconds(task, made, known) for task in made.trainings]
    assert next((model.label, model.job and model.job.method) for model in made.jobs) == ("uce 1/2", "uce")
    assert seconds == [5, 10, 106, 106]


def test_a_closed_form_has_no_steps(plan: MakePlan) -> None:
    made = plan()
    assert task_seconds(made.trainings[0], made, rates(seconds_per_step={"uce": 5.0})) is None


def test_a_method_that_no_table_knows_takes_its_operations_over_what_the_device_sustains(plan: MakePlan) -> None:
    made = plan()
    esd = made.trainings[1]
    base = model_shapes(made.base)
    flops = 2 * step_flops(get_method("esd")(parse_config("esd", esd.job.config)), base)
    assert flops > 0
    known = rates(tflops={"fp32": 2e-6, "bf16": 1.0}, job_seconds=5)
    assert task_seconds(esd, made, known) == pytest.approx(5 + flops / 2e6)
    assert task_seconds(esd, made, rates(tflops={"fp32": 1}, seconds_per_step={"esd": 3.0})) == 6
    # the cross-attention, in fp32
    weights = sum(parameter.numel() for name, parameter in base.unet.named_parameters() if "attn2" in name)
    assert task_bytes(esd, made, known) == 4 * weights


def test_a_closed_form_takes_no_operations(plan: MakePlan) -> None:
    made = plan()
    assert task_seconds(made.trainings[0], made, rates(tflops={"fp32": 1}, job_seconds=5)) == 5


def test_images_that_jobs_share_are_made_once_and_those_of_a_concept_for_each(plan: MakePlan) -> None:
    fade = {"method": "fade", "config": {"sizes": None, "steps": 1, "images_per_candidate": 10_000}}
    ca = {"method": "ca", "config": {"samples_seen": 1, "batch_size": 1, "anchor_images": 100}}

    def total(method: dict[str, Any], *targets: str) -> float:
        found = durations(plan(methods=[method], concepts={"targets": list(targets)}), known)
        made = plan(methods=[method], concepts={"targets": list(targets)})
        return sum(found[model.id] for model in made.jobs)

    known = rates(seconds_per_image={"tiny": 0.0001}, tflops={"fp32": 1e-6})
    assert total(ca, "cat", "bus") == pytest.approx(2 * total(ca, "cat"))
    assert total(fade, "cat", "bus") < 1.2 * total(fade, "cat")


def test_rates_are_learned_from_records_as_means_over_images_steps_and_models(plan: MakePlan) -> None:
    made = plan(seeds=[0, 1])
    uce, uce_too, esd, esd_too = (job.id for job in made.jobs)
    first, *rest = made.shards[uce]
    assert [len(shard.eval_requests) for shard in (first, *rest)] == [5, 5, 4]
    done = {
        uce: record(3.0, 1000),
        uce_too: record(5.0, 3000),
        esd: record(8.0, 70),
        esd_too: record(10.0, 90),
        first.id: record(10.0, 500),
        rest[1].id: record(17.0, 400),
    }
    (found,) = measure_rates(made, done, [*made.trainings, first, *rest])
    assert (found.device, found.base) == ("cpu", "tiny")
    assert found.seconds_per_job == {"uce": 4.0}
    assert found.seconds_per_step == {"esd": 18 / 4}
    assert found.seconds_per_image == {"tiny": 27 / 9}
    assert found.bytes_per_image == {"tiny": 100}
    assert found.bytes_per_delta == {"uce": 2000, "esd": 80}
    assert found.counts["seconds_per_step"] == {"esd": 4} and found.counts["seconds_per_image"] == {"tiny": 9}


def test_every_device_of_a_run_has_rates_of_its_own(plan: MakePlan) -> None:
    made = plan()
    uce, esd = (job.id for job in made.jobs)
    done = {uce: record(1.0, device="NVIDIA H200"), esd: record(8.0)}
    found = {rates.device: rates for rates in measure_rates(made, done, made.trainings)}
    assert found["NVIDIA H200"].seconds_per_job == {"uce": 1.0} and not found["NVIDIA H200"].seconds_per_step
    assert found["cpu"].seconds_per_step == {"esd": 4.0}


def test_two_runs_are_merged_by_what_they_stand_on() -> None:
    def measured(mean: float, count: int) -> Rates:
        return rates(seconds_per_step={"esd": mean}, counts={"seconds_per_step": {"esd": count}})

    both = merge_rates(measured(1.0, 300), measured(2.0, 100))
    assert both.seconds_per_step == {"esd": 1.25} and both.counts == {"seconds_per_step": {"esd": 400}}
    other = rates(seconds_per_step={"ca": 7.0}, counts={"seconds_per_step": {"ca": 1}})
    assert merge_rates(both, other).seconds_per_step == {"esd": 1.25, "ca": 7.0}


def test_what_a_run_took_is_kept_and_found_again(plan: MakePlan, cache: Path) -> None:
    made = plan()
    uce, esd = (job.id for job in made.jobs)
    update_measured_rates(made, folder({esd: record(8.0)}), made.tasks)
    (written,) = update_measured_rates(made, folder({esd: record(2.0), uce: record(1.0)}), made.tasks)
    assert written == measured_file("cpu", "tiny") == cache / "rates" / "cpu-tiny.json"
    found = find_rates("cpu", "tiny")
    assert found and found.seconds_per_step == {"esd": 2.5} and found.seconds_per_job == {"uce": 1.0}
    assert rates_for(made) == found


def test_bases_whose_names_look_alike_have_rates_of_their_own(cache: Path) -> None:
    assert len({measured_file("cpu", base) for base in ("模型", "猫", "sd", "sd+", "sd#")}) == 5


def test_a_run_in_which_nothing_was_left_teaches_nothing(plan: MakePlan, cache: Path) -> None:
    made = plan()
    done = folder({job.id: record(8.0) for job in made.jobs})
    assert update_measured_rates(made, done, []) == [] and not (cache / "rates").exists()


def test_a_cache_that_cannot_be_written_or_read_only_means_that_nothing_is_known(
    plan: MakePlan, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("EFFACE_CACHE", "/dev/null/cache")
    made = plan()
    assert update_measured_rates(made, folder({made.jobs[1].id: record(8.0)}), made.tasks) == []
    assert find_rates("cpu", "tiny") is None
    monkeypatch.setenv("EFFACE_CACHE", str(tmp_path))
    measured_file("cpu", "tiny").parent.mkdir()
    measured_file("cpu", "tiny").write_text("{damaged")
    assert find_rates("cpu", "tiny") is None


def test_measured_rates_go_before_the_shipped_estimates(cache: Path) -> None:
    shipped = read_rates("h200")
    assert find_rates("NVIDIA H200", "sd-v1-4") == shipped
    assert find_rates("NVIDIA H200", "another-base") is None
    measured = rates(
        device="NVIDIA H200",
        base="sd-v1-4",
        seconds_per_step={"ca": 7.0},
        counts={"seconds_per_step": {"ca": 100}},
    )
    measured_file("NVIDIA H200", "sd-v1-4").parent.mkdir(parents=True)
    measured_file("NVIDIA H200", "sd-v1-4").write_text(json.dumps(measured.model_dump(mode="json")))
    found = find_rates("NVIDIA H200", "sd-v1-4")
    assert found and found.seconds_per_step == {"ca": 7.0} and found.tflops == shipped.tflops
    assert found.seconds_per_image == shipped.seconds_per_image and found.counts == measured.counts


def test_rates_requested_by_name_go_before_all(plan: MakePlan) -> None:
    assert rates_for(plan(), "h200") == read_rates("h200")
    with pytest.raises(UserError, match="did you mean 'h200'"):
        rates_for(plan(), "h20")


def test_a_machine_without_the_gpus_of_a_plan_has_no_rates_for_it(
    plan: MakePlan, monkeypatch: pytest.MonkeyPatch, cache: Path
) -> None:
    monkeypatch.setattr(rates_module, "this_device", lambda gpus: None if gpus else "cpu")
    assert rates_for(plan(resources={"gpus": 1})) is None


def test_a_calibration_teaches_nothing_for_it_also_loads_its_judge(plan: MakePlan) -> None:
    made = plan()
    assert measure_rates(made, {made.calibrations[0].id: record(60.0)}, made.tasks) == []
