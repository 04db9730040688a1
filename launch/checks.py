"""The checks of `efface doctor`: each takes facts about a machine and gives a finding. None of them looks itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]
GIB = 2**30

FILES_NEEDED, FILES_WISHED = 1024, 65_535
SHARED_MEMORY_WISHED = 2 * GIB
TOKENS_SINCE, TOKENS_BY_DEFAULT_SINCE = (2, 52), (2, 59)


@dataclass(frozen=True)
class Finding:
    """One thing looked at: how it is, and for anything but `ok` what to do about it, in one sentence each."""

    name: str
    state: State
    told: str
    remedy: str = ""


@dataclass(frozen=True)
class Gpu:
    """A GPU as torch sees it."""

    name: str
    bytes: int


@dataclass(frozen=True)
class Build:
    """What a wheel of torch or xformers was built for: its version, and CUDA's, None for a CPU build."""

    version: str
    cuda: tuple[int, int] | None


def versions(found: Mapping[str, str | None], unfit: Mapping[str, str]) -> Finding:
    """`found`: package -> version or None; `unfit`: package -> the requirement that it does not meet."""
    told = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    if unfit:
        wanted = " ".join(f"'{requirement}'" for requirement in unfit.values())
        return Finding("versions", "problem", told, f"pip install {wanted}")
    return Finding("versions", "ok", told)


def cuda(torch: Build, driver: bool, gpus: Sequence[Gpu]) -> Finding:
    """`driver`: whether a driver of NVIDIA's is loaded."""
    if gpus:
        names = ", ".join(f"{gpu.name} ({gpu.bytes / GIB:.0f} GiB)" for gpu in gpus)
        return Finding("gpus", "ok", f"{len(gpus)}: {names}; torch for CUDA {_dotted(torch.cuda)}")
    if not driver:
        return Finding("gpus", "ok", "none, everything runs on the CPU")
    if torch.cuda is None:
        told = f"torch {torch.version} is built for CPUs, on a machine with an NVIDIA driver"
        return Finding("gpus", "problem", told, "install a torch that is built for CUDA")
    told = f"torch, built for CUDA {_dotted(torch.cuda)}, finds no GPU on a machine with an NVIDIA driver"
    remedy = "update the driver, install a torch for an older CUDA, or see whether CUDA_VISIBLE_DEVICES hides the GPUs"
    return Finding("gpus", "problem", told, remedy)


def xformers(torch: Build, wheel: Build | None) -> Finding:
    """xformers goes with every later torch, and not with another major version of CUDA."""
    if wheel is None:
        return Finding("xformers", "ok", "not installed; attention is torch's own")
    if torch.cuda is None:
        return Finding("xformers", "ok", f"{wheel.version}, not used: torch is built for CPUs")
    if wheel.cuda is None or wheel.cuda[0] != torch.cuda[0]:
        told = f"{wheel.version} is built for CUDA {_dotted(wheel.cuda)}, torch for CUDA {_dotted(torch.cuda)}"
        remedy = f"install the xformers for CUDA {torch.cuda[0]} from PyTorch's index, or do without it"
        return Finding("xformers", "warning", told, remedy)
    return Finding("xformers", "ok", f"{wheel.version} for CUDA {_dotted(wheel.cuda)}, as torch")


def nccl(gpus: int, version: str | None) -> Finding:
    """`version`: of the NCCL in torch, None without."""
    if gpus < 2:
        return Finding("nccl", "ok", f"not needed for {gpus} GPUs")
    if version is None:
        told = f"this torch has no NCCL, without which {gpus} GPUs cannot train one job together"
        return Finding("nccl", "problem", told, "install torch from its own wheels for CUDA on Linux")
    return Finding("nccl", "ok", version)


def port(number: int | None, error: str = "") -> Finding:
    """`number`: a port of the loopback address that could be listened on, or None."""
    if number is None:
        told = f"no port of 127.0.0.1 can be listened on ({error})"
        return Finding(
            "port", "problem", told, "allow connections over the loopback interface: Ray and gangs need them"
        )
    return Finding("port", "ok", "ports of 127.0.0.1 can be listened on")


def gpu_memory(wanted: float, needed: Mapping[str, int], gpus: Sequence[Gpu]) -> Finding:
    """`wanted`: GPUs of one worker; `needed`: bytes a job takes, by method."""
    if wanted == 0:
        return Finding("gpu memory", "ok", "the campaign asks for no GPU")
    if not gpus:
        told = f"the campaign asks for {wanted:g} GPU a worker, and this machine has none"
        return Finding("gpu memory", "warning", told, "run it where there are some, or with --set resources.gpus=0")
    told = ", ".join(f"{method} {size / GIB:.1f} GiB" for method, size in needed.items()) or "nothing to be trained"
    room = min(gpu.bytes for gpu in gpus) * wanted
    most = max(needed.values(), default=0)
    if most > room:
        remedy = "see docs/hardware.md: bf16, gradient checkpointing, a smaller batch, or ZeRO-2 with offload"
        return Finding("gpu memory", "problem", f"{told}, of {room / GIB:.1f} GiB there are for a worker", remedy)
    if most > 0.9 * room:
        remedy = "if a job runs out of memory, take gradient checkpointing or a smaller batch"
        return Finding("gpu memory", "warning", f"{told}, of {room / GIB:.1f} GiB: a close fit", remedy)
    return Finding("gpu memory", "ok", f"{told}, of {room / GIB:.1f} GiB")


