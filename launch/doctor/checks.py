"""The checks of `efface doctor`: each is a function of facts about a machine. None of them looks itself."""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from efface.launch.doctor.check import CheckResult, Status

if TYPE_CHECKING:
    from efface.launch.doctor.gpu_memory import GpuMemoryEstimate

GIB = 2**30

MIN_OPEN_FILES, RECOMMENDED_OPEN_FILES = 1024, 65_535
RECOMMENDED_SHARED_MEMORY = 2 * GIB
TOKEN_AUTH_SINCE, TOKEN_AUTH_DEFAULT_SINCE = (2, 52), (2, 59)


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


def versions(found: Mapping[str, str | None], unmet: Mapping[str, str]) -> CheckResult:
    """`found`: package -> version or None; `unmet`: package -> the requirement that it does not meet."""
    message = ", ".join(f"{name} {version or 'missing'}" for name, version in found.items())
    if unmet:
        wanted = " ".join(f"'{requirement}'" for requirement in unmet.values())
        return CheckResult("versions", "problem", message, f"pip install {wanted}")
    return CheckResult("versions", "ok", message)


def cuda(torch: Build, driver: bool, gpus: Sequence[Gpu], requested: bool) -> CheckResult:
    """`driver`: whether one of NVIDIA's can be seen, as also in a container without a GPU; `requested`: for GPUs."""
    if gpus:
        names = ", ".join(f"{gpu.name} ({gpu.bytes / GIB:.0f} GiB)" for gpu in gpus)
        return CheckResult("gpus", "ok", f"{len(gpus)}: {names}; torch for CUDA {_version_text(torch.cuda)}")
    if not driver:
        return CheckResult("gpus", "ok", "none, everything runs on the CPU")
    if torch.cuda is None:
        message = f"torch {torch.version} is built for CPUs, on a machine with an NVIDIA driver"
        remedy = "install a torch that is built for CUDA"
    else:
        message = f"torch, built for CUDA {_version_text(torch.cuda)}, finds no GPU on a machine with an NVIDIA driver"
        remedy = "update the driver, install a torch for an older CUDA, or see if CUDA_VISIBLE_DEVICES hides the GPUs"
    if not requested:
        return CheckResult("gpus", "warning", f"{message}; everything runs on the CPU", f"to use a GPU, {remedy}")
    return CheckResult("gpus", "problem", message, remedy)


def xformers(torch: Build, wheel: Build | None) -> CheckResult:
    """xformers goes with every later torch, and not with another major version of CUDA."""
    if wheel is None:
        return CheckResult("xformers", "ok", "not installed; attention is torch's own")
    if torch.cuda is None:
        return CheckResult("xformers", "ok", f"{wheel.version}, not used: torch is built for CPUs")
    if wheel.cuda is None or wheel.cuda[0] != torch.cuda[0]:
        message = (
            f"{wheel.version} is built for CUDA {_version_text(wheel.cuda)}, torch for CUDA {_version_text(torch.cuda)}"
        )
        remedy = f"install the xformers for CUDA {torch.cuda[0]} from PyTorch's index, or do without it"
        return CheckResult("xformers", "warning", message, remedy)
    return CheckResult("xformers", "ok", f"{wheel.version} for CUDA {_version_text(wheel.cuda)}, as torch")


def nccl(gpus: int, version: str | None) -> CheckResult:
    """`version`: of the NCCL in torch, None without."""
    if gpus < 2:
        return CheckResult("nccl", "ok", f"not needed for {gpus} GPUs")
    if version is None:
        message = f"this torch has no NCCL, without which {gpus} GPUs cannot train one job together"
        return CheckResult("nccl", "problem", message, "install torch from its own wheels for CUDA on Linux")
    return CheckResult("nccl", "ok", version)


def port(found: Mapping[str, str], joins_cluster: bool) -> CheckResult:
    """`found`: addresses of this machine -> why no port there can be listened on and reached, or nothing; the first is
    the loopback address, at which a Ray of `efface run` keeps, unless `joins_cluster`."""
    errors = {address: error for address, error in found.items() if error}
    if not errors:
        return CheckResult("port", "ok", f"ports of {' and '.join(found)} can be listened on")
    message = "; ".join(
        f"no port of {address} can be listened on and reached ({why})" for address, why in errors.items()
    )
    needed = joins_cluster or next(iter(found)) in errors
    who = "Ray and process groups need them"
    if not needed:
        who = "clusters and process groups need them, a run on this machine alone does not"
    return CheckResult("port", "problem" if needed else "warning", message, f"allow connections there: {who}")


