"""A wheel of the efface that is running, for Ray to carry to its nodes.

It names no requirements, unlike the wheel that is built for people: Ray installs a wheel with plain `pip install`, and
with requirements it would fetch torch on every node. A node's image has them; efface alone comes from here.
"""

import base64
import csv
import hashlib
import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path

import efface
from efface.errors import UserError

MAX_BYTES = 100 * 2**20
"""A package is some 20 MB, and Ray takes no more than some 500; more than this does not belong in it."""
PACKAGED_SUFFIXES = (
    ".py",
    ".yaml",
    ".json",
    ".csv",
    ".txt",
    ".md",
    ".j2",
    ".css",
    ".js",
    ".safetensors",
    ".jsonl",
    ".npy",
    ".npz",
    "",
)
WHEEL = "Wheel-Version: 1.0\nGenerator: efface\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def write_wheel(folder: Path, package: Path | None = None) -> Path:
    """Write a wheel into `folder`. Its name holds a hash of its files, as Ray knows a wheel by its name alone.

    Raises UserError, with the largest files, where the package is larger than `MAX_BYTES`.
    """
    root = package or Path(efface.__file__).parent
    files = dict(_files(root))
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > MAX_BYTES:
        largest = sorted(sizes, key=lambda name: -sizes[name])[:3]
        summary = ", ".join(f"{name} ({sizes[name] / 2**20:.0f} MiB)" for name in largest)
        raise UserError(
            f"{root}: the package to upload has {sum(sizes.values()) / 2**20:.0f} MiB, should have at most "
            f"{MAX_BYTES / 2**20:.0f}; weights and results belong elsewhere; the largest files are {summary}"
        )
    info = f"efface-{efface.__version__}.dist-info"
    contents = {name: path.read_bytes() for name, path in files.items()}
    contents[f"{info}/METADATA"] = f"Metadata-Version: 2.1\nName: efface\nVersion: {efface.__version__}\n".encode()
    contents[f"{info}/WHEEL"] = WHEEL.encode()
    contents[f"{info}/RECORD"] = _record(contents, f"{info}/RECORD")
    build = int(hashlib.sha256(contents[f"{info}/RECORD"]).hexdigest()[:12], 16)
    wheel = folder / f"efface-{efface.__version__}-{build}-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in sorted(contents):
            archive.writestr(zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0)), contents[name], zipfile.ZIP_DEFLATED)
    return wheel


def _files(root: Path) -> Iterator[tuple[str, Path]]:
    """Every file of the package by its name in the wheel, links between packages followed."""
    for folder, folders, names in os.walk(root, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith((".", "__pycache__")))
        for name in sorted(names):
            path = Path(folder) / name
            if not name.startswith(".") and path.suffix in PACKAGED_SUFFIXES:
                yield f"efface/{path.relative_to(root)}", path


def _record(contents: dict[str, bytes], own: str) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    for name in sorted(contents):
        digest = base64.urlsafe_b64encode(hashlib.sha256(contents[name]).digest()).rstrip(b"=").decode()
        writer.writerow((name, f"sha256={digest}", len(contents[name])))
    writer.writerow((own, "", ""))
    return text.getvalue().encode()
