"""Campaigns as RayJobs: what is applied is what KubeRay's own schema takes, and asks for what the profile says."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from command import RunEfface
from run_results import results
from tiny_campaign import UCE

from efface.launch.clusters.cluster_profile import read_profile
from efface.launch.launcher import get_launcher

Profile = Callable[..., str]
KUBE_CONFIG = {"image": "registry.example.org/efface:0.1.0", "claim": "efface", "workers": 3, "cpus": 6, "gpus": 2}


def strict_schema(schema: Any) -> Any:
    """The schema with fields that it does not name refused, as Kubernetes does under strict validation."""
    if isinstance(schema, list):
        return [strict_schema(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict_schema(value) for key, value in schema.items()}
    if schema.get("x-kubernetes-int-or-string"):
        return {"type": ["integer", "string"]}
    if isinstance(schema.get("properties"), dict) and "type" in schema and "additionalProperties" not in schema:
        closed["additionalProperties"] = False
    return closed


@pytest.fixture(params=["1.6.0", "1.7.0"])
def rayjob(request: pytest.FixtureRequest) -> jsonschema.Draft202012Validator:
    """The schema that KubeRay's chart of this version gives Kubernetes, whole: version v1 of
    helm-chart/kuberay-operator/crds/ray.io_rayjobs.yaml of ray-project/kuberay (Apache-2.0)."""
    schema = json.loads(gzip.decompress(Path(__file__).with_name(f"rayjob-{request.param}.json.gz").read_bytes()))
    schema["properties"]["metadata"] = {
        "type": "object",
        "required": ["name", "namespace"],
        "additionalProperties": True,
    }
    return jsonschema.Draft202012Validator(strict_schema(schema))


@pytest.fixture
def applied(efface: RunEfface, profile: Profile, campaign_file: Callable[..., Path]) -> Callable[..., list[Any]]:
    """The documents for a campaign, with changes to the profile's section."""

    def dry_run(gpus: float = 0, environment: dict[str, str] | None = None, **changes: Any) -> list[Any]:
        cluster = profile(listen="nodes", environment=environment or {}, kube={**KUBE_CONFIG, **changes})
        campaign = campaign_file(methods=[UCE], resources={"gpus": gpus})
        result = efface("submit", "kube", campaign, "--cluster", cluster, "--dry-run")
        assert result.code == 0, result
        return list(yaml.safe_load_all(result.out))

    return dry_run


def test_kuberay_takes_it(applied: Callable[..., list[Any]], rayjob: jsonschema.Draft202012Validator) -> None:
    for changes in ({}, {"gpus": 0, "node_selector": {"gpu": "a100"}}, {"environment": {"HF_HOME": '/models "x"'}}):
        _, job = applied(**changes)
        rayjob.validate(job)
    job["spec"]["rayClusterSpec"]["authOptions"]["mode"] = "open"
    with pytest.raises(jsonschema.ValidationError, match="'open' is not one of"):
        rayjob.validate(job)
    job["spec"]["rayClusterSpec"]["authOption"] = job["spec"]["rayClusterSpec"].pop("authOptions")
    with pytest.raises(jsonschema.ValidationError, match="authOption"):
        rayjob.validate(job)