def gpu_memory(
    wanted: float, estimate: "GpuMemoryEstimate", gpus: Sequence[Gpu], reserved_bytes: int, prefetch: str
) -> CheckResult:
    """`wanted`: GPUs of one worker, not 0; `reserved_bytes`: bytes of a worker's share that hold no tensors.

    `prefetch`: the command that fetches judges that are not known.
    """
    rows = {**estimate.training, "judging": estimate.judging}
    measured = {name: size for name, size in estimate.training.items() if name in estimate.measured}
    estimated = {name: size for name, size in estimate.training.items() if name not in measured}
    message = f"measured: {_sizes(measured)}; " if measured else ""
    message += f"estimate: {_sizes(estimated)}{', ' if estimated else ''}judging {estimate.judging / GIB:.1f} GiB"
    if estimate.judges:
        message += f" (of that the judges {estimate.judges / GIB:.1f})"
    if estimate.unknown:
        message += f", without {' and '.join(estimate.unknown)}, whose weights are not on this machine"
    if not gpus:
        message = f"the campaign asks for {wanted:g} GPU a worker, and this machine has none; {message}"
        return CheckResult(
            "gpu memory", "warning", message, "run it where there are some, or with --set resources.gpus=0"
        )
    available = min(gpu.bytes for gpu in gpus) * wanted
    message = f"{message}; a worker has {available / GIB:.1f} GiB"
    failed = estimate.out_of_memory
    if failed:
        message += f"; a step of {' and '.join(failed)} ran out of memory here"
    tight = [name for name, size in rows.items() if size > available - reserved_bytes or name in failed]
    if not tight:
        return CheckResult(
            "gpu memory", "warning" if estimate.unknown else "ok", message, prefetch if estimate.unknown else ""
        )
    for_training = "see docs/hardware.md: bf16, gradient checkpointing, a smaller batch, or ZeRO-2 with offload"
    for_judging = "for judging, a recipe with a smaller batch_size, or a smaller judge"
    remedy = "; ".join(
        [for_training] * any(name in estimate.training for name in tight) + [for_judging] * ("judging" in tight)
    )
    if failed or max(rows.values()) > available:
        return CheckResult("gpu memory", "problem", message, remedy)
    return CheckResult("gpu memory", "warning", f"{message}, a close fit: CUDA itself takes some 2 GB", remedy)


def _sizes(sizes: Mapping[str, int]) -> str:
    """ "a 4.0 GiB, b (and 1 like it) 2.0 GiB": those of one size together."""
    alike: dict[str, list[str]] = {}
    for name, size in sizes.items():
        alike.setdefault(f"{size / GIB:.1f} GiB", []).append(name)
    return ", ".join(f"{_first(names)} {size}" for size, names in alike.items())


def shared_memory(free: int | None) -> CheckResult:
    """`free`: bytes in /dev/shm, None where there is none."""
    if free is None:
        return CheckResult("shared memory", "warning", "there is no /dev/shm", "mount one: Ray uses the disk without")
    if free < RECOMMENDED_SHARED_MEMORY:
        wanted = f"{RECOMMENDED_SHARED_MEMORY / GIB:.0f}"
        message = f"/dev/shm has {free / GIB:.1f} GiB free, Ray wants {wanted} and takes the disk"
        return CheckResult(
            "shared memory", "warning", message, "give a container more of it, as with docker's --shm-size=8g"
        )
    return CheckResult("shared memory", "ok", f"/dev/shm has {free / GIB:.1f} GiB free")


def disk(free: int, needed: int | None) -> CheckResult:
    """Bytes free where runs are written; `needed` at most by a campaign's deltas and images, which mostly compress."""
    if needed is None:
        if free < 5 * GIB:
            return CheckResult(
                "disk", "warning", f"{free / GIB:.1f} GiB free here", "make room, or give --out another disk"
            )
        return CheckResult("disk", "ok", f"{free / GIB:.0f} GiB free here")
    message = f"{free / GIB:.0f} GiB free here, the campaign's deltas and images take up to {needed / GIB:.2f} GiB"
    if needed > free:
        status: Status = "problem" if needed > 2 * free else "warning"
        return CheckResult("disk", status, message, "make room, or give --out a larger disk")
    return CheckResult("disk", "ok", message)


def open_files(limit: int) -> CheckResult:
    """`limit`: the soft limit of this process, as `ulimit -n` shows it."""
    if limit < MIN_OPEN_FILES:
        return CheckResult(
            "open files", "problem", f"ulimit -n is {limit}, too few for Ray", f"ulimit -n {RECOMMENDED_OPEN_FILES}"
        )
    if limit < RECOMMENDED_OPEN_FILES:
        message = (
            f"ulimit -n is {limit}, enough for one machine; Ray advises {RECOMMENDED_OPEN_FILES} for large clusters"
        )
        return CheckResult("open files", "ok", message)
    return CheckResult("open files", "ok", f"ulimit -n is {limit}")


