"""Opening a run folder: it carries a sign with the version of its format, and holds one run."""

from collections.abc import Iterable
from pathlib import Path

from efface import __version__
from efface.cluster.storage.lease import active_driver
from efface.cluster.storage.paths import RunPaths
from efface.cluster.storage.records import list_files, read_json
from efface.errors import UserError
from efface.files import is_remote, storage_error, write_atomic, write_json
from efface.plain_files import read_plain

FORMAT = 2
"""Of what this version writes. 1 had no sign."""

CONFIG_FILES = ("campaign.yaml", "evaluation.yaml", "search.yaml")
"""What a folder of format 1 is known by."""

RESULTS = (
    *("table.parquet", "scores.json", "leaderboard.csv", "sheets", "stages"),
    *("report.html", "report.csv", "report.md", "report-tables.csv"),
    *("trials.csv", "pareto.csv", "pareto.json", "study.jsonl", "stop.json"),
)
"""What a run, or a search, writes under a name that anybody might choose."""

TASK_FOLDERS = ("calibration", "calibration/parts", "prompts", "jobs", "evaluations")


def open_folder(paths: RunPaths, config_file: Path, text: str, mutable_keys: Iterable[str]) -> None:
    """See `RunFolder.open`."""
    root = paths.root
    try:
        if root.exists() and not root.is_dir():
            raise UserError(f"{root}: is a file, should be a folder for the run")
        if is_remote(root) and str(root).startswith("memory:"):
            raise UserError(f"{root}: ends with this process; give --out a path or the URL of an object store")
        _check_nothing_is_lost(paths, config_file)
        before = read_plain(config_file).decode(errors="replace") if config_file.is_file() else text
    except OSError as error:
        raise storage_error(config_file, "read", error) from None
    old, new = (_drop_keys(mutable_keys, whole) for whole in (before, text))
    if old != new and not _is_untouched(root):
        difference = _difference(old, new)
        raise UserError(f"{config_file}: the folder holds another run ({difference}); give --out another folder")
    if read_json(root, paths.sign.name) is None:
        write_json(paths.sign, {"format": FORMAT, "efface": __version__})
    write_atomic(config_file, text.encode())


def must_exist(paths: RunPaths) -> None:
    """See `RunFolder.must_exist`."""
    if not check_format(paths):
        raise UserError(f"{paths.root}: is not a run folder, it holds no {paths.sign.name}")
    if paths.campaign.is_file() or paths.evaluation.is_file():
        return
    if (paths.root / "search.yaml").is_file():
        raise UserError(
            f"{paths.root}: is the folder of a search, which `efface search` goes on with and `efface report` shows"
        )
    names = f"{paths.campaign.name} and no {paths.evaluation.name}"
    raise UserError(f"{paths.root}: says nowhere what was requested in it, it holds no {names}")


def check_format(paths: RunPaths) -> bool:
    """Whether the folder has the sign of a run folder. Raises UserError where that is of another format."""
    sign = read_json(paths.root, paths.sign.name)
    if sign is None:
        has_config = any((paths.root / name).is_file() for name in CONFIG_FILES)
        if has_config and any((paths.root / folder).is_dir() for folder in ("leases", *TASK_FOLDERS)):
            raise _other_format(paths, 1)
        return False
    if sign.get("format") != FORMAT:
        raise _other_format(paths, sign.get("format"))
    return True


def _check_nothing_is_lost(paths: RunPaths, config_file: Path) -> None:
    """Raises UserError where the run would replace files that no run wrote, or the results of another kind of run."""
    if not check_format(paths):
        found = next((path for name in (config_file.name, *RESULTS) if (path := paths.root / name).exists()), None)
        if found:
            raise UserError(f"{found}: was not written by a run; give --out another folder")
    other = next((name for name in CONFIG_FILES if name != config_file.name and (paths.root / name).is_file()), None)
    if other:
        raise UserError(f"{paths.root / other}: the folder holds another run; give --out another folder")


def _other_format(paths: RunPaths, found: object) -> UserError:
    return UserError(
        f"{paths.root}: is a run folder of format {found}, and this efface ({__version__}) reads and writes format "
        f"{FORMAT}; finish the run with the efface that started it, or start it again in another folder"
    )


def _is_untouched(root: Path) -> bool:
    """Whether none of what was requested here has been done, and nobody is working on it."""
    return not any(list_files(root / folder) for folder in TASK_FOLDERS) and active_driver(root) is None


def _drop_keys(keys: Iterable[str], text: str) -> str:
    """The text of a YAML mapping without those of its keys: a key's lines are its own and the indented ones below."""
    kept, leaving = [], False
    for line in text.splitlines():
        if not line.startswith((" ", "-")):
            leaving = line.partition(":")[0] in keys
        if not leaving:
            kept.append(line)
    return "\n".join(kept)


def _difference(before: str, now: str) -> str:
    """The lines that two YAML texts do not share, at most three of each."""
    old, new = before.splitlines(), now.splitlines()
    gone = [line.strip() for line in old if line not in new][:3]
    come = [line.strip() for line in new if line not in old][:3]
    return f"there: {', '.join(gone) or 'nothing more'}; requested now: {', '.join(come) or 'nothing more'}"
