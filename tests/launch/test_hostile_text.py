"""Labels, reasons and values of strangers: text wherever they are shown or written, and nothing but text."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import RunEfface
from tiny_campaign import UCE

from efface.cluster.run import reopen_run

CLEAR = "\x1b[2J\x1b]0;title\x07"
HOSTILE = f"{CLEAR}[red]x[/red] :bomb: \u202e=1+1\r\nsecond line"
KUBE = {"image": "x", "claim": "c"}


def harmless(text: str) -> bool:
    """Whether nothing in a printed text acts on a terminal, but the ends of its lines."""
    return all(line.isprintable() for line in text.split("\n"))


def test_the_check_itself() -> None:
    assert harmless("a\n😀 [red]") and not harmless(CLEAR) and not harmless("\u202e") and not harmless("\r")


@pytest.fixture
def hostile_campaign(campaign_file: Callable[..., Path]) -> Path:
    return campaign_file(methods=[{**UCE, "label": HOSTILE}])


def test_a_plan_shows_a_label_as_it_is_written(efface: RunEfface, hostile_campaign: Path) -> None:
    result = efface("plan", hostile_campaign)
    assert result.code == 0 and harmless(result.out + result.err)
    assert "\\x1b[2J" in result.out and "[red]" in result.out and ":bomb:" in result.out
    printed = efface("plan", hostile_campaign, "--json")
    assert harmless(printed.out) and HOSTILE in [model["method"] for model in json.loads(printed.out)["models"]]


def test_a_failure_of_somebody_elses_folder_is_shown_as_text(
    efface: RunEfface, hostile_campaign: Path, tmp_path: Path
) -> None:
    root = tmp_path / "run"
    efface("run", hostile_campaign, "--out", root, "--workers", 0)
    run = reopen_run(root)
    (job,) = run.plan.jobs
    run.folder.fail(job, HOSTILE, f"Traceback\n{HOSTILE}")
    run.folder.log(job).write_text(f"step 1\n{HOSTILE}\n")
    (root / "launch.json").write_text(json.dumps({"jobs": [{"launcher": HOSTILE}]}))
    for command in (["status", root], ["logs", root, job.id], ["logs", root], ["status", root, "--json"]):
        result = efface(*command)
        assert result.code == 0 and harmless(result.out + result.err), command
    assert "step 1\n\\x1b[2J" in efface("logs", root, job.id).out


def test_an_error_message_shows_names_as_they_are_written(efface: RunEfface, tmp_path: Path) -> None:
    for command in (["run", HOSTILE], ["unlearn", HOSTILE, "-c", "cat"], ["unlearn", "uce", "-c", HOSTILE]):
        result = efface(*command)
        assert harmless(result.error_message) and "\\x1b[2J" in result.error_message


def test_a_name_that_the_terminals_encoding_lacks_is_no_traceback(tmp_path: Path) -> None:
    environment = {"PYTHONIOENCODING": "ascii", "PATH": "/usr/bin:/bin", "HOME": str(tmp_path)}
    command = [sys.executable, "-m", "efface", "submit", "slurm", "demo", "--dry-run", "--out", "/naïve😀"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and "--output=/na\\xefve\\U0001f600/launch/" in done.stdout and done.stderr == ""


VALUES = ["😀", "a\x85b\u2028c\ufeff", 'it\'s "$(touch x)" `y` \\ ${HOME}', "yes", "0x10", "{a: b}", "- #x", "*a", " "]


@pytest.mark.parametrize("value", VALUES)
def test_values_of_a_profile_arrive_in_a_manifest_as_they_are(
    value: str, efface: RunEfface, profile: Callable[..., str]
) -> None:
    written = value.replace("${", "\\${")
    cluster = profile(listen="nodes", environment={"NOTE": written}, kube={**KUBE, "node_selector": {"a": written}})
    result = efface("submit", "kube", "demo", "--cluster", cluster, "--dry-run")
    assert result.code == 0 and result.out.isascii()
    _, job = yaml.safe_load_all(result.out)
    (workers,) = job["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    pod = workers["template"]["spec"]
    assert {"name": "NOTE", "value": value} in pod["containers"][0]["env"]
    assert pod["nodeSelector"] == {"a": value}


@pytest.mark.parametrize("claim", ["true", "null", "1.5", "0x1f", "12"])
def test_names_that_yaml_would_read_as_something_else_stay_names(
    claim: str, efface: RunEfface, profile: Callable[..., str]
) -> None:
    cluster = profile(listen="nodes", kube={**KUBE, "claim": claim})
    _, job = yaml.safe_load_all(efface("submit", "kube", "demo", "--cluster", cluster, "--dry-run").out)
    head = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    assert head["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim


@pytest.mark.parametrize("value", [value for value in VALUES if value.strip()])
def test_values_of_a_profile_arrive_in_a_script_as_they_are(
    value: str, efface: RunEfface, profile: Callable[..., str], tmp_path: Path
) -> None:
    cluster = profile(environment={"NOTE": value.replace("${", "\\${")})
    result = efface("submit", "slurm", "demo", "--cluster", cluster, "--dry-run", "--out", tmp_path / "run")
    (export, *_) = [line for line in result.out.split("\n") if line.startswith("export NOTE=")]
    echoed = subprocess.run(["bash", "-c", f"{export}\nprintenv NOTE"], capture_output=True, encoding="utf-8")
    assert echoed.stdout == value + "\n"


@pytest.mark.parametrize("launcher", ["slurm", "ray"])
@pytest.mark.parametrize("mark", ["\n", "\r", "\x1b", "\x00", "\u2028", "\u202e"])
def test_a_run_folder_that_would_break_a_script_is_refused(
    launcher: str, mark: str, efface: RunEfface, tmp_path: Path
) -> None:
    out = f"{tmp_path}/run{mark}#SBATCH --uid=0"
    message = efface("submit", launcher, "demo", "--out", out, "--dry-run").error_message
    assert harmless(message) and "holds a line break or another control character" in message


@pytest.mark.parametrize("mark", ["\n", "\r", "\x1b", "\x00", "\x7f"])
@pytest.mark.parametrize("key", ["environment", "setup"])
def test_a_line_of_a_profile_is_one_line(
    key: str, mark: str, efface: RunEfface, profile: Callable[..., str], tmp_path: Path
) -> None:
    line = f"a{mark}touch x"
    sections: dict[str, Any] = {"environment": {"NOTE": line}} if key == "environment" else {"slurm": {"setup": [line]}}
    command = ["submit", "slurm", "demo", "--cluster", profile(**sections), "--dry-run", "--out", tmp_path / "run"]
    assert "string should match" in efface(*command).error_message


def test_a_label_reaches_the_cluster_unresolved(
    efface: RunEfface, campaign_file: Callable[..., Path], profile: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is written for the cluster is read there once more."""
    monkeypatch.setenv("SECRET", "hunter2")
    campaign = campaign_file(methods=[{**UCE, "label": "\\${oc.env:SECRET}"}])
    cluster = profile(listen="nodes", kube=KUBE)
    shown = efface("submit", "kube", campaign, "--cluster", cluster, "--dry-run").out
    configmap, _ = yaml.safe_load_all(shown)
    mounted = campaign.with_name("mounted.yaml")
    mounted.write_text(configmap["data"]["campaign.yaml"])
    planned = json.loads(efface("plan", mounted, "--json").out)
    assert "${oc.env:SECRET}" in [model["method"] for model in planned["models"]] and "hunter2" not in shown
