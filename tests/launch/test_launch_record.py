"""`launch.json` in a run folder, which may be anybody's: ids and names of the user's own profiles, never obeyed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import RunEfface

from efface.launch.clusters import launch_record
from efface.launch.clusters.cluster_profile import read_profile
from efface.launch.clusters.launch_record import (
    LaunchRecord,
    active_records,
    append_records,
    launch_states,
    read_records,
)

IDS = {"slurm": "7", "ray": "efface-demo-0123456789ab", "kube": "efface-demo-0123456789ab"}


def write_records(folder: Path, *records: Any) -> None:
    (folder / "launch.json").write_text(json.dumps({"jobs": list(records)}))


def record(launcher: str = "slurm", **changes: Any) -> dict[str, Any]:
    return {"launcher": launcher, "name": "campaign", "id": IDS[launcher], "cluster": "mine", **changes}


@pytest.fixture
def commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """Commands of clusters that write down how they were called, and the lines that they have written."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("kubectl", "squeue", "sacct", "scancel", "sbatch"):
        (folder / name).write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\n')
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")
    calls = folder / "calls"
    return lambda: calls.read_text().splitlines() if calls.exists() else []


@pytest.fixture
def own_profile(user_profiles: Path) -> Path:
    """A profile `mine` in the user's own folder."""
    user_profiles.mkdir(parents=True)
    path = user_profiles / "mine.yaml"
    path.write_text(yaml.safe_dump({"name": "mine", "listen": "nodes", "kube": {"image": "x", "claim": "x"}}))
    return path


def test_what_is_written_is_read_again_each_once_and_oldest_first(tmp_path: Path) -> None:
    first, second = LaunchRecord("slurm", "array", "1"), LaunchRecord("ray", "campaign", IDS["ray"], "mine")
    append_records(tmp_path, [first])
    append_records(tmp_path, [second, first])
    assert read_records(tmp_path) == [second, first]


@pytest.mark.parametrize("content", [None, "", "{}", "[]", '{"jobs": 3}', "[" * 100_000, "\xff"])
def test_a_folder_with_nothing_to_read_has_nothing_launched(content: str | None, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "launch.json").write_text(content, encoding="latin-1")
    assert launch_states(tmp_path) == []


UNREADABLE: dict[str, Any] = {
    "a number": 7,
    "no fields": {},
    "a field more": {**record(), "address": "http://attacker.example"},
    "an unknown launcher": {**record(), "launcher": "ssh"},
    "an id that is an option": record("kube", id="--kubeconfig=/tmp/theirs"),
    "an id with an option after it": record("kube", id=IDS["kube"] + " --kubeconfig=x"),
    "an id with a line after it": record("slurm", id="7\n"),
    "several ids": record("slurm", id="7,8"),
    "all ids": record("slurm", id=""),
    "an id in other digits": record("slurm", id="٧"),
    "an id of a number": record("slurm", id=7),
    "a path of an API": record("kube", id="../../secrets/x"),
    "a name with an escape": record(name="\x1b[2J"),
    "a profile by its path": record("ray", cluster="/tmp/theirs.yaml"),
    "a profile beside it": record("ray", cluster="./theirs"),
    "a profile above it": record("ray", cluster=".."),
}


@pytest.mark.parametrize("what", UNREADABLE)
def test_a_record_of_another_shape_is_unreadable_and_nothing_is_run(
    what: str, tmp_path: Path, own_profile: Path, commands_run: Callable[[], list[str]]
) -> None:
    write_records(tmp_path, UNREADABLE[what])
    ((name, text, state),) = launch_states(tmp_path)
    assert (name, state) == ("record", "unreadable") and text.isprintable() and len(text) < 200
    assert read_records(tmp_path) == active_records(tmp_path) == [] and commands_run() == []


def test_a_record_of_the_right_shape_is_looked_up(
    tmp_path: Path, own_profile: Path, commands_run: Callable[[], list[str]]
) -> None:
    """So that the test above would notice if nothing were ever run."""
    write_records(tmp_path, record("kube"), record("slurm"))
    assert [state for *_, state in launch_states(tmp_path)] == ["gone", "gone"]
    assert [call.split()[0] for call in commands_run()] == ["kubectl", "squeue", "sacct"]


