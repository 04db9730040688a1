"""Each check of `efface doctor`, on machines that are made up."""

from typing import Any

import pytest

from efface.launch.doctor import checks
from efface.launch.doctor.check import CheckResult
from efface.launch.doctor.checks import GIB, Build, Gpu
from efface.launch.doctor.gpu_memory import GpuMemoryEstimate
from efface.train.cost.memory import RESERVED_BYTES

CPU, CUDA12, CUDA13 = Build("2.13.0+cpu", None), Build("2.13.0", (12, 8)), Build("2.15.0", (13, 2))
H200, T4 = Gpu("NVIDIA H200", 140 * GIB), Gpu("Tesla T4", 15 * GIB)


def test_versions_that_do_not_fit_are_named_with_what_would() -> None:
    found = {"python": "3.11.7", "torch": "2.9.0", "ray": None}
    assert checks.versions(found, {}).status == "ok"
    result = checks.versions(found, {"torch": "torch>=2.10", "ray": "ray[default]>=2.52"})
    assert result == CheckResult(
        "versions",
        "problem",
        "python 3.11.7, torch 2.9.0, ray missing",
        "pip install 'torch>=2.10' 'ray[default]>=2.52'",
    )


@pytest.mark.parametrize(
    ("torch", "driver", "gpus", "status", "message"),
    [
        (CPU, False, [], "ok", "none, everything runs on the CPU"),
        (CUDA12, False, [], "ok", "none, everything runs on the CPU"),
        (CPU, True, [], "problem", "torch 2.13.0+cpu is built for CPUs, on a machine with an NVIDIA driver"),
        (CUDA13, True, [], "problem", "torch, built for CUDA 13.2, finds no GPU on a machine with an NVIDIA driver"),
        (CUDA12, True, [H200, T4], "ok", "2: NVIDIA H200 (140 GiB), Tesla T4 (15 GiB); torch for CUDA 12.8"),
    ],
)
def test_gpus_that_a_campaign_asks_for(torch: Build, driver: bool, gpus: list[Gpu], status: str, message: str) -> None:
    result = checks.cuda(torch, driver, gpus, requested=True)
    assert (result.status, result.message) == (status, message)


@pytest.mark.parametrize("torch", [CPU, CUDA13])
def test_a_driver_without_a_gpu_is_no_problem_to_who_asks_for_none(torch: Build) -> None:
    """As in a container, which shows the file of its machine's driver, and no GPU."""
    result = checks.cuda(torch, True, [], requested=False)
    assert result.status == "warning" and result.message.endswith("; everything runs on the CPU")


@pytest.mark.parametrize(
    ("torch", "wheel", "status"),
    [
        (CUDA13, None, "ok"),
        (CPU, Build("0.0.35", (12, 8)), "ok"),
        (CUDA12, Build("0.0.35", (12, 6)), "ok"),
        (CUDA13, Build("0.0.35", (12, 8)), "warning"),
        (CUDA13, Build("0.0.35", None), "warning"),
    ],
)
def test_xformers_goes_with_torchs_cuda(torch: Build, wheel: Build | None, status: str) -> None:
    assert checks.xformers(torch, wheel).status == status


def test_the_published_wheel_of_xformers_does_not_go_with_cuda_13() -> None:
    result = checks.xformers(CUDA13, Build("0.0.35", (12, 8)))
    assert result.message == "0.0.35 is built for CUDA 12.8, torch for CUDA 13.2"
    assert result.remedy == "install the xformers for CUDA 13 from PyTorch's index, or do without it"


@pytest.mark.parametrize(
    ("gpus", "version", "status"), [(0, None, "ok"), (1, None, "ok"), (2, None, "problem"), (8, "2.28.3", "ok")]
)
def test_nccl_is_needed_from_two_gpus_on(gpus: int, version: str | None, status: str) -> None:
    assert checks.nccl(gpus, version).status == status


@pytest.mark.parametrize(
    ("loopback", "own", "joins_cluster", "status"),
    [
        ("", "", False, "ok"),
        ("no", "", False, "problem"),  # Ray of `efface run` keeps to it
        ("", "no", False, "warning"),  # a cluster's process groups meet there, and a run on this machine does not
        ("", "no", True, "problem"),
    ],
)
def test_a_port_is_needed_where_processes_will_meet(loopback: str, own: str, joins_cluster: bool, status: str) -> None:
    result = checks.port({"127.0.0.1": loopback, "10.0.0.7": own}, joins_cluster)
    assert result.status == status
    for address, error in (("127.0.0.1", loopback), ("10.0.0.7", own)):
        assert (f"no port of {address} can be listened on and reached (no)" in result.message) == bool(error)


