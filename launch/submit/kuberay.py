"""`efface submit kube`: a campaign as a RayJob of KubeRay, from the template `cluster/deploy/rayjob.yaml.j2`.

The image holds efface and all it needs; run folders and models lie on a volume of all pods, or on an object store.
Applied twice it is one job; one that failed is made anew and goes on from its run folder.
"""

import json
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from efface import cluster as cluster_package
from efface.errors import UserError
from efface.files import is_remote, slug
from efface.launch.submit.launch_record import LaunchRecord, append_records
from efface.launch.submit.launch_spec import LaunchSpec
from efface.launch.submit.profile import ClusterProfile, KubeConfig, check_resources, read_cluster

TEMPLATES = Path(cluster_package.__path__[0]) / "deploy"
STATES = {"Complete": "done", "Failed": "failed", "ValidationFailed": "failed", "Suspended": "stopped"}
"""Of a RayJob's jobDeploymentStatus; all others are ways to be at work, and none yet is to wait."""


def kube_config(cluster: ClusterProfile) -> KubeConfig:
    """The profile's Kubernetes section. Raises UserError where it has none, or keeps Ray on loopback."""
    if cluster.kube is None:
        raise UserError(f"cluster '{cluster.name}': has no section kube, should say at least kube.image and kube.claim")
    if cluster.listen != "nodes":
        raise UserError(
            f"cluster '{cluster.name}': listen is loopback, and pods have to reach each other: listen: nodes"
        )
    return cluster.kube


def manifest(spec: LaunchSpec, cluster: ClusterProfile) -> str:
    """ConfigMap and RayJob as YAML. Raises UserError where a worker does not fit, or the pods cannot see `out`."""
    config = kube_config(cluster)
    check_resources(spec.campaign, f"cluster '{cluster.name}': kube", config.cpus, config.gpus)
    if not is_remote(spec.folder) and not spec.folder.is_relative_to(config.mount):
        raise UserError(
            f"--out {spec.out}: lies outside of {config.mount}, where the pods have their volume (kube.mount)"
        )
    caches = {"EFFACE_CACHE": f"{config.mount}/cache", "HF_HOME": f"{config.mount}/huggingface"}
    resources = {"cpu": str(config.cpus), "memory": config.memory}
    engine = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    engine.filters["json"] = json.dumps
    return engine.get_template("rayjob.yaml.j2").render(
        campaign=spec.campaign.name,
        metadata={"name": _name(spec), "namespace": config.namespace},
        text=spec.text,
        entrypoint=shlex.join(spec.command("/etc/efface/campaign.yaml")),
        config=config,
        ray_version=version("ray"),
        env=[{"name": name, "value": value} for name, value in {**caches, **cluster.environment}.items()],
        resources=resources | ({"nvidia.com/gpu": str(config.gpus)} if config.gpus else {}),
    )


def apply(spec: LaunchSpec, cluster: ClusterProfile, profile: str, text: str) -> tuple[LaunchRecord, bool]:
    """Apply the manifest; the job, and whether it is new. Raises UserError with kubectl's words where it refuses."""
    job = LaunchRecord("kube", "campaign", _name(spec), profile)
    before = state_of(job)
    if before in ("pending", "running", "done"):
        return job, False
    if before in ("failed", "stopped"):
        _kubectl(kube_config(cluster), "delete", "rayjob", job.id, "--wait=true")
    _kubectl(kube_config(cluster), "apply", "--filename=-", input_text=text)
    if spec.run_folder_is_shared:
        append_records(spec.folder, [job])
    return job, True


def state_of(job: LaunchRecord) -> str:
    """How a job is, in the words of `launch_states`."""
    try:
        config = kube_config(read_cluster(job.cluster))
        output = _kubectl(config, "get", "rayjob", job.id, "--ignore-not-found", "--output=json")
    except UserError:
        return "unknown"
    if not output.strip():
        return "gone"
    status = json.loads(output).get("status", {})
    if status.get("jobStatus") == "STOPPED":
        return "stopped"  # which to KubeRay is complete as well
    deployment = status.get("jobDeploymentStatus", "")
    return STATES.get(deployment, "running" if deployment else "pending")


def _name(spec: LaunchSpec) -> str:
    """The order's id, short enough for the names that KubeRay makes of it."""
    return f"efface-{slug(spec.campaign.name)[:20].strip('-')}-{spec.id[-12:]}"


def _kubectl(config: KubeConfig, *words: str, input_text: str | None = None) -> str:
    command = ["kubectl", "--namespace", config.namespace, *words]
    try:
        done = subprocess.run(command, input=input_text, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise UserError("`kubectl` is not on this machine; --dry-run writes the manifest without it") from None
    except subprocess.TimeoutExpired:
        raise UserError("`kubectl` does not answer; is the Kubernetes cluster up?") from None
    if done.returncode:
        raise UserError(f"Kubernetes refuses (kubectl {words[0]}): {' '.join(done.stderr.split())}")
    return done.stdout
