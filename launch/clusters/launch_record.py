"""`launch.json` in a run folder: which jobs of which launcher were started for it.

A run folder may come from anybody, so a record is data: it holds the job's id and the name of a profile, each of a
strict shape. Addresses, token files and namespaces come from the user's own profile of that name, and never from the
folder. A record of any other shape is shown as unreadable, and nothing is asked about it.
"""

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from efface.errors import StorageError, UserError
from efface.files import write_json
from efface.launch.clusters.cluster_profile import PROFILE_NAME, ClusterProfile, profile_by_name
from efface.launch.launcher import LAUNCHERS, get_launcher
from efface.plain_files import read_plain
from efface.text import shown

if TYPE_CHECKING:
    from efface.launch.launcher import State

FILE_NAME = "launch.json"
MAX_BYTES = 2**20
MAX_RECORDS = 100
"""Only the newest are kept and asked about."""
TERMINAL_STATES = ("done", "failed", "stopped", "gone")
SHOWN_CHARACTERS = 60


class LaunchRecord(NamedTuple):
    """One job of a launcher: the launcher's name, what of the campaign it runs, its id there, the profile's name."""

    launcher: str
    name: str
    id: str
    cluster: str = ""


def check_record_file(folder: Path) -> None:
    """Raises UserError where a file that efface did not write has the name of the one that `append_records` writes."""
    if (folder / FILE_NAME).exists() and not read_records(folder):
        raise UserError(f"{folder / FILE_NAME}: exists already and records no launch; give --out another folder")


def append_records(folder: Path, jobs: list[LaunchRecord]) -> None:
    """Add what has been launched now to what was launched before. Raises StorageError."""
    kept = [job for job in read_records(folder) if job not in jobs]
    newest = [*kept, *jobs][-MAX_RECORDS:]
    write_json(folder / FILE_NAME, {"jobs": [job._asdict() for job in newest]})


def read_records(folder: Path) -> list[LaunchRecord]:
    """What was launched for a run folder, oldest first, without what cannot be read."""
    return [record for record in map(_parse, _entries(folder)) if record]


def launch_states(folder: Path, profile: ClusterProfile | None = None) -> list[tuple[str, str, str]]:
    """What was launched for a run folder: (what, id, state), oldest first; for state see `launcher.State`.

    profile: counts for the records of its name, and the user's profiles by name for all others. A record that
    cannot be read is ("record", the beginning of its text, "unreadable").
    """
    states: list[tuple[str, str, str]] = []
    for entry in _entries(folder):
        record = _parse(entry)
        if record:
            states.append((f"{record.launcher} {record.name}", record.id, state(record, profile)))
        else:
            states.append(("record", shown(str(entry)[:SHOWN_CHARACTERS]), "unreadable"))
    return states


def active_records(folder: Path, profile: ClusterProfile | None = None) -> list[LaunchRecord]:
    """What was launched for a run folder and has not ended yet."""
    return [job for job in read_records(folder) if state(job, profile) not in (*TERMINAL_STATES, "unknown")]


def state(job: LaunchRecord, profile: ClusterProfile | None = None) -> "State":
    """How a job is now, by the word of its launcher."""
    try:
        own = profile if profile and profile.name == job.cluster else profile_by_name(job.cluster)
        return get_launcher(job.launcher).state(job.id, own)
    except UserError:  # a profile of the user's that cannot be read, or a launcher that cannot be imported
        return "unknown"


def _entries(folder: Path) -> list[Any]:
    """The records as JSON, whatever they are; the newest at most."""
    try:
        jobs = json.loads(read_plain(folder / FILE_NAME, MAX_BYTES))["jobs"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError, StorageError):
        return []
    return jobs[-MAX_RECORDS:] if isinstance(jobs, list) else []


def _parse(entry: Any) -> LaunchRecord | None:
    """A record, if it is one that efface could have written; otherwise None."""
    if not isinstance(entry, dict) or entry.keys() != set(LaunchRecord._fields):
        return None
    if not all(isinstance(value, str) for value in entry.values()):
        return None
    record = LaunchRecord(**entry)
    if record.launcher not in LAUNCHERS.names() or not re.fullmatch(r"[a-z][a-z0-9-]{0,39}", record.name):
        return None
    if record.cluster and not re.fullmatch(PROFILE_NAME, record.cluster):
        return None
    try:
        pattern = LAUNCHERS.get(record.launcher).id_pattern
    except UserError:
        return None
    return record if re.fullmatch(pattern, record.id, re.ASCII) else None
