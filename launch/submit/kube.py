"""`efface submit kube`: a campaign as a RayJob of KubeRay, from the template `templates/rayjob.yaml.j2`.

The image holds efface and all it needs; run folders and models are on a volume of all pods, or on an object store.
Applied twice it is one job; one that failed is created again and goes on from its run folder.
"""

import json
import shlex
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from efface.config_files import StrictModel
from efface.errors import UserError
from efface.files import is_remote, slug
from efface.launch.clusters.cluster_profile import ClusterProfile, check_resources
from efface.launch.clusters.launch_record import LaunchRecord, append_records
from efface.launch.clusters.launch_spec import LaunchSpec
from efface.launch.launcher import LAUNCHERS, Launch, Launcher, ProfileOption, State, Submission, SubmitOptions

TEMPLATES = Path(__file__).parent / "templates"
STATES: dict[str, State] = {
    "Complete": "done",
    "Failed": "failed",
    "ValidationFailed": "failed",
    "Suspended": "stopped",
}
"""Of a RayJob's jobDeploymentStatus; all others are ways to run, and none yet is to wait."""

KubernetesName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]{0,61}[a-z0-9])?$")]


class KubeSettings(StrictModel):
    """A Kubernetes namespace with the KubeRay operator (1.6 or newer)."""

    image: Annotated[str, Field(pattern=r"^\S+$")] = Field(description="built from cluster/deploy/Dockerfile")
    namespace: KubernetesName = Field("default", description="in which jobs are made")
    claim: KubernetesName = Field(
        description="persistent volume claim, ReadWriteMany, for run folders and the model cache"
    )
    mount: Annotated[str, Field(pattern=r"^/[A-Za-z0-9._/-]+$")] = Field(
        "/data", description="where the claim is mounted"
    )
    workers: int = Field(1, ge=1, description="worker pods")
    cpus: int = Field(4, ge=1, description="of a worker pod")
    gpus: int = Field(0, ge=0, description="of a worker pod")
    memory: Annotated[str, Field(pattern=r"^\d+(\.\d+)?[KMGT]i$")] = Field("16Gi", description="of a worker pod")
    ttl_seconds: int = Field(600, ge=0, description="the cluster goes away so long after the end")
    retries: int = Field(3, ge=0, description="fresh clusters after the first, each goes on from the run folder")
    node_selector: dict[str, str] = Field({}, description="labels of the worker pods' nodes")


@dataclass(frozen=True, kw_only=True)
class KubeOptions(SubmitOptions):
    """Write a KubeRay RayJob for a campaign and apply it with kubectl."""

    cluster: ProfileOption


KubeLaunch = Launch[KubeSettings, KubeOptions]


