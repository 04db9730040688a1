"""A cluster profile: all that is known of a place where campaigns run, in one YAML file of `configs/clusters/`.

    name: campus
    listen: nodes
    environment: {HF_HOME: /scratch/models}
    ray: {address: "http://127.0.0.1:8265"}
    slurm: {partition: gpu, account: vision, time: "08:00:00", gpus: 1, cpus: 8, parts: 16}
    kube: {image: "registry.example.org/efface:0.1.0", claim: runs, workers: 4, gpus: 1}

Each launcher reads its own section, and the campaign stays the same. Values go into scripts, logs and manifests that
others may read, so none of them may be a secret.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from efface.cluster.campaign.spec import Campaign
from efface.config_files import StrictModel, find_config, read_config
from efface.errors import UserError

ShellWord = Annotated[str, Field(pattern=r"^[A-Za-z0-9/._][A-Za-z0-9._,@:/+=-]*$")]
"""What may stand unquoted in a script."""
VariableName = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
Line = Annotated[str, Field(pattern=r"^[^\n\r]+$")]
KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]

SECRET_WORDS = {"TOKEN", "TOKENS", "SECRET", "SECRETS", "PASSWORD", "PASSWD", "CREDENTIALS", "APIKEY", "KEY"}
ASSIGNMENT = re.compile(r"([A-Za-z][A-Za-z0-9_-]*)\s*[=:]\s*\S")
KEY_MATERIAL = re.compile(r"hf_[A-Za-z0-9]{20,}|AKIA[A-Z0-9]{12,}|-----BEGIN|://[^/\s:@]+:[^/\s@]+@")


def slurm_time_to_seconds(time: str) -> float:
    """Of a time as SLURM writes it: minutes[:seconds], hours:minutes:seconds, days-hours[:minutes[:seconds]]."""
    if not time[:1].isdigit():
        return float("inf")  # infinite, n/a
    days, _, rest = time.rpartition("-")
    parts = [int(part) for part in rest.split(":")]
    units = (3600, 60, 1) if days or len(parts) == 3 else (60, 1)
    return int(days or 0) * 86400 + sum(part * unit for part, unit in zip(parts, units, strict=False))


class RayConfig(StrictModel):
    """A Ray cluster that is there, as its head's job server shows it."""

    address: str = Field(
        "http://127.0.0.1:8265", pattern=r"^https?://\S+$", description="the dashboard's URL, behind a tunnel or TLS"
    )
    token_file: str | None = Field(None, description="file with Ray's token; default: what Ray itself finds")


class SlurmConfig(StrictModel):
    """A part of a SLURM cluster. CPUs, GPUs and memory are those of one array task, or of each node of a Ray."""

    style: Literal["array", "shared", "exclusive"] = Field(
        "array", description="parts without Ray; Ray on nodes that others use too; Ray on nodes of one's own"
    )
    partition: ShellWord | None = Field(None, description="default: the cluster's default partition")
    account: ShellWord | None = None
    qos: ShellWord | None = None
    constraint: ShellWord | None = Field(None, description="features a node must have")
    time: Annotated[str, Field(pattern=r"^(\d+-)?\d+(:\d\d){0,2}$")] = Field(
        "01:00:00", description="limit of a job; it saves and queues again before"
    )
    parts: int = Field(8, ge=1, le=1000, description="tasks of an array, at most one for each model")
    nodes: int = Field(1, ge=1, description="nodes of a Ray")
    cpus: int = Field(1, ge=1)
    gpus: int = Field(0, ge=0)
    memory: Annotated[str, Field(pattern=r"^\d+[KMGT]?$")] | None = Field(None, description="such as 32G")
    modules: tuple[ShellWord, ...] = Field((), description="loaded first")
    setup: tuple[Line, ...] = Field((), description="shell lines before the work, such as `source env/bin/activate`")
    container: ShellWord | None = Field(None, description="image for srun --container-image (Pyxis)")
    mounts: tuple[ShellWord, ...] = Field((), description="of the container, FROM:TO")
    warn_seconds: int = Field(120, ge=5, description="so long before the time limit the work is told to save")
    requeues: int = Field(20, ge=0, description="how often a job may queue itself again")

    @model_validator(mode="after")
    def _check_time(self) -> "SlurmConfig":
        if slurm_time_to_seconds(self.time) < 2 * self.warn_seconds:
            raise ValueError(f"time is {self.time}, should be at least twice warn_seconds, {self.warn_seconds}")
        return self


