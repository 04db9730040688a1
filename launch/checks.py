"""The checks of `efface doctor`: each takes facts about a machine and gives a finding. None of them looks itself."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from efface.launch.gpu_needs import Needs

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


def cuda(torch: Build, driver: bool, gpus: Sequence[Gpu], asked: bool) -> Finding:
    """`driver`: whether one of NVIDIA's can be seen, as also in a container without a GPU; `asked`: for GPUs."""
    if gpus:
        names = ", ".join(f"{gpu.name} ({gpu.bytes / GIB:.0f} GiB)" for gpu in gpus)
        return Finding("gpus", "ok", f"{len(gpus)}: {names}; torch for CUDA {_dotted(torch.cuda)}")
    if not driver:
        return Finding("gpus", "ok", "none, everything runs on the CPU")
    if torch.cuda is None:
        told = f"torch {torch.version} is built for CPUs, on a machine with an NVIDIA driver"
        remedy = "install a torch that is built for CUDA"
    else:
        told = f"torch, built for CUDA {_dotted(torch.cuda)}, finds no GPU on a machine with an NVIDIA driver"
        remedy = "update the driver, install a torch for an older CUDA, or see if CUDA_VISIBLE_DEVICES hides the GPUs"
    if not asked:
        return Finding("gpus", "warning", f"{told}; everything runs on the CPU", f"to use a GPU, {remedy}")
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


def port(found: Mapping[str, str], joins: bool) -> Finding:
    """`found`: addresses of this machine -> why no port there can be listened on and reached, or nothing; the first is
    the loopback address, at which a Ray of `efface run` keeps, unless it `joins` a cluster."""
    troubles = {address: trouble for address, trouble in found.items() if trouble}
    if not troubles:
        return Finding("port", "ok", f"ports of {' and '.join(found)} can be listened on")
    told = "; ".join(
        f"no port of {address} can be listened on and reached ({why})" for address, why in troubles.items()
    )
    needed = joins or next(iter(found)) in troubles
    who = "Ray and gangs need them" if needed else "clusters and gangs need them, a run on this machine alone does not"
    return Finding("port", "problem" if needed else "warning", told, f"allow connections there: {who}")


def gpu_memory(wanted: float, needs: "Needs", gpus: Sequence[Gpu], left_alone: int, prefetch: str) -> Finding:
    """`wanted`: GPUs of one worker, not 0; `left_alone`: bytes of a worker's share that hold no tensors.

    `prefetch`: the command that fetches judges that are not known.
    """
    rows = {**needs.trainings, "judging": needs.judging}
    alike: dict[str, list[str]] = {}
    for name, size in needs.trainings.items():
        alike.setdefault(f"{size / GIB:.1f} GiB", []).append(name)
    told = ", ".join(f"{_first(names)} {size}" for size, names in alike.items())
    told += f"{', ' if told else ''}judging {needs.judging / GIB:.1f} GiB"
    if needs.judges:
        told += f" (of that the judges {needs.judges / GIB:.1f})"
    if needs.unknown:
        told += f", without {' and '.join(needs.unknown)}, whose weights are not on this machine"
    if not gpus:
        told = f"the campaign asks for {wanted:g} GPU a worker, and this machine has none; it takes {told}"
        return Finding("gpu memory", "warning", told, "run it where there are some, or with --set resources.gpus=0")
    room = min(gpu.bytes for gpu in gpus) * wanted
    told = f"{told}; a worker has {room / GIB:.1f} GiB"
    tight = [name for name, size in rows.items() if size > room - left_alone]
    if not tight:
        return Finding("gpu memory", "warning" if needs.unknown else "ok", told, prefetch if needs.unknown else "")
    for_training = "see docs/hardware.md: bf16, gradient checkpointing, a smaller batch, or ZeRO-2 with offload"
    for_judging = "for judging, a recipe with a smaller batch_size, or a smaller judge"
    remedy = "; ".join(
        [for_training] * any(name in needs.trainings for name in tight) + [for_judging] * ("judging" in tight)
    )
    if max(rows.values()) > room:
        return Finding("gpu memory", "problem", told, remedy)
    return Finding("gpu memory", "warning", f"{told}, a close fit: CUDA itself takes some 2 GB", remedy)


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
        told = f"HF_HUB_OFFLINE is set, and not on this machine: {lacking}"
        return Finding("hub", "problem", told, "unset it for one `efface prefetch`")
    if offline:
        return Finding("hub", "ok", "not asked, HF_HUB_OFFLINE is set")
    if trouble and missing:
        told = f"{endpoint} cannot be reached ({trouble}), and not on this machine: {lacking}"
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


def _first(names: Sequence[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} like it)" if len(names) > 1 else "")


def _dotted(cuda: tuple[int, int] | None) -> str:
    return ".".join(map(str, cuda)) if cuda else "-"
