"""Finished tasks as they lie in a run folder, found without a plan."""

from dataclasses import dataclass
from pathlib import Path

from efface.cluster.storage.records import Record, list_files, parse_record, read_json, sha256


@dataclass(frozen=True)
class StoredTask:
    """A finished task: its record, and the folder and beginning of the name that its files share."""

    record: Record
    folder: Path
    stem: str

    def intact(self, name: str) -> Path | None:
        """An output, if every byte is as it was written."""
        path = self.folder / f"{self.stem}.{name}"
        written = self.record.outputs.get(path.name)
        return path if written and sha256(path) == written.sha256 else None


def stored_tasks(folder: Path) -> list[StoredTask]:
    """Those of one folder, by the names of their records."""
    names = sorted(name for name in list_files(folder) if name.endswith(".json"))
    found = ((name, parse_record(read_json(folder, name))) for name in names)
    return [StoredTask(record, folder, name.removesuffix(".json")) for name, record in found if record]


def subfolders(folder: Path) -> list[Path]:
    """Sorted; none where there is no such folder."""
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
