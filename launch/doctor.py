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
from efface.launch.checks import Build, Finding, Gpu

if TYPE_CHECKING:
    from efface.cluster.campaign import Campaign
    from efface.cluster.plan import Plan

PACKAGES = ("torch", "diffusers", "accelerate", "deepspeed", "ray", "xformers", "safetensors")
TIMEOUT = 3.0
"""Seconds for the hub to answer."""
LOOPBACK = "127.0.0.1"
COLOURS = {"ok": "green", "warning": "yellow", "problem": "red"}


def doctor(campaign: str | None, as_json: bool) -> None:
    """Print the findings; exit code 1 where one is a problem."""
    findings = list(examine(campaign))
    if as_json:
        print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))
    else:
        _show(findings)
    if any(finding.state == "problem" for finding in findings):
        raise typer.Exit(1)


def examine(campaign: str | None) -> Iterator[Finding]:
    """Every finding; with a campaign also whether it fits. Raises nothing: a check that breaks is a finding too."""
    asked = _HubAsked()
    asked.start()  # while everything else is looked at
    yield _guarded("versions", lambda: checks.versions(*_versions()))
    seen = _Machine()
    yield _guarded("gpus", lambda: checks.cuda(seen.torch, seen.driver, seen.gpus, _asks_for_gpus(campaign)))
    yield _guarded("xformers", lambda: checks.xformers(seen.torch, _xformers()))
    yield _guarded("nccl", lambda: checks.nccl(len(seen.gpus), seen.nccl))
    joins = bool(os.environ.get("RAY_ADDRESS"))
    yield _guarded("port", lambda: checks.port(_ports(), joins))
    yield _guarded("shared memory", lambda: checks.shared_memory(_free("/dev/shm")))
    yield _guarded("open files", lambda: checks.open_files(resource.getrlimit(resource.RLIMIT_NOFILE)[0]))
    yield _guarded("ray tokens", lambda: _ray_tokens(joins))
    yield _guarded("ray here", lambda: checks.ray_here(_ray_processes(), joins))
    needed: int | None = None
    missing: list[str] = []
    if campaign is not None:
        from efface.launch.prefetch import missing_sources

        try:
            asked_for, plan = _planned(campaign)
            needed, missing = _bytes_to_write(plan), missing_sources([campaign])
            yield Finding("campaign", "ok", f"{len(plan.jobs)} jobs, {plan.images} images")
            yield _guarded("gpu memory", lambda: _gpu_memory(campaign, asked_for, plan, seen.gpus))
        except UserError as error:
            yield Finding("campaign", "problem", str(error), "mend the campaign")
        except Exception as error:
            yield _broken("campaign", error)
    yield _guarded("disk", lambda: checks.disk(_free(".") or 0, needed))
    yield _guarded("hub", lambda: _hub(asked, missing))


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


def _guarded(name: str, check: Callable[[], Finding]) -> Finding:
    try:
        return check()
    except Exception as error:
        return _broken(name, error)


def _broken(name: str, error: Exception) -> Finding:
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Finding(name, "warning", f"could not be looked at ({reason})", "see to it by hand")


def _versions() -> tuple[dict[str, str | None], dict[str, str]]:
    import platform

    from packaging.requirements import Requirement

    found: dict[str, str | None] = {"python": platform.python_version()}
    found |= {name: _version(name) for name in PACKAGES if name != "xformers" or _version(name)}
    unfit = {}
    for line in metadata.requires("efface") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unfit[requirement.name] = line.partition(";")[0].strip()
    return found, unfit


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _torch() -> Build:
    """From torch's own file, as importing torch takes seconds."""
    text = _file_of("torch", "version.py")
    values: dict[str, Any] = {}
    exec(text, values)
    return Build(str(values.get("__version__", "missing")), _numbers(values.get("cuda")))


def _xformers() -> Build | None:
    version = _version("xformers")
    if version is None:
        return None
    built = json.loads(_file_of("xformers", "cpp_lib.json") or "{}").get("version", {}).get("cuda")
    return Build(version, divmod(int(built), 100) if built else None)


def _file_of(package: str, name: str) -> str:
    """A file of a package that is not imported for it; empty where there is none."""
    spec = util.find_spec(package)
    file = Path(spec.origin).parent / name if spec and spec.origin else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else ""


def _numbers(version: str | None) -> tuple[int, int] | None:
    if not version:
        return None
    major, minor = (*map(int, version.split(".")[:2]), 0)[:2]
    return major, minor


def _ports() -> dict[str, str]:
    """Addresses that processes meet at -> why no port of theirs can be listened on and reached, or nothing."""
    return {address: _port_trouble(address) for address in dict.fromkeys((LOOPBACK, _own_address()))}


