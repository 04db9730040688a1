"""Concept sets and prompt sets: shipped in `concepts/data/` and found by name, or files of the user's own."""

from pathlib import Path

from efface.errors import UserError, did_you_mean
from efface.files import local_path

DATA = Path(__file__).parent / "data"


def data_names(suffix: str) -> list[str]:
    """Names of the shipped files with `suffix` (".yaml": concept sets, ".csv": prompt sets), sorted."""
    return sorted(path.stem for path in DATA.glob(f"*{suffix}"))


def find_data(what: str, name_or_path: str | Path, suffix: str) -> Path:
    """The file meant by `name_or_path`: a path that exists, or the name of a shipped file.

    Raises UserError that says which `what` ("concept set", "prompt set") is unknown, and what was meant.
    """
    try:
        if local_path(name_or_path).is_file():
            return local_path(name_or_path)
    except OSError:
        pass  # a name too long for the file system is no file, and no shipped name either
    if str(name_or_path) in data_names(suffix):
        return DATA / f"{name_or_path}{suffix}"
    if Path(name_or_path).suffix == suffix:
        raise UserError(f"{name_or_path}: no such file, should be a {what} ({suffix})")
    raise UserError(f"unknown {what} '{name_or_path}': {did_you_mean(str(name_or_path), data_names(suffix))}")
