"""The scripts of `efface submit slurm`, and what is refused before one is queued."""

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import RunEfface
from slurm_cluster import SlurmCluster

Profile = Callable[..., str]
STYLES = ["array", "shared", "exclusive"]
SHORT = ["--set", "concepts.targets=[cat]", "--set", "methods=[{method: uce, preset: miniature}]"]


@pytest.fixture
def scripts(efface: RunEfface, profile: Profile, tmp_path: Path) -> Callable[..., dict[str, str]]:
    """The scripts of a dry run by their names, for a profile of these sections."""

    def dry_run(style: str, *arguments: str, **sections: Any) -> dict[str, str]:
        command = ["submit", "slurm", "demo", *SHORT, "--style", style, "--dry-run", "--out", tmp_path / "run"]
        result = efface(*command, "--cluster", profile(**sections), *arguments)
        assert result.code == 0, result
        if style != "array":
            return {style: result.out}
        parts = result.out.split("==> ")[1:]
        return {Path(part.split(" <==\n")[0]).stem: part.split(" <==\n", 1)[1] for part in parts}

    return dry_run


def directives(script: str) -> list[str]:
    return [line.removeprefix("#SBATCH ") for line in script.splitlines() if line.startswith("#SBATCH ")]


@pytest.mark.parametrize("style", STYLES)
def test_a_dry_run_shows_what_bash_can_read_and_writes_nothing(
    style: str, scripts: Callable[..., dict[str, str]], tmp_path: Path
) -> None:
    shown = scripts(style)
    assert list(shown) == (["array", "leaderboard"] if style == "array" else [style])
    for text in shown.values():
        assert text.startswith("#!/usr/bin/env bash\n")
        assert subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True).stderr == ""
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("style", STYLES)
def test_the_profile_reaches_the_script(style: str, scripts: Callable[..., dict[str, str]]) -> None:
    section = {"partition": "gpu", "account": "vision", "qos": "high", "time": "1-02:03:04", "cpus": 6, "gpus": 2}
    section |= {"memory": "48G", "constraint": "a100", "modules": ["cuda/12.8"], "setup": ["source env/bin/activate"]}
    section |= {"container": "/images/efface.sqsh", "mounts": ["/scratch:/scratch"], "warn_seconds": 90}
    for text in scripts(style, slurm=section, environment={"HF_HOME": "/models"}).values():
        for expected in (
            *("--partition=gpu", "--account=vision", "--qos=high", "--time=1-02:03:04", "--cpus-per-task=6"),
            *("--gpus-per-node=2", "--mem=48G", "--constraint=a100", "--signal=B:USR1@90", "--requeue"),
        ):
            assert expected in directives(text)
        lines = text.splitlines()
        order = [
            lines.index(line) for line in ("module load cuda/12.8", "source env/bin/activate", "export HF_HOME=/models")
        ]
        assert order == sorted(order)
        assert (
            "srun --cpus-per-task=6 --container-image=/images/efface.sqsh --container-mounts=/scratch:/scratch" in text
        )
        assert "/bin/python" not in text  # the container has a Python of its own


def test_an_array_has_no_more_parts_than_there_are_models(scripts: Callable[..., dict[str, str]]) -> None:
    assert "--array=1-2" in directives(scripts("array", slurm={"parts": 50})["array"])  # UCE's, and the base


def test_values_arrive_as_they_are_written(scripts: Callable[..., dict[str, str]]) -> None:
    value = """it's "$(touch /tmp/never)" `x` $HOME \\ ;"""
    text = scripts("array", environment={"NOTE": value})["array"]
    (export,) = [line for line in text.splitlines() if line.startswith("export NOTE=")]
    echoed = subprocess.run(["bash", "-c", f"{export}\nprintenv NOTE"], capture_output=True, text=True)
    assert echoed.stdout == value + "\n"


FAKE_COMMANDS = {
    "srun": 'sleep 2; while [[ $1 == --* ]]; do shift; done; exec "$@"',
    "python": "exec sleep 60",
    "scontrol": 'echo "requested: $*"; (sleep 1; kill -TERM $PPID) &',  # a script whose job is queued again is ended
}


