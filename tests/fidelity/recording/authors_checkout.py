"""What the recordings share: a clone of the authors' repository, the tiny model on which it runs, and the file.

They run outside of the test suite, with the packages that the authors' code needs, on a CPU:

    python -m tests.fidelity.recording.esd CLONE tests/fidelity/esd.safetensors

CLONE is a git clone of the repository that docs/fidelity.md names. Of the authors' code only names are here.
"""

import argparse
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tests.conftest import write_byte_tokenizer
from tests.fidelity.tiny_model import write_model

Recorded = tuple[dict[str, Tensor], dict[str, str]]
"""Tensors, and what is noted beside them."""


class Clone:
    """A git clone, read at a revision without checking it out."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def source(self, path: str, revision: str = "HEAD") -> str:
        return self._git("show", f"{revision}:{path}")

    def commit(self, revision: str = "HEAD") -> str:
        return self._git("rev-parse", revision).strip()

    def write(self, under: str, folder: Path) -> None:
        """The Python and YAML files of a folder of it, below `folder`."""
        for path in self._git("ls-tree", "-r", "--name-only", "HEAD", under).splitlines():
            if path.endswith((".py", ".yaml")):
                (folder / path).parent.mkdir(parents=True, exist_ok=True)
                (folder / path).write_text(self.source(path))

    def _git(self, *arguments: str) -> str:
        command = ["git", "-C", str(self.folder), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def empty_module(name: str, **members: Any) -> None:
    """In place of a package that is only imported."""
    module = types.ModuleType(name)
    module.__dict__.update(members)
    sys.modules[name] = module


def run_script(code: str, name: str, arguments: list[str], **given: Any) -> dict[str, Any]:
    """A script from its command line, with names that are there before; what it has defined at its end."""
    sys.argv = [name, *arguments]
    defined = {"__name__": "__main__", **given}
    exec(compile(code, name, "exec"), defined)
    torch.set_grad_enabled(True)  # scripts that solve switch it off
    return defined


def replaced(code: str, changes: Mapping[str, str]) -> str:
    """Settings that are written into a script; each has to be there."""
    for old, new in changes.items():
        assert old in code, old
        code = code.replace(old, new)
    return code


def record(make: Callable[[Clone, Path, Path], Recorded]) -> None:
    """make: from a clone, the model's folder and an empty folder to what is to be kept."""
    parser = argparse.ArgumentParser()
    parser.add_argument("clone", type=Path, help="of the authors' repository")
    parser.add_argument("out", type=Path, help="the file to write")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model", write_byte_tokenizer)
        work = Path(folder) / "work"
        work.mkdir()
        tensors, facts = make(Clone(options.clone), model, work)
    kept = {name: value.contiguous() for name, value in tensors.items()}
    safetensors.torch.save_file(kept, options.out, metadata=facts)
