"""Facts about this machine for `efface doctor`. Nothing here changes anything, or says whether a fact is good."""

import json
import os
import shutil
import socket
import threading
import time
from importlib import metadata, util
from pathlib import Path
from typing import Any

from efface.launch.doctor.checks import Build, Gpu

PACKAGES = ("torch", "diffusers", "accelerate", "deepspeed", "ray", "xformers", "safetensors")
TIMEOUT = 3.0
"""Seconds for the hub to answer."""
LOOPBACK = "127.0.0.1"


class Machine:
    """What torch says of this machine; torch is imported only where there may be a GPU."""

    def __init__(self) -> None:
        self.torch = torch_build()
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


def package_versions() -> tuple[dict[str, str | None], dict[str, str]]:
    """Package -> version, None where it is missing; and package -> the requirement of efface that it does not meet."""
    import platform

    from packaging.requirements import Requirement

    found: dict[str, str | None] = {"python": platform.python_version()}
    found |= {name: installed_version(name) for name in PACKAGES if name != "xformers" or installed_version(name)}
    unmet = {}
    for line in metadata.requires("efface") or []:
        requirement = Requirement(line)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = installed_version(requirement.name)
        if version is None or not requirement.specifier.contains(version, prereleases=True):
            unmet[requirement.name] = line.partition(";")[0].strip()
    return found, unmet


def installed_version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def torch_build() -> Build:
    """From torch's own file, as importing torch takes seconds."""
    text = package_file("torch", "version.py")
    values: dict[str, Any] = {}
    exec(text, values)
    return Build(str(values.get("__version__", "missing")), version_pair(values.get("cuda")))


def xformers_build() -> Build | None:
    """Of the xformers that is installed, which is not imported; None without."""
    version = installed_version("xformers")
    if version is None:
        return None
    built = json.loads(package_file("xformers", "cpp_lib.json") or "{}").get("version", {}).get("cuda")
    return Build(version, divmod(int(built), 100) if built else None)


def package_file(package: str, name: str) -> str:
    """A file of a package that is not imported for it; empty where there is none."""
    spec = util.find_spec(package)
    file = Path(spec.origin).parent / name if spec and spec.origin else None
    return file.read_text(encoding="utf-8") if file and file.is_file() else ""


def version_pair(version: str | None) -> tuple[int, int] | None:
    if not version:
        return None
    major, minor = (*map(int, version.split(".")[:2]), 0)[:2]
    return major, minor


def ports() -> dict[str, str]:
    """Addresses that processes meet at -> why no port of theirs can be listened on and reached, or nothing."""
    return {address: port_error(address) for address in dict.fromkeys((LOOPBACK, node_address()))}


def port_error(address: str) -> str:
    """Why no port of `address` can be listened on and reached; empty where one can."""
    try:
        with socket.create_server((address, 0), backlog=1) as listener:
            socket.create_connection(listener.getsockname(), timeout=TIMEOUT).close()
    except OSError as error:
        return str(error)
    return ""


def node_address() -> str:
    """Of this node, as Ray finds it and a process group meets at: the one it reaches other networks from."""
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


def free_bytes(path: str) -> int | None:
    """Of the disk that `path` is on; None where it does not exist."""
    return shutil.disk_usage(path).free if Path(path).exists() else None


def has_ray_token() -> bool:
    """Whether Ray finds a token."""
    return bool(os.environ.get("RAY_AUTH_TOKEN")) or any(path.is_file() for path in _ray_token_files())


def token_files() -> dict[str, int]:
    """Files that hold a token of Ray or of the hub -> their permission bits."""
    from huggingface_hub import constants

    files = (*_ray_token_files(), Path(constants.HF_TOKEN_PATH))
    return {str(path): path.stat().st_mode & 0o777 for path in files if path.is_file()}


def _ray_token_files() -> list[Path]:
    """Where Ray looks for a token."""
    named = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return [*([Path(named)] if named else []), Path(os.path.expanduser("~/.ray/auth_token"))]


def ray_processes() -> list[int]:
    """Ids of Ray's own processes on this machine."""
    import psutil

    return [
        process.pid for process in psutil.process_iter(["name"]) if process.info["name"] in ("raylet", "gcs_server")
    ]


def hub_error() -> str | None:
    """Why the hub cannot be reached, or None; offline it is not contacted."""
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


class HubProbe(threading.Thread):
    """The request to the hub, for which nobody waits longer than TIMEOUT after it was made."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.started_at = time.monotonic()
        self.error: str | None = f"no answer in {TIMEOUT:g} s"

    def run(self) -> None:
        try:
            self.error = hub_error()
        except Exception as error:
            self.error = str(error) or type(error).__name__

    def wait(self) -> str | None:
        self.join(max(0.0, self.started_at + TIMEOUT - time.monotonic()))
        return self.error
