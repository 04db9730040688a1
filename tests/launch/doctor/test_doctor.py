"""`efface doctor` on this machine, and on made-up ones: it says all it looked at, and never breaks."""

import json
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import RunEfface

from efface.launch.doctor import checks, facts
from efface.launch.doctor.check import CheckResult
from efface.launch.doctor.checks import GIB, Build, Gpu
from efface.launch.doctor.examination import run_checks

ALWAYS = {"versions", "gpus", "xformers", "nccl", "port", "shared memory", "open files", "disk", "hub"}
ALWAYS |= {"ray tokens", "token files", "ray here"}
WITH_A_CAMPAIGN = ALWAYS | {"campaign", "gpu memory"}


@pytest.fixture(autouse=True)
def _healthy(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with nothing to complain about, whatever the one that runs the tests is like."""
    monkeypatch.setattr(facts, "hub_error", lambda: None)
    monkeypatch.setattr(facts, "ray_processes", list)
    monkeypatch.setattr(facts, "token_files", dict)
    monkeypatch.setattr(facts, "free_bytes", lambda path: 10**12)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)


def campaign(tmp_path: Path, **changes: Any) -> str:
    file = tmp_path / "campaign.yaml"
    requested = {"name": "mine", "base": "miniature", "methods": [{"method": "uce"}], **changes}
    file.write_text(yaml.safe_dump(requested))
    return str(file)


def by_name(results: list[CheckResult]) -> dict[str, CheckResult]:
    return {check.name: check for check in results}


def test_everything_is_looked_at_and_a_healthy_machine_ends_with_0(efface: RunEfface) -> None:
    result = efface("doctor", "--json")
    found = json.loads(result.out)
    assert {check["name"] for check in found} == ALWAYS
    assert all(set(check) == {"name", "status", "message", "remedy"} for check in found)
    assert (result.code, result.err) == (0, "")
    assert f"python {sys.version.split()[0]}" in next(f["message"] for f in found if f["name"] == "versions")


def test_people_get_a_line_for_each_and_an_arrow_to_the_remedy(
    efface: RunEfface, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "open_files", lambda limit: CheckResult("open files", "problem", "too few", "raise it"))
    result = efface("doctor")
    assert "problem open files: too few\n        -> raise it\n" in result.out
    assert result.code == 1 and all(f"{name}: " in result.out for name in ALWAYS)


def test_a_warning_does_not_fail(efface: RunEfface, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(facts, "ray_processes", lambda: [1])
    result = efface("doctor")
    assert "warning ray here" in result.out and result.code == 0


def test_a_check_that_breaks_is_a_finding(efface: RunEfface, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> list[int]:
        raise RuntimeError("psutil is confused\nat length")

    monkeypatch.setattr(facts, "ray_processes", broken)
    result = efface("doctor")
    assert "warning ray here: could not be checked (psutil is confused)" in result.out and result.code == 0


def test_a_hub_that_never_answers_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(facts, "TIMEOUT", 0.2)
    monkeypatch.setattr(facts, "hub_error", threading.Event().wait)
    check = by_name(list(run_checks(None)))["hub"]
    assert check.status == "warning" and check.message.endswith("cannot be reached (no answer in 0.2 s)")


def test_a_campaign_is_planned_and_measured(tmp_path: Path) -> None:
    found = by_name(list(run_checks(campaign(tmp_path, concepts={"targets": ["cat", "bus"]}))))
    assert set(found) == WITH_A_CAMPAIGN
    assert found["campaign"].message.startswith("2 jobs, ")
    assert found["gpu memory"].message == "the campaign asks for no GPU"
    assert "take up to" in found["disk"].message


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base": "minature"}, "unknown base 'minature': did you mean 'miniature'?"),
        ({"methods": [{"method": "esd", "config": {"etta": 1}}]}, "unknown key 'etta', did you mean 'eta'?"),
    ],
)
def test_a_faulty_campaign_is_a_problem(
    tmp_path: Path, changes: dict[str, Any], message: str, efface: RunEfface
) -> None:
    result = efface("doctor", campaign(tmp_path, **changes))
    assert "problem campaign: " in result.out and message in result.out
    assert result.code == 1 and "Traceback" not in result.out + result.err


def test_a_campaign_that_is_not_there_is_a_problem_too(efface: RunEfface) -> None:
    result = efface("doctor", "no-such-campaign")
    assert "problem campaign: unknown campaign 'no-such-campaign'" in result.out and result.code == 1


@pytest.mark.parametrize(
    ("gigabytes", "training", "status"),
    [(80, {}, "ok"), (16, {}, "problem"), (16, {"deepspeed": "zero2-offload"}, "ok")],
)
def test_a_job_is_held_against_the_gpu(
    gigabytes: int, training: dict[str, Any], status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ESD-u takes some 19 GB on one GPU: see tests/train/test_memory.py."""

    class WithAGpu:
        torch, driver, nccl = Build("2.13.0", (12, 8)), True, None
        gpus = (Gpu("a GPU", gigabytes * GIB),)

    monkeypatch.setattr(facts, "Machine", WithAGpu)
    requested = campaign(
        tmp_path,
        base="sd-v1-4-random",
        concepts={"set": "genmu-2025", "targets": ["Van Gogh"]},
        methods=[{"method": "esd", "label": "u", "config": {"variant": "u"}}],
        evaluation={
            "prompts": "genmu-2025",
            "judges": ["miniature"],
            "images_per_prompt": 1,
            "prompts_per_concept": {"adversarial": 0},
        },
        resources={"gpus": 1},
        training=training,
    )
    check = by_name(list(run_checks(requested)))["gpu memory"]
    assert check.status == status and check.message.startswith("estimate: u ")


class WithoutAGpu:
    """A container on a machine with GPUs, and none of them in it."""

    torch, driver, nccl, gpus = Build("2.13.0", (12, 8)), True, None, ()


@pytest.mark.parametrize(("resources", "status"), [({}, "warning"), ({"gpus": 1}, "problem")])
def test_a_driver_without_a_gpu_matters_to_a_campaign_that_asks_for_gpus(
    resources: dict[str, Any], status: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(facts, "Machine", WithoutAGpu)
    requested = campaign(tmp_path, resources=resources)
    assert next(check for check in run_checks(requested) if check.name == "gpus").status == status
    assert next(check for check in run_checks(None) if check.name == "gpus").status == "warning"


def test_a_base_that_is_not_here_is_to_be_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    requested = campaign(
        tmp_path,
        base="somebody/base",
        concepts={"set": "miniature", "targets": ["cat"]},
        evaluation={"prompts": "miniature", "judges": ["miniature"]},
        resources={"gpus": 1},
    )
    check = by_name(list(run_checks(requested)))["gpu memory"]
    assert check.status == "warning" and check.remedy == f"efface prefetch {requested}"
    assert "somebody/base: not in the hub's cache" in check.message


def test_ports_are_tried_at_the_address_where_a_process_group_meets_and_let_go(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    # In a new process: a Ray that was started in this one keeps to the loopback address for good.
    requested = [sys.executable, "-c", "import ray; print(ray.util.get_node_ip_address())"]
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"}
    own = subprocess.run(requested, env=environment, capture_output=True, text=True, check=True).stdout.strip()
    assert facts.node_address() == own
    tried = []
    create_server = socket.create_server

    def noted(address: tuple[str, int], **options: Any) -> socket.socket:
        tried.append(address)
        return create_server(address, **options)

    monkeypatch.setattr(socket, "create_server", noted)
    before = psutil.Process().net_connections()
    assert facts.ports() == dict.fromkeys(("127.0.0.1", own), "")
    assert tried == [("127.0.0.1", 0), (own, 0)]
    assert [c for c in psutil.Process().net_connections() if c.status == "LISTEN" and c not in before] == []


def test_an_address_that_is_not_this_machines_is_a_trouble() -> None:
    assert "annot assign requested address" in facts.port_error("203.0.113.1")  # RFC 5737: nobody's


def test_without_a_campaign_torch_is_not_imported() -> None:
    import subprocess

    code = (
        "import sys\nfrom efface.launch.doctor.examination import run_checks\n"
        "list(run_checks(None))\nprint('torch' in sys.modules)"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env={"HF_HUB_OFFLINE": "1"})
    assert ended.stdout == "False\n", ended.stderr


def test_builds_are_read_without_importing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = tmp_path / "xformers"
    package.mkdir()
    (package / "__init__.py").write_text("raise ImportError('built for another torch')")
    (package / "cpp_lib.json").write_text('{"version": {"cuda": 1208, "torch": "2.10.0+cu128"}}')
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "xformers", raising=False)
    monkeypatch.setattr(facts, "installed_version", lambda name: "0.0.35")
    assert facts.xformers_build() == Build("0.0.35", (12, 8))
    import torch

    assert facts.torch_build() == Build(torch.__version__, facts.version_pair(torch.version.cuda))
