"""`efface doctor`: looks at this machine, and at a campaign's needs, before hours are spent. It changes nothing."""

import json
import os
import resource
import shlex
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from importlib import metadata, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from efface.errors import UserError
from efface.launch import checks
from efface.launch.checks import Build, CheckResult, Gpu

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.campaign.spec import Campaign

PACKAGES = ("torch", "diffusers", "accelerate", "deepspeed", "ray", "xformers", "safetensors")
TIMEOUT = 3.0
"""Seconds for the hub to answer."""
LOOPBACK = "127.0.0.1"
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(campaign: str | None, as_json: bool) -> None:
    """Print the findings; exit code 1 where one is a problem."""
    results = list(run_checks(campaign))
    if as_json:
        print(json.dumps([asdict(result) for result in results], indent=2, ensure_ascii=False))
    else:
        _show(results)
    if any(result.status == "problem" for result in results):
        raise typer.Exit(1)


def run_checks(campaign: str | None) -> Iterator[CheckResult]:
    """Every finding; with a campaign also whether it fits. Raises nothing: a check that breaks is a finding too."""
    probe = _HubProbe()
    probe.start()  # while everything else is looked at
    yield _run_check("versions", lambda: checks.versions(*_versions()))
    machine = _Machine()
    yield _run_check("gpus", lambda: checks.cuda(machine.torch, machine.driver, machine.gpus, _requests_gpus(campaign)))
    yield _run_check("xformers", lambda: checks.xformers(machine.torch, _xformers()))
    yield _run_check("nccl", lambda: checks.nccl(len(machine.gpus), machine.nccl))
    joins_cluster = bool(os.environ.get("RAY_ADDRESS"))
    yield _run_check("port", lambda: checks.port(_ports(), joins_cluster))
    yield _run_check("shared memory", lambda: checks.shared_memory(_free_bytes("/dev/shm")))
    yield _run_check("open files", lambda: checks.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    yield _run_check("ray tokens", lambda: _ray_tokens(joins_cluster))
    yield _run_check("ray here", lambda: checks.ray_here(_ray_processes(), joins_cluster))
    needed: int | None = None
    missing: list[str] = []
    if campaign is not None:
        from efface.launch.prefetch import missing_sources

        try:
            parsed, plan = _read_and_plan(campaign)
            needed, missing = _bytes_to_write(plan), missing_sources([campaign])
            yield CheckResult("campaign", "ok", f"{len(plan.jobs)} jobs, {plan.images} images")
            yield _run_check("gpu memory", lambda: _gpu_memory(campaign, parsed, plan, machine.gpus))
        except UserError as error:
            yield CheckResult("campaign", "problem", str(error), "mend the campaign")
        except Exception as error:
            yield _failed_check("campaign", error)
    yield _run_check("disk", lambda: checks.disk(_free_bytes(".") or 0, needed))
    yield _run_check("hub", lambda: _hub(probe, missing))


class _Machine:
    """What torch says of this machine; torch is imported only where there may be a GPU."""

    def __init__(self) -> None:
        self.torch = _torch()
        self.driver = Path("/proc/driver/nvidia/version").exists()
        self.gpus: list[Gpu] = []
        self.nccl: str | None = None
        if self.torch.cuda and self.driver:
            import torch

            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            found = [torch.cuda.get_device_properties(index) for index in range(count)]
            self.gpus = [Gpu(gpu.name, gpu.total_memory) for gpu in found]
            if self.gpus and torch.distributed.is_nccl_available():
                self.nccl = ".".join(map(str, torch.cuda.nccl.version()))


def _run_check(name: str, check: Callable[[], CheckResult]) -> CheckResult:
    try:
        return check()
    except Exception as error:
        return _failed_check(name, error)


def _failed_check(name: str, error: Exception) -> CheckResult:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return CheckResult(name, "warning", f"could not be looked at ({reason})", "see to it by hand")


def _versions() -> tuple[dict[str, str | None], dict[str, str]]:
    import platform

    from packaging.requirements import Requirement

    found: dict[str, str | None] = {"python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES if name != "xformers" or _version(name)}
    unmet = {}
    for line in metadata.requires("efface") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unmet[requirement.name] = line.partition(";")[0].strip()
    return found, unmet


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Build:
    """From torch's own file, as importing torch takes seconds."""
    text = _package_file("torch", "version.py")
    values: dict[str, Any] = {}
    exec(text, values)
    return Build(str(values.get("__version__", "missing")), _version_pair(values.get("cuda")))


def _xformers() -> Build | None:
    version = _version("xformers")
    if version is None:
        return None
    built = json.loads(_package_file("xformers", "cpp_lib.json") or "{}").get("version", {}).get("cuda")
    return Build(version, divmod(int(built), 100) if built else None)


def _package_file(package: str, name: str) -> str:
    """A file of a package that is not imported for it; empty where there is none."""
    spec = util.find_spec(package)
    file = Path(spec.origin).parent / name if spec and spec.origin else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else ""


def _version_pair(version: str | None) -> tuple[int, int] | None:
    if not version:
        return None
    major, minor = (*map(int, version.split(".")[:2]), 0)[:2]
    return major, minor


def _ports() -> dict[str, str]:
    """Addresses that processes meet at -> why no port of theirs can be listened on and reached, or nothing."""
    return {address: _port_error(address) for address in dict.fromkeys((LOOPBACK, _node_address()))}


def _port_error(address: str) -> str:
    try:
        with socket.create_server((address, 0), backlog=1) as listener:
            socket.create_connection(listener.getsockname(), timeout=TIMEOUT).close()
    except OSError as error:
        return str(error)
    return ""


def _node_address() -> str:
    """Of this node, as Ray finds it and a gang's processes meet at: from where it would speak to other networks."""
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as probe:
            probe.connect(("8.8.8.8", 53))  # sends nothing
            return str(probe.getsockname()[0])
    except OSError:
        pass
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return LOOPBACK


def _free_bytes(path: str) -> int | None:
    return shutil.disk_usage(path).free if Path(path).exists() else None


def _ray_tokens(joins_cluster: bool) -> CheckResult:
    paths = (os.environ.get("RAY_AUTH_TOKEN_PATH"), Path.home() / ".ray" / "auth_token")
    token = bool(os.environ.get("RAY_AUTH_TOKEN")) or any(path and Path(path).is_file() for path in paths)
    return checks.ray_tokens(_version("ray"), os.environ.get("RAY_AUTH_MODE"), token, joins_cluster)


def _ray_processes() -> list[int]:
    import psutil

    return [
        process.pid for process in psutil.process_iter(["name"]) if process.info["name"] in ("raylet", "gcs_server")
    ]


def _hub_error() -> str | None:
    """Why the hub cannot be reached, or None; not asked offline."""
    from urllib.error import HTTPError
    from urllib.request import Request, urlopen

    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return None
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=TIMEOUT).close()
    except HTTPError:
        return None  # it answered
    except (OSError, ValueError) as error:
        return str(getattr(error, "reason", error))
    return None


class _HubProbe(threading.Thread):
    """The question to the hub, for which nobody waits longer than TIMEOUT after it was put."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.started_at = time.monotonic()
        self.error: str | None = f"no answer in {TIMEOUT:g} s"

    def run(self) -> None:
        try:
            self.error = _hub_error()
        except Exception as error:
            self.error = str(error) or type(error).__name__

    def wait(self) -> str | None:
        self.join(max(0.0, self.started_at + TIMEOUT - time.monotonic()))
        return self.error


def _hub(probe: _HubProbe, missing: list[str]) -> CheckResult:
    from huggingface_hub import constants

    error = probe.wait()
    return checks.hub(constants.HF_HUB_OFFLINE, constants.ENDPOINT, error, missing)


def _read_and_plan(campaign: str) -> "tuple[Campaign, Plan]":
    from efface.cluster.campaign.planner import plan_campaign
    from efface.cluster.campaign.spec import read_campaign

    parsed = read_campaign(campaign)
    return parsed, plan_campaign(parsed, fetch=False)


def _requests_gpus(campaign: str | None) -> bool:
    from efface.cluster.campaign.spec import read_campaign

    try:
        return campaign is not None and read_campaign(campaign).resources.gpus > 0
    except UserError:
        return False  # which is told where it is planned


def _gpu_memory(name: str, campaign: "Campaign", plan: "Plan", gpus: list[Gpu]) -> CheckResult:
    from efface.launch.gpu_needs import estimate_gpu_memory, gpu_at_hand
    from efface.models.model_files import NotCached
    from efface.train.cost.memory import RESERVED_BYTES

    wanted = campaign.resources.gpus
    if not wanted:
        return CheckResult("gpu memory", "ok", "the campaign asks for no GPU")
    try:
        estimate = estimate_gpu_memory(campaign, plan, gpu_at_hand())
    except NotCached as error:
        return CheckResult("gpu memory", "warning", f"not known before the base is fetched ({error})", _prefetch(name))
    return checks.gpu_memory(wanted, estimate, gpus, RESERVED_BYTES, _prefetch(name))


def _prefetch(campaign: str) -> str:
    return f"efface prefetch {shlex.quote(campaign)}"


def _bytes_to_write(plan: "Plan") -> int | None:
    """At most: deltas in fp32, and images that do not compress at all. None where the base's shapes are not known."""
    from efface.launch.gpu_needs import methods
    from efface.models.model_files import NotCached
    from efface.models.shapes import model_shapes
    from efface.train.cost.flops import trained_weights

    images = plan.images * plan.recipe.height * plan.recipe.width * 3
    try:
        size = model_shapes(plan.base)
    except NotCached:
        return None
    numbers = {
        label: sum(parameter.numel() for parameter in trained_weights(method, size)[1].values())
        for label, method in methods(plan).items()
    }
    return images + 4 * sum(numbers[model.label] for model in plan.jobs)


def _show(results: list[CheckResult]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for result in results:
        mark = (f"{result.status:8}", COLOURS[result.status])
        console.print(Text.assemble(mark, (f"{result.name}: ", "bold"), result.message))
        if result.remedy:
            console.print(Text(f"{'':8}-> {result.remedy}"))
