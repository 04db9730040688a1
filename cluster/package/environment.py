"""What a package was made with: the installed packages as pip reads them, and where efface itself comes from."""

import importlib.metadata
import json
import platform
import re
import subprocess
from collections.abc import Iterable, Iterator
from importlib.metadata import Distribution
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from packaging.utils import canonicalize_name
from packaging.version import Version

import efface

PYTORCH_INDEX = "https://download.pytorch.org/whl"
OF_PYTORCH = ("torch", "torchvision", "torchaudio")
BUILD = re.compile(r"cpu|xpu|cu\d+|rocm[\d.]+")
"""How PyTorch's own index calls its builds, which are the local versions of its packages."""


def requirements(installed: Iterable[Distribution]) -> Iterator[str]:
    """The lines of a requirements file that makes the environment again, as far as indexes have it.

    A build of PyTorch's own index comes with the line that names the index; the local version of any other package,
    which no index knows, is left out. What was installed from elsewhere is named in a comment, or by its commit.
    """
    yield f"# Python {platform.python_version()}, {platform.system()} {platform.machine()}"
    indexes: dict[str, None] = {}
    lines: dict[str, str] = {}
    for one in installed:
        name, version = one.metadata["Name"], Version(one.version)
        key, origin = canonicalize_name(name or ""), _origin(one)
        if not name or key == "efface" or key in lines:  # of two of a name, Python imports the first
            continue
        if origin is not None:
            commit = _commit(origin)
            lines[key] = f"{name} @ {commit}" if commit else f"# {name} {version.public}: {_described(origin)}"
        elif key in OF_PYTORCH and version.local and BUILD.fullmatch(version.local):
            indexes[f"--extra-index-url {PYTORCH_INDEX}/{version.local}"] = None
            lines[key] = f"{name}=={version}"
        else:
            lines[key] = f"{name}=={version.public}"
    yield from indexes
    yield from (lines[key] for key in sorted(lines))


def environment() -> list[str]:
    """The lines of `environment.txt`. efface is on no package index: where it comes from stands apart."""
    return list(requirements(importlib.metadata.distributions()))


def source_of_efface() -> str:
    """Version, and the commit or the wheel of the code that runs, as far as that is known."""
    try:
        installed = importlib.metadata.distribution("efface")
    except importlib.metadata.PackageNotFoundError:
        installed = None
    return source_of_code(Path(efface.__file__).resolve().parent, installed)


def source_of_code(package: Path, installed: Distribution | None) -> str:
    """Version, and the commit of the checkout that the folder `package` lies in, or where pip had it from.

    What is `installed` may be another copy than the one that runs, and then says nothing about it.
    """
    commit = _commit_of_checkout(package.parent)
    if commit is None and installed and Path(str(installed.locate_file(package.name))).resolve() == package:
        origin = _origin(installed) or {}
        commit = _commit(origin)
        described = f"commit {commit}" if commit else _described(origin)
    else:
        described = f"commit {commit}" if commit else "commit unknown"
    return f"efface {efface.__version__}{f', {described}' if described else ''}"


def _origin(one: Distribution) -> dict[str, Any] | None:
    """Where a package was installed from that is from no index (PEP 610)."""
    try:
        found = json.loads(one.read_text("direct_url.json") or "null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _commit(origin: dict[str, Any]) -> str | None:
    """As pip takes it."""
    of_vcs = origin.get("vcs_info", {})
    commit = of_vcs.get("commit_id")
    return f"{of_vcs.get('vcs', 'git')}+{_without_secret(origin['url'])}@{commit}" if commit else None


def _described(origin: dict[str, Any]) -> str:
    """In words; no path of this machine is given away."""
    archive = origin.get("archive_info")
    if archive is None:
        return "installed from a folder" if origin else ""
    digest = archive.get("hashes", {}).get("sha256") or str(archive.get("hash", "")).removeprefix("sha256=")
    name = urlsplit(origin.get("url", "")).path.rpartition("/")[2]
    return f"installed from {name}{f' (SHA-256 {digest})' if digest else ''}"


def _without_secret(url: str) -> str:
    """The address without a user's name and password."""
    parts = urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl() if parts.scheme != "ssh" else url


def _commit_of_checkout(folder: Path) -> str | None:
    """Of the folder, where that is a checkout of git, and whether files differ from it."""
    if not (folder / ".git").exists():
        return None
    try:
        git = ["git", "-C", str(folder)]
        commit = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode != 0
    except (OSError, subprocess.CalledProcessError):
        return None
    return f"{commit}{' with changes' if changed else ''}"
