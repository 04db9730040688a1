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

from efface import cluster as cluster_room
from efface.errors import UserError
from efface.files import is_remote, slug
from efface.launch.submit.launched import Job, note
from efface.launch.submit.order import Order
from efface.launch.submit.profile import Cluster, KubePlace, check_room, read_cluster

TEMPLATES = Path(cluster_room.__path__[0]) / "deploy"
STATES = {"Complete": "done", "Failed": "failed", "ValidationFailed": "failed", "Suspended": "stopped"}
"""Of a RayJob's jobDeploymentStatus; all others are ways to be at work, and none yet is to wait."""


def place_of(cluster: Cluster) -> KubePlace:
    """The profile's Kubernetes section. Raises UserError where it has none, or keeps Ray on loopback."""
    if cluster.kube is None:
        raise UserError(f"cluster '{cluster.name}': has no section kube, should say at least kube.image and kube.claim")
    if cluster.listen != "nodes":
        raise UserError(
            f"cluster '{cluster.name}': listen is loopback, and pods have to reach each other: listen: nodes"
        )
    return cluster.kube


def manifest(order: Order, cluster: Cluster) -> str:
    """ConfigMap and RayJob as YAML. Raises UserError where a worker does not fit, or the pods cannot see `out`."""
    place = place_of(cluster)
    check_room(order.campaign, f"cluster '{cluster.name}': kube", place.cpus, place.gpus)
    if not is_remote(order.folder) and not order.folder.is_relative_to(place.mount):
        raise UserError(
            f"--out {order.out}: lies outside of {place.mount}, where the pods have their volume (kube.mount)"
        )
    caches = {"EFFACE_CACHE": f"{place.mount}/cache", "HF_HOME": f"{place.mount}/huggingface"}
    room = {"cpu": str(place.cpus), "memory": place.memory}
    engine = Environment(loader=FileSystemLoader(TEMPLATES), undefined=StrictUndefined, keep_trailing_newline=True)
    engine.filters["json"] = json.dumps
    return engine.get_template("rayjob.yaml.j2").render(
        campaign=order.campaign.name,
        metadata={"name": _name(order), "namespace": place.namespace},
        text=order.text,
        entrypoint=shlex.join(order.command("/etc/efface/campaign.yaml")),
        place=place,
        ray_version=version("ray"),
        env=[{"name": name, "value": value} for name, value in {**caches, **cluster.environment}.items()],
        room=room | ({"nvidia.com/gpu": str(place.gpus)} if place.gpus else {}),
    )


def apply(order: Order, cluster: Cluster, profile: str, text: str) -> tuple[Job, bool]:
    """Apply the manifest; the job, and whether it is new. Raises UserError with kubectl's words where it refuses."""
    job = Job("kube", "campaign", _name(order), profile)
    before = state_of(job)
    if before in ("waiting", "running", "done"):
        return job, False
    if before in ("failed", "stopped"):
        _kubectl(place_of(cluster), "delete", "rayjob", job.id, "--wait=true")
    _kubectl(place_of(cluster), "apply", "--filename=-", given=text)
    if order.seen_from_here:
        note(order.folder, [job])
    return job, True


def state_of(job: Job) -> str:
    """How a job is, in the words of `launched`."""
    try:
        place = place_of(read_cluster(job.cluster))
        shown = _kubectl(place, "get", "rayjob", job.id, "--ignore-not-found", "--output=json")
    except UserError:
        return "unknown"
    if not shown.strip():
        return "gone"
    status = json.loads(shown).get("status", {})
    if status.get("jobStatus") == "STOPPED":
        return "stopped"  # which to KubeRay is complete as well
    deployment = status.get("jobDeploymentStatus", "")
    return STATES.get(deployment, "running" if deployment else "waiting")


def _name(order: Order) -> str:
    """The order's id, short enough for the names that KubeRay makes of it."""
    return f"efface-{slug(order.campaign.name)[:20].strip('-')}-{order.id[-12:]}"


def _kubectl(place: KubePlace, *words: str, given: str | None = None) -> str:
    command = ["kubectl", "--namespace", place.namespace, *words]
    try:
        done = subprocess.run(command, input=given, capture_output=True, text=True, timeout=120)
    except FileNotFoundError:
        raise UserError("`kubectl` is not on this machine; --dry-run writes the manifest without it") from None
    except subprocess.TimeoutExpired:
        raise UserError("`kubectl` does not answer; is the Kubernetes cluster up?") from None
    if done.returncode:
        raise UserError(f"Kubernetes refuses (kubectl {words[0]}): {' '.join(done.stderr.split())}")
    return done.stdout