def test_out_of_time_before_the_work_has_begun_a_job_is_queued_again(
    scripts: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, does in FAKE_COMMANDS.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    text = scripts("array", slurm={"container": "image"})["array"]  # whose Python is not the one that submits
    (tmp_path / "run" / "launch").mkdir(parents=True)
    (tmp_path / "array.sh").write_text(text)
    with (tmp_path / "log").open("w") as log:
        script = subprocess.Popen(["bash", tmp_path / "array.sh"], stdout=log)
    time.sleep(1)
    script.send_signal(signal.SIGUSR1)
    script.wait(timeout=30)
    assert (tmp_path / "log").read_text() == "requested: requeue 7\nefface: interrupted, saved, and queued again\n"
    assert list((tmp_path / "run" / "launch").iterdir()) == []


@pytest.mark.parametrize(("code", "requeued"), [(75, True), (2, False), (1, False), (0, False)])
def test_a_job_whose_store_was_away_is_queued_again_and_one_with_a_mistake_is_not(
    code: int, requeued: bool, scripts: Callable[..., dict[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, does in {
        **FAKE_COMMANDS,
        "srun": FAKE_COMMANDS["srun"].partition("; ")[2],
        "python": f"exit {code}",
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{does}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURM_ARRAY_TASK_ID", "1")
    (tmp_path / "run" / "launch").mkdir(parents=True)
    (tmp_path / "array.sh").write_text(scripts("array", slurm={"container": "image"})["array"])
    with (tmp_path / "log").open("w") as log:
        done = subprocess.run(["bash", tmp_path / "array.sh"], stdout=log, timeout=30)
    assert ("requested: requeue 7" in (tmp_path / "log").read_text()) is requeued
    assert requeued or done.returncode == code


MISTAKES: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "unknown profile": ({}, ["--cluster", "locl"], "unknown cluster 'locl': did you mean 'local'?"),
    "unknown key": ({"slurm": {"partitoin": "x"}}, [], "unknown key 'slurm.partitoin', did you mean 'partition'?"),
    "unknown style": ({}, ["--style", "arry"], "--style: unknown 'arry', did you mean 'array'?"),
    "a second directive": (
        {"slurm": {"partition": "gpu\n#SBATCH --uid=0"}},
        [],
        "slurm.partition: string should match",
    ),
    "a command": ({"slurm": {"account": "x; reboot"}}, [], "slurm.account: string should match"),
    "time": ({"slurm": {"time": "soon"}}, [], "slurm.time: string should match"),
    "nodes on loopback": (
        {"slurm": {"nodes": 2, "style": "shared"}},
        [],
        "cluster 'test': slurm.nodes is 2, and the nodes of a Ray have to reach each other: set listen: nodes",
    ),
    "a password": (
        {},
        ["--out", "s3://me:mine@bucket/run"],
        "--out holds a password, which scripts and logs would show; leave it to the store's client",
    ),
    "campaign": ({}, ["--set", "metods=[]"], "unknown key 'metods', did you mean 'methods'?"),
    "method": ({}, ["--set", "methods=[{method: uec}]"], "unknown method 'uec': did you mean 'uce'?"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_answered_in_one_sentence(
    mistake: str, efface: RunEfface, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    sections, arguments, expected = MISTAKES[mistake]
    command = ["submit", "slurm", "demo", "--cluster", profile(**sections), "--out", tmp_path / "run", *arguments]
    assert expected in efface(*command).error_message
    assert not (tmp_path / "run").exists() and not (tmp_path / "runs").exists()


SECRETS: dict[str, dict[str, Any]] = {
    "environment.HF_TOKEN": {"environment": {"HF_TOKEN": "x"}},
    "environment.AWS_SECRET_ACCESS_KEY": {"environment": {"AWS_SECRET_ACCESS_KEY": "x"}},
    "environment.DATABASE": {"environment": {"DATABASE": "mysql://me:mine@host/db"}},
    "environment.NOTE": {"environment": {"NOTE": "hf_" + "a" * 34}},
    "slurm.setup.1": {"slurm": {"setup": ["cd /work", "export WANDB_API_KEY=x"]}},
}


@pytest.mark.parametrize("key", SECRETS)
def test_a_profile_holds_no_secret(key: str, efface: RunEfface, profile: Profile) -> None:
    result = efface("submit", "slurm", "demo", "--cluster", profile(**SECRETS[key]), "--dry-run").error_message
    assert f"{key} looks like a secret, which scripts and logs would show; name a file instead" in result


def test_a_profile_may_name_the_file_of_a_secret(scripts: Callable[..., dict[str, str]]) -> None:
    files = {"HF_TOKEN_PATH": "/home/me/.token", "AWS_SHARED_CREDENTIALS_FILE": "/home/me/aws"}
    assert scripts("array", environment={**files, "TOKENIZERS_PARALLELISM": "false", "RAY_AUTH_MODE": "token"})


def test_without_slurm_it_says_where_to_submit(
    efface: RunEfface, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    result = efface("submit", "slurm", "demo", *SHORT, "--cluster", profile(), "--out", tmp_path / "run")
    assert result.error_message == "`sinfo` is not on this machine; submit where SLURM's commands are"
    assert not (tmp_path / "run").exists()


REFUSED: dict[str, tuple[dict[str, Any], list[str], str]] = {
    "partition": ({"partition": "mian"}, [], "slurm.partition: unknown 'mian', did you mean 'main'?"),
    "GPUs": ({"gpus": 3}, [], "slurm.gpus is 3, and a node of this cluster has at most 2"),
    "no GPUs": (
        {"cpus": 2},
        ["--set", "resources.gpus=0.5"],
        "slurm.gpus is 0, and a worker of campaign 'demo' needs 0.5 (resources.gpus); raise the one or lower the other",
    ),
    "CPUs": ({"cpus": 64}, [], "SLURM refuses (sbatch): "),
    "time": (
        {"time": "2-00", "partition": "main"},
        [],
        "slurm.time is 2-00, and a job of partition 'main' may take at most 1-00:00:00",
    ),
    "memory": ({"memory": "900G"}, [], "SLURM refuses (sbatch): "),
    "unknown account": ({"account": "visoin"}, [], "slurm.account: unknown 'visoin', did you mean 'vision'?"),
    "an account of others": ({"account": "speech"}, [], "slurm.account: unknown 'speech'"),
    "missing account": (
        {"partition": "funded"},
        [],
        "slurm.account is missing, and partition 'funded' takes no such job; yours are root, vision",
    ),
    "nodes": ({"nodes": 3, "style": "exclusive"}, [], "SLURM refuses (sbatch): "),
}


@pytest.mark.parametrize("mistake", REFUSED)
def test_what_a_real_slurm_has_not_is_refused_before_anything_is_written(
    mistake: str, slurm: SlurmCluster, efface: RunEfface, profile: Profile, tmp_path: Path
) -> None:
    section, arguments, expected = REFUSED[mistake]
    cluster = profile(slurm=section, listen="nodes")
    command = ["demo", *SHORT, "--cluster", cluster, "--out", tmp_path / "run", *arguments]
    assert expected in efface("submit", "slurm", *command).error_message
    assert slurm.empty() and not (tmp_path / "run").exists()


def test_stopping_takes_every_job_that_waits_or_runs_off_the_queue(
    efface: RunEfface, profile: Profile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from efface.launch.clusters.launch_record import LaunchRecord, append_records

    folder = tmp_path / "bin"
    folder.mkdir()
    states = {"squeue": 'case "$*" in *=7) echo COMPLETED ;; *) echo PENDING ;; esac', "scancel": ""}
    for name, does in states.items():
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\n{does}\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    run = tmp_path / "run"
    command = ["submit", "slurm", "demo", "--cluster", profile(), "--out", run, "--stop"]
    assert efface(*command).error_message == f"{run}: no job of SLURM waits or runs for it"
    append_records(run, [LaunchRecord("slurm", "array", number, "test") for number in ("7", "8", "9")])
    assert efface(*command).out == "stopped: 8\nstopped: 9\n"
    assert (folder / "calls").read_text().splitlines()[-1] == "scancel 8 9"
    assert (run / "launch" / "stopped").exists()  # what begins nevertheless ends at once


@pytest.mark.parametrize("name", ["launch/array.sh", "launch/leaderboard.sh", "launch/campaign.yaml", "launch.json"])
def test_what_is_no_launch_of_a_campaign_is_not_replaced(
    name: str, efface: RunEfface, profile: Profile, tmp_path: Path
) -> None:
    (tmp_path / "run" / "launch").mkdir(parents=True)
    (tmp_path / "run" / name).write_text("mine")
    result = efface("submit", "slurm", "demo", *SHORT, "--cluster", profile(), "--out", tmp_path / "run")
    assert result.error_message.startswith(f"{tmp_path / 'run' / name}: exists already and ")
    assert result.error_message.endswith("; give --out another folder")
    assert (tmp_path / "run" / name).read_text() == "mine" and not (tmp_path / "run" / "campaign.yaml").exists()


@pytest.mark.parametrize("launcher", ["ray", "kube"])
def test_nor_by_the_other_launchers(launcher: str, efface: RunEfface, profile: Profile, tmp_path: Path) -> None:
    key = {"image": "efface", "claim": "runs", "mount": str(tmp_path)}
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "launch.json").write_text("mine")
    cluster = profile(listen="nodes", kube=key)
    result = efface("submit", launcher, "demo", *SHORT, "--cluster", cluster, "--out", tmp_path / "run")
    assert result.error_message.startswith(f"{tmp_path / 'run' / 'launch.json'}: exists already and records no launch")
