"""Whatever happens to a run, taken up again it comes to the same. `benchmarks/chaos.py` tries much more of it."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from chaos_disturbances import (
    AskToStop,
    AskTwice,
    BecomesReadOnly,
    Cancel,
    Damage,
    DiskFillsUp,
    Disturbance,
    FullDisk,
    KillDriver,
    KillDriverBetweenWrites,
    KillNode,
    KillTraining,
    KillWorker,
    PowerLoss,
    ReadOnly,
    Stall,
    TwoContainers,
    TwoDrivers,
    WildTimes,
)
from chaos_scene import has_disks
from chaos_trial import ChaosRuns

ANYWHERE: list[Sequence[type[Disturbance]]] = [
    (KillDriver, KillDriver),
    (KillDriverBetweenWrites, KillDriverBetweenWrites),
    (AskToStop, AskTwice),
    (Cancel, WildTimes),
    (KillDriver, Damage, Damage),
    (TwoDrivers,),
    (TwoContainers,),
    (Stall, Stall),
    (PowerLoss, PowerLoss, PowerLoss),
    (KillTraining, PowerLoss, KillTraining),
]
ON_A_DISK: list[Sequence[type[Disturbance]]] = [
    (FullDisk, DiskFillsUp),
    (KillDriver, ReadOnly, BecomesReadOnly),
]
ON_RAY: list[Sequence[type[Disturbance]]] = [(KillWorker,), (KillNode,), (KillDriver, AskToStop)]


def names(kinds: Sequence[type[Disturbance]]) -> str:
    return "+".join(kind.__name__ for kind in kinds)


@pytest.fixture(scope="module")
def chaos_runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChaosRuns]:
    with ChaosRuns(tmp_path_factory.mktemp("trials"), seed=1, campaigns=2) as chaos_runs:
        yield chaos_runs


@pytest.mark.parametrize("kinds", ANYWHERE, ids=names)
def test_a_disturbed_run_comes_to_the_same(kinds: Sequence[type[Disturbance]], chaos_runs: ChaosRuns) -> None:
    report = chaos_runs.run(ANYWHERE.index(kinds), 0, [kind() for kind in kinds])
    assert report.wrong == [] and report.rows


@pytest.mark.parametrize("kinds", ON_A_DISK, ids=names)
def test_a_disk_without_room_or_rights_ends_in_one_sentence_and_costs_nothing(
    kinds: Sequence[type[Disturbance]], chaos_runs: ChaosRuns, tmp_path: Path
) -> None:
    if not has_disks(tmp_path):
        pytest.skip("needs root, for a disk of its own")
    report = chaos_runs.run(100 + ON_A_DISK.index(kinds), 0, [kind() for kind in kinds])
    assert report.wrong == [] and report.rows


@pytest.mark.slow
@pytest.mark.parametrize("number", range(20))
def test_a_run_disturbed_at_random_comes_to_the_same(number: int, chaos_runs: ChaosRuns, tmp_path: Path) -> None:
    if not has_disks(tmp_path):
        pytest.skip("needs root, for disks of its own")
    assert chaos_runs.run(number, 0).wrong == []


@pytest.mark.slow
@pytest.mark.parametrize("kinds", ON_RAY, ids=names)
def test_a_disturbed_run_on_ray_comes_to_the_same(kinds: Sequence[type[Disturbance]], chaos_runs: ChaosRuns) -> None:
    report = chaos_runs.run(200 + ON_RAY.index(kinds), 2, [kind() for kind in kinds])
    assert report.wrong == [] and report.rows