def memory_of(wanted: float, estimate: GpuMemoryEstimate, gpus: list[Gpu]) -> CheckResult:
    return checks.gpu_memory(wanted, estimate, gpus, RESERVED_BYTES, "efface prefetch mine")


SMALL = GpuMemoryEstimate(training={"uce": 4 * GIB}, judging=10 * GIB, judges=2 * GIB)


@pytest.mark.parametrize(
    ("wanted", "estimate", "gpus", "status", "message"),
    [
        (1, SMALL, [H200, T4], "ok", "uce 4.0 GiB, judging 10.0 GiB (of that the judges 2.0); a worker has 15.0 GiB"),
        (1, GpuMemoryEstimate({"esd": 14 * GIB}, GIB, 0), [T4], "warning", "a close fit: CUDA itself takes some 2 GB"),
        (
            1,
            GpuMemoryEstimate({"uce": GIB, "u": 16 * GIB}, GIB, 0),
            [T4],
            "problem",
            "u 16.0 GiB, judging 1.0 GiB; a worker",
        ),
        (
            1,
            GpuMemoryEstimate({"uce": GIB}, 16 * GIB, 0),
            [T4],
            "problem",
            "uce 1.0 GiB, judging 16.0 GiB; a worker has 15.0 GiB",
        ),
        (0.1, GpuMemoryEstimate({"esd": 15 * GIB}, GIB, 0), [H200], "problem", "a worker has 14.0 GiB"),
        (
            1,
            GpuMemoryEstimate({"a": GIB, "b": GIB, "c": 2 * GIB}, 0, 0),
            [T4],
            "ok",
            "a (and 1 like it) 1.0 GiB, c 2.0 GiB",
        ),
        (
            1,
            SMALL,
            [],
            "warning",
            "1 GPU a worker, and this machine has none; estimate: uce 4.0 GiB, judging",
        ),
    ],
)
def test_gpu_memory(wanted: float, estimate: GpuMemoryEstimate, gpus: list[Gpu], status: str, message: str) -> None:
    result = memory_of(wanted, estimate, gpus)
    assert result.status == status and message in result.message


def test_a_judge_that_cannot_be_measured_is_named_with_what_fetches_it() -> None:
    result = memory_of(1, GpuMemoryEstimate({"uce": GIB}, GIB, 0, ("llava-1.5-7b",)), [T4])
    assert result.status == "warning" and result.remedy == "efface prefetch mine"
    assert "judging 1.0 GiB, without llava-1.5-7b, whose weights are not on this machine" in result.message


def test_what_was_measured_is_said_apart_from_what_is_estimated() -> None:
    both = GpuMemoryEstimate({"esd": 4 * GIB, "uce": 2 * GIB}, GIB, 0, measured=("esd",))
    assert memory_of(1, both, [T4]).message.startswith("measured: esd 4.0 GiB; estimate: uce 2.0 GiB, judging 1.0 GiB")
    assert memory_of(1, SMALL, [T4]).message.startswith("estimate: uce 4.0 GiB, judging")


def test_a_step_that_ran_out_of_memory_is_a_problem_whatever_the_estimate() -> None:
    result = memory_of(1, GpuMemoryEstimate({"esd": GIB}, GIB, 0, out_of_memory=("esd",)), [T4])
    assert result.status == "problem" and result.message.endswith("a step of esd ran out of memory here")
    assert "gradient checkpointing" in result.remedy


@pytest.mark.parametrize(("free", "status"), [(None, "warning"), (64 * 2**20, "warning"), (8 * GIB, "ok")])
def test_shared_memory(free: int | None, status: str) -> None:
    assert checks.shared_memory(free).status == status


@pytest.mark.parametrize(
    ("free", "needed", "status"),
    [
        (100 * GIB, None, "ok"),
        (GIB, None, "warning"),
        (100 * GIB, 90 * GIB, "ok"),
        (100 * GIB, 150 * GIB, "warning"),
        (100 * GIB, 250 * GIB, "problem"),
    ],
)
def test_disk(free: int, needed: int | None, status: str) -> None:
    assert checks.disk(free, needed).status == status


@pytest.mark.parametrize(("limit", "status"), [(256, "problem"), (1024, "ok"), (65_535, "ok")])
def test_open_files(limit: int, status: str) -> None:
    assert checks.open_files(limit).status == status