def _port_trouble(address: str) -> str:
    try:
        with socket.create_server((address, 0), backlog=1) as listener:
            socket.create_connection(listener.getsockname(), timeout=TIMEOUT).close()
    except OSError as error:
        return str(error)
    return ""


def _own_address() -> str:
    """Of this node, as Ray finds it and a gang's processes meet at: from where it would speak to other networks."""
    try:
        with socket.socket(type=socket.SOCK_DGRAM) as asked:
            asked.connect(("8.8.8.8", 53))  # sends nothing
            return str(asked.getsockname()[0])
    except OSError:
        pass
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return LOOPBACK


def _free(place: str) -> int | None:
    return shutil.disk_usage(place).free if Path(place).exists() else None


def _ray_tokens(joins: bool) -> Finding:
    places = (os.environ.get("RAY_AUTH_TOKEN_PATH"), Path.home() / ".ray" / "auth_token")
    token = bool(os.environ.get("RAY_AUTH_TOKEN")) or any(place and Path(place).is_file() for place in places)
    return checks.ray_tokens(_version("ray"), os.environ.get("RAY_AUTH_MODE"), token, joins)


def _ray_processes() -> list[int]:
    import psutil

    return [
        process.pid for process in psutil.process_iter(["name"]) if process.info["name"] in ("raylet", "gcs_server")
    ]


def _hub_trouble() -> str | None:
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


class _HubAsked(threading.Thread):
    """The question to the hub, for which nobody waits longer than TIMEOUT after it was put."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.put = time.monotonic()
        self.trouble: str | None = f"no answer in {TIMEOUT:g} s"

    def run(self) -> None:
        try:
            self.trouble = _hub_trouble()
        except Exception as error:
            self.trouble = str(error) or type(error).__name__

    def wait(self) -> str | None:
        self.join(max(0.0, self.put + TIMEOUT - time.monotonic()))
        return self.trouble


def _hub(asked: _HubAsked, missing: list[str]) -> Finding:
    from huggingface_hub import constants

    trouble = asked.wait()
    return checks.hub(constants.HF_HUB_OFFLINE, constants.ENDPOINT, trouble, missing)


def _planned(campaign: str) -> "tuple[Campaign, Plan]":
    from efface.cluster.campaign import read_campaign
    from efface.cluster.expand import plan_campaign

    asked_for = read_campaign(campaign)
    return asked_for, plan_campaign(asked_for, fetch=False)


def _asks_for_gpus(campaign: str | None) -> bool:
    from efface.cluster.campaign import read_campaign

    try:
        return campaign is not None and read_campaign(campaign).resources.gpus > 0
    except UserError:
        return False  # which is told where it is planned


def _gpu_memory(name: str, campaign: "Campaign", plan: "Plan", gpus: list[Gpu]) -> Finding:
    from efface.launch.gpu_needs import gpu_needs
    from efface.models.locate import NotFetched
    from efface.train.memory import LEFT_ALONE

    wanted = campaign.resources.gpus
    if not wanted:
        return Finding("gpu memory", "ok", "the campaign asks for no GPU")
    try:
        needs = gpu_needs(campaign, plan)
    except NotFetched as error:
        return Finding("gpu memory", "warning", f"not known before the base is fetched ({error})", _prefetch(name))
    return checks.gpu_memory(wanted, needs, gpus, LEFT_ALONE, _prefetch(name))


def _prefetch(campaign: str) -> str:
    return f"efface prefetch {shlex.quote(campaign)}"


def _bytes_to_write(plan: "Plan") -> int | None:
    """At most: deltas in fp32, and images that do not compress at all. None where the base's shapes are not known."""
    from efface.launch.gpu_needs import methods
    from efface.models.locate import NotFetched
    from efface.train.passes import size_of, trained_tensors

    images = plan.images * plan.recipe.height * plan.recipe.width * 3
    try:
        size = size_of(plan.base)
    except NotFetched:
        return None
    numbers = {
        label: sum(parameter.numel() for parameter in trained_tensors(method, size)[1].values())
        for label, method in methods(plan).items()
    }
    return images + 4 * sum(numbers[model.label] for model in plan.jobs)


def _show(findings: list[Finding]) -> None:
    from rich.console import Console
    from rich.text import Text

    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        mark = (f"{finding.state:8}", COLOURS[finding.state])
        console.print(Text.assemble(mark, (f"{finding.name}: ", "bold"), finding.told))
        if finding.remedy:
            console.print(Text(f"{'':8}-> {finding.remedy}"))