@pytest.mark.parametrize("command", ["status", "logs", "cancel", "retry", "gc"])
def test_no_command_on_a_strangers_folder_runs_what_its_record_says(
    command: str,
    efface: RunEfface,
    finished: Path,
    tmp_path: Path,
    own_profile: Path,
    commands_run: Callable[[], list[str]],
) -> None:
    import shutil

    shutil.copytree(finished, tmp_path / "run")
    write_records(tmp_path / "run", *UNREADABLE.values())
    result = efface(command, tmp_path / "run")
    assert "Traceback" not in result.err and commands_run() == []
    assert "\x1b" not in result.out + result.err
    if command == "status":
        assert result.out.count(": unreadable\n") == len(UNREADABLE)


def test_a_profile_is_never_one_of_the_strangers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, commands_run: Callable[[], list[str]]
) -> None:
    for name in ("mine", "mine.yaml"):
        (tmp_path / name).write_text("name: mine\nlisten: nodes\nkube: {image: x, claim: x}\n")
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path, record("kube"))
    assert launch_states(tmp_path) == [("kube campaign", IDS["kube"], "unknown")] and commands_run() == []


def test_the_users_token_goes_to_no_address_of_a_strangers_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by a profile there, nor by variables of Ray's own."""
    addresses: list[str] = []
    monkeypatch.setattr("requests.get", lambda address, **_: addresses.append(address))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "secret")
    theirs = tmp_path / "theirs.yaml"
    theirs.write_text("name: theirs\nray: {address: 'http://attacker.example'}\n")
    monkeypatch.chdir(tmp_path)
    write_records(tmp_path, *(record("ray", cluster=name) for name in (str(theirs), "theirs", "theirs.yaml")))
    launch_states(tmp_path)
    assert addresses == []


def test_a_folder_with_many_records_has_the_newest_looked_up(
    tmp_path: Path, commands_run: Callable[[], list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch_record, "MAX_RECORDS", 3)
    write_records(tmp_path, *(record("slurm", id=str(number)) for number in range(1, 10)))
    assert [id for _, id, _ in launch_states(tmp_path)] == ["7", "8", "9"]
    append_records(tmp_path, [LaunchRecord("slurm", "array", "10")])
    assert [job.id for job in read_records(tmp_path)] == ["8", "9", "10"]


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    write_records(tmp_path, record(name="x" * 2 * launch_record.MAX_BYTES))
    assert launch_states(tmp_path) == []


@pytest.mark.parametrize("launcher", IDS)
def test_where_nobody_answers_nothing_is_known(
    launcher: str, tmp_path: Path, profile: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    path = profile(ray={"address": "http://127.0.0.1:9"}, listen="nodes", kube={"image": "x", "claim": "x"})
    own = read_profile(path)
    append_records(tmp_path, [LaunchRecord(launcher, "array", IDS[launcher], own.name)])
    assert launch_states(tmp_path, own) == [(f"{launcher} array", IDS[launcher], "unknown")]
    assert active_records(tmp_path, own) == []


def test_the_ids_that_efface_makes_are_of_the_shape_it_reads(efface: RunEfface, tmp_path: Path) -> None:
    import re

    from efface.launch.clusters.launch_spec import read_launch_spec
    from efface.launch.launcher import get_launcher
    from efface.launch.submit.kube import _name

    for name in ("demo", "A", "a" * 64, "x.y_z-", "-".join("ab" * 20)[:64], "0" * 30):
        spec = read_launch_spec("demo", [f"name='{name}'"], str(tmp_path / "run"))
        assert re.fullmatch(get_launcher("ray").id_pattern, spec.id) and spec.campaign.name == name
        assert re.fullmatch(get_launcher("ray").id_pattern, f"{spec.id}-12")
        assert re.fullmatch(get_launcher("kube").id_pattern, _name(spec))
