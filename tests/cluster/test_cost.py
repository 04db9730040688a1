"""What a plan costs by given rates, worked out by hand."""

from collections.abc import Callable
from typing import Any

import pytest

from efface.cluster.campaign.cost import estimate
from efface.cluster.campaign.plan import Plan
from efface.cluster.campaign.rates import Rates

MakePlan = Callable[..., Plan]

# The tiny campaign: UCE and ESD of 2 steps; three models of 14 images; a trial of 8 images.
KNOWN: dict[str, Any] = {
    "device": "a GPU",
    "seconds_per_image": {"tiny": 2.0},
    "seconds_per_job": {"uce": 5.0},
    "seconds_per_step": {"esd": 35.0},
    "bytes_per_delta": {"uce": 1000.0, "esd": 3000.0},
    "bytes_per_image": {"tiny": 100.0},
}


def test_training_judging_and_storage_are_added_up(plan: MakePlan) -> None:
    made = plan()
    found = estimate(made, made.tasks, Rates(**KNOWN, load_seconds=1.0))
    assert found.by_kind["training"] == {"uce": 5, "esd": 70}
    # The deltas of two models are loaded.
    assert found.by_kind["judging"] == {"base": 2.0 * 14, "uce": 2.0 * 14 + 1, "esd": 2.0 * 14 + 1}
    assert found.by_kind["calibration"] == {"none": 2.0 * 8}
    assert found.seconds == 5 + 70 + 86 + 16
    assert found.disk_bytes == 1000 + 3000 + 3 * 14 * 100
    assert found.unknown == ()


def test_only_what_is_left_counts(plan: MakePlan) -> None:
    made = plan()
    left = [made.trainings[0], made.shards[made.models[0].id][0]]
    found = estimate(made, left, Rates(**KNOWN, load_seconds=1.0))
    assert found.by_kind == {"training": {"uce": 5}, "judging": {"base": 10}}
    assert found.disk_bytes == 1000 + 5 * 100
    assert estimate(made, [], Rates(**KNOWN)).describe() == []


def test_what_the_rates_do_not_know_is_named_and_not_counted(plan: MakePlan) -> None:
    made = plan(seeds=[0, 1])
    known = {**KNOWN, "seconds_per_image": {}, "seconds_per_step": {}, "bytes_per_delta": {"uce": 1000.0}}
    found = estimate(made, made.tasks, Rates(**known))
    assert found.by_kind == {"training": {"uce": 10}}
    assert found.disk_bytes == 2 * 1000 + 5 * 14 * 100
    assert found.unknown == (
        "calibration by 'tiny' (1 judge)",
        "training by 'esd' (2 jobs)",
        "judging by 'tiny' (70 images)",
        "storage after training by 'esd'",
    )
    assert found.describe()[-1] == "not counted, as there is no rate for it: storage after training by 'esd'"


def test_gpu_hours_are_those_of_the_workers_share_of_a_gpu(plan: MakePlan) -> None:
    for gpus in (0, 0.5, 1):
        made = plan(resources={"gpus": gpus})
        found = estimate(made, made.tasks, Rates(**KNOWN))
        assert found.gpu_hours == pytest.approx((5 + 70 + 84 + 16) * gpus / 3600)


@pytest.mark.parametrize(
    ("counts", "basis"),
    [
        ({}, "estimated"),
        ({"seconds_per_step": {"esd": 2}}, "partly measured"),
        ({table: {name: 1 for name in KNOWN[table]} for table in KNOWN if table != "device"}, "measured"),
    ],
)
def test_it_says_whether_rates_were_measured(plan: MakePlan, counts: dict[str, Any], basis: str) -> None:
    made = plan()
    found = estimate(made, made.tasks, Rates(**KNOWN, counts=counts))
    assert found.basis == basis and f"(rates {basis})" in found.describe()[0]


def test_it_is_described_in_hours_and_bytes(plan: MakePlan) -> None:
    made = plan()
    found = estimate(made, made.tasks, Rates(**{**KNOWN, "seconds_per_step": {"esd": 18_000.0}}))
    assert found.describe() == [
        "about 10.0 h of one worker on a GPU (rates estimated): calibration 16 s, "
        "training 10.0 h (uce 5 s, esd 10.0 h), judging 84 s",
        "about 8.2 kB of results",
    ]
    assert found.as_json()["by_kind"]["training"] == {"uce": 5.0, "esd": 36_000.0} and found.as_json()["gpu_hours"] == 0