class KubeConfig(StrictModel):
    """A Kubernetes namespace with the KubeRay operator (1.6 or newer)."""

    image: Annotated[str, Field(pattern=r"^\S+$")] = Field(description="built from cluster/deploy/Dockerfile")
    namespace: KubernetesName = "default"
    claim: KubernetesName = Field(
        description="persistent volume claim, ReadWriteMany, for run folders and the model cache"
    )
    mount: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]+$")] = Field("/data", description="where the claim lies")
    workers: int = Field(1, ge=1, description="worker pods")
    cpus: int = Field(4, ge=1, description="of a worker pod")
    gpus: int = Field(0, ge=0, description="of a worker pod")
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)?[KMGT]i$")] = Field("16Gi", description="of a worker pod")
    ttl_seconds: int = Field(600, ge=0, description="the cluster goes away so long after the end")
    retries: int = Field(3, ge=0, description="fresh clusters after the first, each goes on from the run folder")
    node_selector: dict[str, str] = Field({}, description="labels of the worker pods' nodes")


class ClusterProfile(StrictModel):
    """One YAML file."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    listen: Literal["loopback", "nodes"] = Field(
        "loopback",
        description="where the servers of a Ray that efface starts can be reached from",
    )
    environment: dict[VariableName, Line] = Field({}, description="variables of every process; no secrets")
    ray: RayConfig = RayConfig()
    slurm: SlurmConfig = SlurmConfig()
    kube: KubeConfig | None = None

    @model_validator(mode="before")
    @classmethod
    def _reject_secrets(cls, data: Any) -> Any:
        found = _find_secret("", data)
        if found:
            raise ValueError(f"{found} looks like a secret, which scripts and logs would show; name a file instead")
        return data


def read_cluster(name_or_path: str) -> ClusterProfile:
    """A profile file, or a shipped one by name. Raises UserError."""
    return read_config(ClusterProfile, find_config("clusters", name_or_path))


def check_resources(campaign: Campaign, where: str, cpus: int, gpus: int) -> None:
    """Raises UserError where a worker of the campaign would not fit into what the profile asks for."""
    for what, needed, there in (("cpus", campaign.resources.cpus, cpus), ("gpus", campaign.resources.gpus, gpus)):
        if needed > there:
            raise UserError(
                f"{where}.{what} is {there}, and a worker of campaign '{campaign.name}' needs {needed:g} "
                f"(resources.{what}); raise the one or lower the other"
            )


def _find_secret(key_path: str, value: Any) -> str | None:
    """Where in `value` a secret seems to stand; a variable that names a file (…_FILE, …_PATH) is none."""
    if isinstance(value, dict):
        pairs = [(f"{key_path}.{key}".strip("."), f"{key}={held}", held) for key, held in value.items()]
    elif isinstance(value, list | tuple):
        pairs = [(f"{key_path}.{index}", str(held), held) for index, held in enumerate(value)]
    else:
        return None
    for where, text, held in pairs:
        if isinstance(held, dict | list | tuple):
            found = _find_secret(where, held)
            if found:
                return found
            continue
        if KEY_MATERIAL.search(text) or any(map(_names_a_secret, ASSIGNMENT.findall(text))):
            return where
    return None


def _names_a_secret(variable: str) -> bool:
    words = re.split(r"[_-]", variable.upper())
    return bool(SECRET_WORDS & set(words)) and words[-1] not in ("FILE", "PATH")
