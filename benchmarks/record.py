"""Results of benchmarks as files: what was measured, and on what, when, and with which code."""

import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from efface.files import write_json

RESULTS = Path(__file__).parent / "results"
PACKAGES = ("efface", "torch", "ray", "pydantic")


def write_result(name: str, measured: dict[str, Any], **facts: Any) -> Path:
    """`benchmarks/results/NAME.json`: `measured`, and beside it the device, the versions, the commit and the date."""
    path = RESULTS / f"{name}.json"
    write_json(path, {"benchmark": name, **conditions(), **facts, "measured": measured})
    return path


def conditions() -> dict[str, Any]:
    """The device, the versions, the commit and the date."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "commit": _commit(),
        "device": _cpu(),
        "python": platform.python_version(),
        **{package: version(package) for package in PACKAGES},
    }


def _commit() -> str:
    """The commit's hash, with a + where files other than results differ from it."""
    git = ["git", "-C", str(Path(__file__).parent)]
    commit = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], capture_output=True, text=True).stdout.strip()
    elsewhere = [*git, "status", "--porcelain", "-uno", "--", ":/", ":!results"]
    changed = subprocess.run(elsewhere, capture_output=True, text=True).stdout.strip()
    return (commit or "unknown") + ("+" if changed else "")


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()