@LAUNCHERS.register("kube")
class KubeRay(Launcher[KubeSettings, KubeOptions]):
    """Kubernetes with the KubeRay operator, by kubectl on this machine."""

    name = "kube"
    id_pattern = r"efface-[a-z0-9]([a-z0-9-]{0,18}[a-z0-9])?-[0-9a-f]{12}"
    settings = KubeSettings
    options = KubeOptions

    def section(self, profile: ClusterProfile) -> KubeSettings:
        """Raises UserError also where the profile keeps Ray on loopback."""
        found = super().section(profile)
        if profile.listen != "nodes":
            raise UserError(
                f"cluster '{profile.name}': listen is loopback, and pods have to reach each other: listen: nodes"
            )
        return found

    def runs_folder(self, settings: KubeSettings) -> str:
        return f"{settings.mount}/runs"

    def render(self, launch: KubeLaunch) -> dict[str, str]:
        """ConfigMap and RayJob as YAML. Raises UserError where a worker does not fit, or pods cannot see `out`."""
        return {"rayjob.yaml": _manifest(launch.spec, launch.profile, launch.settings)}

    def submit(self, launch: KubeLaunch, texts: Mapping[str, str]) -> Submission:
        """Apply the manifest. Raises UserError with kubectl's words where it refuses."""
        job = LaunchRecord(self.name, "campaign", _name(launch.spec), launch.profile.name)
        before = self.state(job.id, launch.profile)
        if before in ("pending", "running", "done"):
            return Submission([job], new=False)
        if before in ("failed", "stopped"):
            _kubectl(launch.settings, "delete", "rayjob", "--wait=true", "--", job.id)
        _kubectl(launch.settings, "apply", "--filename=-", input_text=texts["rayjob.yaml"])
        if launch.spec.run_folder_is_shared:
            append_records(launch.spec.folder, [job])
        return Submission([job], new=True)

    def state(self, id: str, profile: ClusterProfile | None) -> State:
        if profile is None:
            return "unknown"
        try:
            words = ("get", "rayjob", "--ignore-not-found", "--output=json", "--", id)
            output = _kubectl(self.section(profile), *words)
            status = json.loads(output).get("status", {}) if output.strip() else None
        except (UserError, ValueError):
            return "unknown"
        if status is None:
            return "gone"
        if status.get("jobStatus") == "STOPPED":
            return "stopped"  # which to KubeRay is complete as well
        deployment = status.get("jobDeploymentStatus", "")
        return STATES.get(deployment, "running" if deployment else "pending")

    def stop(self, launch: KubeLaunch) -> list[str]:
        """Suspend the RayJob: its pods are asked to end, save, and go away."""
        id = _name(launch.spec)
        if self.state(id, launch.profile) not in ("pending", "running"):
            raise UserError(f"cluster '{launch.profile.name}': runs no RayJob '{id}'")
        patch = json.dumps({"spec": {"suspend": True}})
        _kubectl(launch.settings, "patch", "rayjob", "--type=merge", f"--patch={patch}", "--", id)
        return [id]


def _manifest(spec: LaunchSpec, profile: ClusterProfile, settings: KubeSettings) -> str:
    from importlib.metadata import version

    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    check_resources(spec.campaign, f"cluster '{profile.name}': kube", settings.cpus, settings.gpus)
    if not is_remote(spec.folder) and not spec.folder.is_relative_to(settings.mount):
        raise UserError(
            f"--out {spec.out}: is outside of {settings.mount}, where the pods have their volume (kube.mount)"
        )
    caches = {"EFFACE_CACHE": f"{settings.mount}/cache", "HF_HOME": f"{settings.mount}/huggingface"}
    resources = {"cpu": str(settings.cpus), "memory": settings.memory}
    engine = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    engine.filters["yaml"] = _yaml
    return engine.get_template("rayjob.yaml.j2").render(
        campaign=spec.campaign.name,
        metadata={"name": _name(spec), "namespace": settings.namespace},
        text=spec.text,
        entrypoint=shlex.join(spec.command("/etc/efface/campaign.yaml")),
        config=settings,
        ray_version=version("ray"),
        env=[{"name": name, "value": value} for name, value in {**caches, **profile.environment}.items()],
        resources=resources | ({"nvidia.com/gpu": str(settings.gpus)} if settings.gpus else {}),
    )


def _yaml(value: Any) -> str:
    """Text, or texts in lists and mappings, as YAML on one line; every character that YAML would change is escaped."""
    import yaml

    return yaml.safe_dump(value, default_style='"', default_flow_style=True, width=2**31, sort_keys=False).strip()


def _name(spec: LaunchSpec) -> str:
    """The request's id, short enough for the names that KubeRay makes of it."""
    return f"efface-{slug(spec.campaign.name)[:20].strip('-')}-{spec.id[-12:]}"


def _kubectl(config: KubeSettings, *words: str, input_text: str | None = None) -> str:
    command = ["kubectl", "--namespace", config.namespace, *words]
    try:
        done = subprocess.run(
            command, input=input_text, capture_output=True, encoding="utf-8", errors="replace", timeout=120
        )
    except FileNotFoundError:
        raise UserError("`kubectl` is not on this machine; --dry-run writes the manifest without it") from None
    except subprocess.TimeoutExpired:
        raise UserError("`kubectl` does not answer; is the Kubernetes cluster up?") from None
    if done.returncode:
        raise UserError(f"Kubernetes refuses (kubectl {words[0]}): {' '.join(done.stderr.split())}")
    return done.stdout
