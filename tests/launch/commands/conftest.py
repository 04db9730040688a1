"""What the tests of several commands share: a package that was written once."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def package(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Not to be changed; `copied` may be."""
    from efface.launch.commands.package import PackageOptions, run

    out = tmp_path_factory.mktemp("package") / "handed-in"
    run(PackageOptions(run=str(finished), out=out, licence="CreativeML Open RAIL-M"))
    return out


@pytest.fixture
def copied(package: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(package, tmp_path / "copy"))
