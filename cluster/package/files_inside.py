"""The files of a folder that is handed on: what it holds itself, and nothing that a link in it finds elsewhere."""

from pathlib import Path

from efface.errors import UserError
from efface.plain_files import leaves


def files_inside(folder: Path) -> dict[str, Path]:
    """Every file below a local folder, by its path there. Raises UserError for a link that leads out of it.

    A model in the hub's cache is a folder of links to the files of the same repository, which are its own.
    """
    own = folder.resolve()
    root = own.parents[1] if own.parent.name == "snapshots" and (own.parents[1] / "blobs").is_dir() else own
    found = {}
    for path in sorted(own.rglob("*")):
        if path.is_symlink() and leaves(path, root):
            link = folder / path.relative_to(own)
            raise UserError(f"{link}: is a link that leads out of the folder; put the file there, or take the link out")
        if path.is_file():
            found[path.relative_to(own).as_posix()] = path
    return found
