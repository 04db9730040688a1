"""How jobs of SLURM are, by the word of SLURM itself."""

from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster

from efface.launch.clusters.launch_record import LaunchRecord, active_records, append_records, launch_states


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
    """The queue forgets a job after minutes; a fake one has forgotten all."""
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
