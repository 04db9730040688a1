"""`launch.json`: what was launched for a run folder, and how it is by the word of the launcher itself."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster

from efface.launch.launch_record import LaunchRecord, active_records, append_records, launch_states, read_records


def test_what_is_noted_is_read_again_each_once_and_oldest_first(tmp_path: Path) -> None:
    first, second = LaunchRecord("slurm", "array", "1"), LaunchRecord("ray", "campaign", "efface-x", "/profile.yaml")
    append_records(tmp_path, [first])
    append_records(tmp_path, [second, first])
    assert read_records(tmp_path) == [second, first]


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"jobs": [{"by": "slurm"}]}'])
def test_a_folder_with_nothing_to_read_has_nothing_launched(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "launch.json").write_text(content)
    assert launch_states(tmp_path) == []


def test_slurm_says_how_a_job_is(slurm: SlurmCluster, tmp_path: Path) -> None:
    def sbatch(*options: str) -> str:
        return slurm.run_command("sbatch", "--parsable", "--output=/dev/null", *options)

    jobs = {
        "pending": sbatch("--hold", "--wrap=true"),
        "running": sbatch("--wrap=sleep 30"),
        "done": sbatch("--wrap=true"),
        "failed": sbatch("--wrap=false"),
        "stopped": sbatch("--hold", "--wrap=true"),
        "gone": "999999",
    }
    slurm.run_command("scancel", jobs["stopped"])
    append_records(tmp_path, [LaunchRecord("slurm", state, number) for state, number in jobs.items()])
    expected = [(f"slurm {state}", number, state) for state, number in jobs.items()]
    slurm.wait(lambda: launch_states(tmp_path) == expected, 20, lambda: str(launch_states(tmp_path)))
    assert [job.name for job in active_records(tmp_path)] == ["pending", "running"]


def test_of_an_array_the_parts_that_still_run_count(slurm: SlurmCluster, tmp_path: Path) -> None:
    wrap = "--wrap=[ $SLURM_ARRAY_TASK_ID = 1 ] || sleep 30"
    number = slurm.run_command("sbatch", "--parsable", "--output=/dev/null", "--array=1-2", wrap)
    append_records(tmp_path, [LaunchRecord("slurm", "array", number)])
    query = ("squeue", "--states=all", "--noheader", "--format=%T", f"--jobs={number}")
    slurm.wait(lambda: set(slurm.run_command(*query).split()) == {"COMPLETED", "RUNNING"}, 20)
    assert launch_states(tmp_path) == [("slurm array", number, "running")]


def test_a_job_that_left_the_queue_long_ago_is_known_to_accounting(
    slurm: SlurmCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The queue forgets a job after minutes; a stand-in of it has forgotten all."""
    ends = {"done": "true", "failed": "false"}
    jobs = {
        state: slurm.run_command("sbatch", "--parsable", "--output=/dev/null", f"--wrap={ends[state]}")
        for state in ends
    }
    jobs["stopped"] = slurm.run_command("sbatch", "--parsable", "--output=/dev/null", "--hold", "--wrap=true")
    slurm.run_command("scancel", jobs["stopped"])
    slurm.wait(slurm.empty, 20)
    (tmp_path / "squeue").write_text("#!/bin/sh\necho 'slurm_load_jobs error: Invalid job id specified' >&2; exit 1\n")
    (tmp_path / "squeue").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{slurm.environment['PATH']}")
    append_records(tmp_path, [LaunchRecord("slurm", state, number) for state, number in jobs.items()])
    expected = [(f"slurm {state}", number, state) for state, number in jobs.items()]
    slurm.wait(lambda: launch_states(tmp_path) == expected, 20, lambda: str(launch_states(tmp_path)))


@pytest.mark.parametrize("launcher", ["slurm", "ray", "kube"])
def test_where_nobody_answers_nothing_is_known(
    launcher: str, tmp_path: Path, profile: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    there = profile(ray={"address": "http://127.0.0.1:9"}, listen="nodes", kube={"image": "x", "claim": "x"})
    append_records(tmp_path, [LaunchRecord(launcher, "array", "7", there)])
    assert json.loads((tmp_path / "launch.json").read_text())["jobs"][0]["id"] == "7"
    assert launch_states(tmp_path) == [(f"{launcher} array", "7", "unknown")]
    assert active_records(tmp_path) == []