@pytest.mark.parametrize(
    ("offline", "error", "missing", "status"),
    [
        (False, None, [], "ok"),
        (False, None, ["a/b"], "ok"),
        (False, "timed out", [], "warning"),
        (False, "timed out", ["a/b"], "problem"),
        (True, None, [], "ok"),
        (True, None, ["a/b"], "problem"),
    ],
)
def test_the_hub_matters_where_something_is_missing(
    offline: bool, error: str | None, missing: list[str], status: str
) -> None:
    assert checks.hub(offline, "https://hub", error, missing).status == status


@pytest.mark.parametrize(
    ("version", "mode", "token", "joins_cluster", "status"),
    [
        (None, None, False, False, "problem"),
        ("2.51.1", None, False, False, "problem"),  # tokens came with 2.52
        ("2.52.0", None, False, False, "warning"),
        ("2.52.0", "token", False, False, "ok"),
        ("2.60.0", None, False, False, "ok"),  # on by default for local clusters since 2.59
        ("2.60.0", "disabled", True, False, "warning"),
        ("2.60.0", None, False, True, "problem"),
        ("2.60.0", "token", True, True, "ok"),
        ("2.60.0", None, True, True, "ok"),
        ("2.9.3", None, True, False, "problem"),  # numbers, not letters, are compared
    ],
)
def test_ray_asks_for_a_token(
    version: str | None, mode: str | None, token: bool, joins_cluster: bool, status: str
) -> None:
    assert checks.ray_tokens(version, mode, token, joins_cluster).status == status


@pytest.mark.parametrize(
    ("processes", "joins_cluster", "status"), [([], False, "ok"), ([12, 13], False, "warning"), ([12], True, "ok")]
)
def test_a_ray_that_runs_already(processes: list[int], joins_cluster: bool, status: str) -> None:
    assert checks.ray_here(processes, joins_cluster).status == status


def failing_results() -> list[CheckResult]:
    """One of each that is not ok."""
    return [
        checks.versions({"torch": None}, {"torch": "torch>=2.10"}),
        *(checks.cuda(torch, True, [], requested) for torch in (CPU, CUDA12) for requested in (True, False)),
        checks.xformers(CUDA13, Build("0.0.35", (12, 8))),
        checks.nccl(2, None),
        checks.port({"127.0.0.1": "no"}, False),
        checks.port({"127.0.0.1": "", "10.0.0.7": "no"}, False),
        memory_of(1, SMALL, []),
        memory_of(1, GpuMemoryEstimate({"esd": 20 * GIB}, 0, 0), [T4]),
        memory_of(1, GpuMemoryEstimate({"esd": 0}, 14 * GIB, 0), [T4]),
        memory_of(1, GpuMemoryEstimate({"esd": 0}, 0, 0, ("llava-1.5-7b",)), [T4]),
        checks.shared_memory(None),
        checks.shared_memory(0),
        checks.disk(0, None),
        checks.disk(GIB, 4 * GIB),
        checks.open_files(256),
        checks.hub(True, "https://hub", None, ["a/b"]),
        checks.hub(False, "https://hub", "timed out", []),
        checks.hub(False, "https://hub", "timed out", ["a/b"]),
        checks.ray_tokens(None, None, False, False),
        checks.ray_tokens("2.51.0", None, False, False),
        checks.ray_tokens("2.60.0", "disabled", True, False),
        checks.ray_tokens("2.60.0", None, False, True),
        checks.ray_tokens("2.52.0", None, False, False),
        checks.ray_here([1], False),
    ]


@pytest.mark.parametrize("result", failing_results(), ids=lambda result: result.name)
def test_whatever_is_not_ok_has_a_remedy_in_one_line(result: Any) -> None:
    assert result.status in ("warning", "problem")
    assert result.remedy and "\n" not in result.message + result.remedy


@pytest.mark.parametrize(("mode", "status"), [(0o600, "ok"), (0o400, "ok"), (0o640, "problem"), (0o604, "problem")])
def test_a_token_that_others_can_read_is_a_problem(mode: int, status: str) -> None:
    result = checks.token_files({"/home/me/my token": mode})
    assert result.status == status
    assert result.remedy == ("chmod 600 '/home/me/my token'" if status == "problem" else "")


def test_without_a_token_there_is_none_to_read() -> None:
    assert checks.token_files({}) == CheckResult("token files", "ok", "none")
