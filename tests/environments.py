"""Environments of their own, with other versions of packages than the tests run in."""

import subprocess
import venv
from pathlib import Path

import pytest
import torch

TORCH = f"torch=={torch.__version__.partition('+')[0]}"
"""The torch of the tests: the one package that is too large to be fetched in several versions."""


def environment(folder: Path, *wanted: str) -> str:
    """The interpreter of a new environment in `folder` where pip has installed `wanted`, if anything.

    Skips the test where pip reaches no index that has any of it.
    """
    venv.create(folder, with_pip=bool(wanted))
    python = str(folder / "bin" / "python")
    if wanted:
        command = [python, "-m", "pip", "install", "--quiet", *wanted]
        done = subprocess.run(command, capture_output=True, text=True)
        if "from versions: none" in done.stderr:
            pytest.skip(f"pip reaches no index of packages: {done.stderr.strip().splitlines()[-1]}")
        assert done.returncode == 0, done.stdout + done.stderr
    return python