def test_the_head_only_drives_and_the_workers_are_those_of_the_profile(applied: Callable[..., list[Any]]) -> None:
    _, job = applied(gpus=1, ttl_seconds=7)
    spec, cluster = job["spec"], job["spec"]["rayClusterSpec"]
    assert (spec["entrypointNumCpus"], spec["entrypointNumGpus"]) == (0, 0)
    assert cluster["headGroupSpec"]["rayStartParams"] == {"num-cpus": "0"}
    assert cluster["authOptions"] == {"mode": "token"}
    assert (spec["shutdownAfterJobFinishes"], spec["ttlSecondsAfterFinished"]) == (True, 7)
    (workers,) = cluster["workerGroupSpecs"]
    (container,) = workers["template"]["spec"]["containers"]
    assert workers["replicas"] == 3
    assert container["resources"]["limits"] == {"cpu": "6", "memory": "16Gi", "nvidia.com/gpu": "2"}
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_run_folders_and_models_are_on_the_volume_of_every_pod(applied: Callable[..., list[Any]]) -> None:
    _, job = applied(mount="/lab")
    cluster = job["spec"]["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert {"name": "data", "persistentVolumeClaim": {"claimName": "efface"}} in pod["volumes"]
        (container,) = pod["containers"]
        assert {"name": "data", "mountPath": "/lab"} in container["volumeMounts"]
        assert {"name": "HF_HOME", "value": "/lab/huggingface"} in container["env"]
    assert job["spec"]["entrypoint"].endswith("--out /lab/runs/tiny")


def test_the_campaign_travels_whole_and_runs_as_anywhere_else(
    applied: Callable[..., list[Any]], efface: RunEfface, tmp_path: Path
) -> None:
    configmap, job = applied()
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["volumes"][1]["configMap"]["name"] == configmap["metadata"]["name"]
    (mounted,) = [mount for mount in head["containers"][0]["volumeMounts"] if mount["name"] == "campaign"]
    words = job["spec"]["entrypoint"].split()
    assert words[:5] == ["python", "-m", "efface", "run", f"{mounted['mountPath']}/campaign.yaml"]
    assert words[5:] == ["--out", "/data/runs/tiny"]
    # What the head would run, run here with the file it would find.
    (tmp_path / "mounted.yaml").write_text(configmap["data"]["campaign.yaml"])
    for run, campaign in (("run", "mounted.yaml"), ("here", "campaign.yaml")):
        result = efface("run", tmp_path / campaign, "--out", tmp_path / run, "--workers", "0")
        assert result.code == 0, result
    assert results(tmp_path / "run") == results(tmp_path / "here")


MISTAKES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "no section": ({}, [], "cluster 'test': has no section kube, should have at least kube.image and kube.claim"),
    "loopback": ({"kube": KUBE_CONFIG}, [], "listen is loopback, and pods have to reach each other: listen: nodes"),
    "no image": ({"listen": "nodes", "kube": {"claim": "x"}}, [], "key 'kube.image' is missing"),
    "too few GPUs": (
        {"listen": "nodes", "kube": {**KUBE_CONFIG, "gpus": 0}},
        ["--set", "resources.gpus=1"],
        "cluster 'test': kube.gpus is 0, and a worker of campaign 'demo' needs 1 (resources.gpus)",
    ),
    "out of the volume": (
        {"listen": "nodes", "kube": KUBE_CONFIG},
        ["--out", "/runs"],
        "--out /runs: is outside of /data",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_sentence(mistake: str, efface: RunEfface, profile: Profile) -> None:
    sections, arguments, expected = MISTAKES[mistake]
    assert expected in efface("submit", "kube", "demo", "--cluster", profile(**sections), *arguments).error_message


KUBECTL = """\
#!/bin/sh
# Stands in for a Kubernetes API: keeps what is applied, and answers `get` with the status in the file `status`.
cd "$(dirname "$0")"
echo "$3 $4" >> calls
case $3 in
    apply) cat > applied; echo '{"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}' > status ;;
    get) [ -f status ] && echo "{\\"status\\": $(cat status)}" ;;
    delete) rm status ;;
esac
exit 0
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the fake kubectl."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "kubectl").write_text(KUBECTL)
    (folder / "kubectl").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    return folder


def test_what_is_applied_is_the_campaign_and_its_job(kubectl: Path, efface: RunEfface, profile: Profile) -> None:
    efface("submit", "kube", "demo", "--cluster", profile(listen="nodes", kube=KUBE_CONFIG))
    kinds = [document["kind"] for document in yaml.safe_load_all((kubectl / "applied").read_text())]
    assert kinds == ["ConfigMap", "RayJob"]


STATUSES: dict[str, tuple[dict[str, str], str]] = {
    "just made": ({}, "pending"),
    "its cluster starts": ({"jobDeploymentStatus": "Initializing"}, "running"),
    "at work": ({"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}, "running"),
    "tried again": ({"jobDeploymentStatus": "Retrying"}, "running"),
    "done": ({"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}, "done"),
    "failed": ({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED"}, "failed"),
    "refused by KubeRay": ({"jobDeploymentStatus": "ValidationFailed"}, "failed"),
    "stopped": ({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"}, "stopped"),
    "suspended": ({"jobDeploymentStatus": "Suspended"}, "stopped"),
}


@pytest.mark.parametrize("how", STATUSES)
def test_applied_twice_it_is_one_job_and_one_that_failed_or_was_stopped_is_made_anew(
    how: str, kubectl: Path, efface: RunEfface, profile: Profile, tmp_path: Path
) -> None:
    status, state = STATUSES[how]
    cluster = profile(listen="nodes", kube=KUBE_CONFIG)
    command = ["submit", "kube", "demo", "--cluster", cluster]
    first = efface(*command).out
    assert first.splitlines()[-1].startswith("submitted: kube campaign efface-demo-")
    (kubectl / "status").write_text(json.dumps(status))
    assert get_launcher("kube").state(first.split()[-1], read_profile(cluster)) == state
    (kubectl / "calls").unlink()
    again = efface(*command).out
    kubectl_calls = [line.split()[0] for line in (kubectl / "calls").read_text().splitlines()]
    if state in ("failed", "stopped"):
        assert (again, kubectl_calls) == (first, ["get", "delete", "apply"])
    else:
        assert (again, kubectl_calls) == (first.replace("submitted: ", "there already: "), ["get"])


def test_a_job_that_is_stopped_is_suspended(kubectl: Path, efface: RunEfface, profile: Profile) -> None:
    command = ["submit", "kube", "demo", "--cluster", profile(listen="nodes", kube=KUBE_CONFIG)]
    assert "runs no RayJob 'efface-demo-" in efface(*command, "--stop").error_message
    id = efface(*command).out.split()[-1]
    (kubectl / "calls").unlink()
    assert efface(*command, "--stop").out == f"stopped: {id}\n"
    assert [line.split()[0] for line in (kubectl / "calls").read_text().splitlines()] == ["get", "patch"]


def test_without_kubectl_nothing_is_applied(
    efface: RunEfface, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = efface("submit", "kube", "demo", "--cluster", profile(listen="nodes", kube=KUBE_CONFIG))
    assert result.error_message == "`kubectl` is not on this machine; --dry-run writes the manifest without it"