def shared_memory(free: int | None) -> Finding:
    """`free`: bytes in /dev/shm, None where there is none."""
    if free is None:
        return Finding("shared memory", "warning", "there is no /dev/shm", "mount one: Ray uses the disk without")
    if free < SHARED_MEMORY_WISHED:
        told = f"/dev/shm has {free / GIB:.1f} GiB free, Ray wants {SHARED_MEMORY_WISHED / GIB:.0f} and takes the disk"
        return Finding("shared memory", "warning", told, "give a container more of it, as with docker's --shm-size=8g")
    return Finding("shared memory", "ok", f"/dev/shm has {free / GIB:.1f} GiB free")


def disk(free: int, needed: int | None) -> Finding:
    """Bytes free where runs are written; `needed` at most by a campaign's deltas and images, which mostly compress."""
    if needed is None:
        if free < 5 * GIB:
            return Finding(
                "disk", "warning", f"{free / GIB:.1f} GiB free here", "make room, or give --out another place"
            )
        return Finding("disk", "ok", f"{free / GIB:.0f} GiB free here")
    told = f"{free / GIB:.0f} GiB free here, the campaign's deltas and images take up to {needed / GIB:.2f} GiB"
    if needed > free:
        state: State = "problem" if needed > 2 * free else "warning"
        return Finding("disk", state, told, "make room, or give --out a larger place")
    return Finding("disk", "ok", told)


def open_files(limit: int) -> Finding:
    """`limit`: the soft limit of this process, as `ulimit -n` shows it."""
    if limit < FILES_NEEDED:
        return Finding("open files", "problem", f"ulimit -n is {limit}, too few for Ray", f"ulimit -n {FILES_WISHED}")
    if limit < FILES_WISHED:
        told = f"ulimit -n is {limit}, enough for one machine; Ray advises {FILES_WISHED} for large clusters"
        return Finding("open files", "ok", told)
    return Finding("open files", "ok", f"ulimit -n is {limit}")


def hub(offline: bool, endpoint: str, trouble: str | None, missing: Sequence[str]) -> Finding:
    """`trouble`: why the hub was not reached; `missing`: models of the campaign that are not on this machine."""
    lacking = ", ".join(missing)
    if offline and missing:
        told = f"HF_HUB_OFFLINE is set, and {lacking} is not on this machine"
        return Finding("hub", "problem", told, "unset it for one `efface prefetch`")
    if offline:
        return Finding("hub", "ok", "not asked, HF_HUB_OFFLINE is set")
    if trouble and missing:
        told = f"{endpoint} cannot be reached ({trouble}), and {lacking} is not on this machine"
        return Finding("hub", "problem", told, "run `efface prefetch` with a network, or set HF_HOME to a filled cache")
    if trouble:
        told = f"{endpoint} cannot be reached ({trouble})"
        return Finding("hub", "warning", told, "set HF_HUB_OFFLINE=1, so that nothing waits for it")
    if missing:
        return Finding("hub", "ok", f"{endpoint} can be reached; {lacking} will be fetched, as by `efface prefetch`")
    return Finding("hub", "ok", f"{endpoint} can be reached")


def ray_tokens(version: str | None, mode: str | None, token: bool, joins: bool) -> Finding:
    """`mode`: RAY_AUTH_MODE; `token`: whether one is found; `joins`: whether RAY_ADDRESS names a cluster."""
    if version is None:
        return Finding("ray tokens", "problem", "Ray is not installed", "pip install 'ray[default]'")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < TOKENS_SINCE:
        told = f"Ray {version} knows no tokens: whoever reaches its ports can run code"
        return Finding("ray tokens", "problem", told, "pip install -U 'ray[default]'")
    if mode == "disabled":
        told = "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports can run code"
        return Finding("ray tokens", "warning", told, "unset it, or set RAY_AUTH_MODE=token")
    on = mode == "token" or (mode is None and numbers >= TOKENS_BY_DEFAULT_SINCE and not joins)
    if joins and not token:
        told = "RAY_ADDRESS names a cluster, and there is no token to show it"
        return Finding(
            "ray tokens", "problem", told, "copy the cluster's token to ~/.ray/auth_token, or RAY_AUTH_TOKEN"
        )
    if on:
        return Finding("ray tokens", "ok", f"Ray {version} asks for a token")
    if joins:
        return Finding("ray tokens", "ok", f"Ray {version}, with a token for the cluster of RAY_ADDRESS")
    told = f"Ray {version} asks for no token unless told to"
    return Finding(
        "ray tokens", "warning", told, "set RAY_AUTH_MODE=token, and run `ray get-auth-token --generate` once"
    )


def ray_here(processes: Sequence[int], joins: bool) -> Finding:
    """`processes`: ids of Ray's own processes on this machine."""
    if processes and not joins:
        told = f"a Ray runs on this machine already (process {processes[0]}), and shares its CPUs and GPUs"
        return Finding("ray here", "warning", told, "join it with --address auto, or end it if it is yours: `ray stop`")
    if processes:
        return Finding("ray here", "ok", "running, and RAY_ADDRESS says to join")
    return Finding("ray here", "ok", "not running; `efface run` starts its own")


def _dotted(cuda: tuple[int, int] | None) -> str:
    return ".".join(map(str, cuda)) if cuda else "-"