def hub(offline: bool, endpoint: str, error: str | None, missing: Sequence[str]) -> CheckResult:
    """`error`: why the hub was not reached; `missing`: models of the campaign that are not on this machine."""
    missing_names = ", ".join(missing)
    if offline and missing:
        message = f"HF_HUB_OFFLINE is set, and not on this machine: {missing_names}"
        return CheckResult("hub", "problem", message, "unset it for one `efface prefetch`")
    if offline:
        return CheckResult("hub", "ok", "not contacted, HF_HUB_OFFLINE is set")
    if error and missing:
        message = f"{endpoint} cannot be reached ({error}), and not on this machine: {missing_names}"
        return CheckResult(
            "hub", "problem", message, "run `efface prefetch` with a network, or set HF_HOME to a filled cache"
        )
    if error:
        message = f"{endpoint} cannot be reached ({error})"
        return CheckResult("hub", "warning", message, "set HF_HUB_OFFLINE=1, so that nothing waits for it")
    if missing:
        return CheckResult(
            "hub", "ok", f"{endpoint} can be reached; {missing_names} will be fetched, as by `efface prefetch`"
        )
    return CheckResult("hub", "ok", f"{endpoint} can be reached")


def ray_tokens(version: str | None, mode: str | None, token: bool, joins_cluster: bool) -> CheckResult:
    """`mode`: RAY_AUTH_MODE; `token`: whether one is found; `joins_cluster`: whether RAY_ADDRESS names a cluster."""
    if version is None:
        return CheckResult("ray tokens", "problem", "Ray is not installed", "pip install 'ray[default]'")
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < TOKEN_AUTH_SINCE:
        message = f"Ray {version} knows no tokens: whoever reaches its ports can run code"
        return CheckResult("ray tokens", "problem", message, "pip install -U 'ray[default]'")
    if mode == "disabled":
        message = "RAY_AUTH_MODE=disabled: whoever reaches Ray's ports can run code"
        return CheckResult("ray tokens", "warning", message, "unset it, or set RAY_AUTH_MODE=token")
    on = mode == "token" or (mode is None and numbers >= TOKEN_AUTH_DEFAULT_SINCE and not joins_cluster)
    if joins_cluster and not token:
        message = "RAY_ADDRESS names a cluster, and there is no token to show it"
        return CheckResult(
            "ray tokens", "problem", message, "copy the cluster's token to ~/.ray/auth_token, or RAY_AUTH_TOKEN"
        )
    if on:
        return CheckResult("ray tokens", "ok", f"Ray {version} asks for a token")
    if joins_cluster:
        return CheckResult("ray tokens", "ok", f"Ray {version}, with a token for the cluster of RAY_ADDRESS")
    message = f"Ray {version} asks for no token unless it is set to"
    return CheckResult(
        "ray tokens", "warning", message, "set RAY_AUTH_MODE=token, and run `ray get-auth-token --generate` once"
    )


def token_files(modes: Mapping[str, int]) -> CheckResult:
    """`modes`: files with tokens -> their permission bits."""
    exposed = [path for path, mode in modes.items() if mode & 0o077]
    if exposed:
        message = f"others on this machine can read or change {' and '.join(exposed)}"
        remedy = f"chmod 600 {shlex.join(exposed)}"
        return CheckResult("token files", "problem", message, remedy)
    return CheckResult("token files", "ok", f"{', '.join(modes) or 'none'}{': only yours' if modes else ''}")


def ray_here(processes: Sequence[int], joins_cluster: bool) -> CheckResult:
    """`processes`: ids of Ray's own processes on this machine."""
    if processes and not joins_cluster:
        message = f"a Ray runs on this machine already (process {processes[0]}), and shares its CPUs and GPUs"
        return CheckResult(
            "ray here", "warning", message, "join it with --address auto, or end it if it is yours: `ray stop`"
        )
    if processes:
        return CheckResult("ray here", "ok", "running, and RAY_ADDRESS says to join")
    return CheckResult("ray here", "ok", "not running; `efface run` starts its own")


def _first(names: Sequence[str]) -> str:
    return names[0] + (f" (and {len(names) - 1} like it)" if len(names) > 1 else "")


def _version_text(cuda: tuple[int, int] | None) -> str:
    return ".".join(map(str, cuda)) if cuda else "-"
