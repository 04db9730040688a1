"""What the tests of the command line share: the tiny world, a finished campaign in it, and `efface` itself."""

import sys
from pathlib import Path

import pytest
import yaml
from command import CommandResult, RunEfface
from tiny_campaign import campaign_dict, campaign_file, campaign_inputs, write_yaml

from efface.launch.cli import main

__all__ = ["campaign_file", "campaign_inputs"]


@pytest.fixture(autouse=True)
def user_profiles(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the user's own cluster profiles: not that of who runs the tests."""
    config = tmp_path_factory.mktemp("config")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
    return config / "efface" / "clusters"


@pytest.fixture
def efface(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunEfface:
    """A function that runs `efface` with these arguments in this process."""

    def run(*arguments: object) -> CommandResult:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["efface", *map(str, arguments)])
        try:
            main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        else:
            code = 0
        printed = capsys.readouterr()
        return CommandResult(code, printed.out, printed.err)

    return run


@pytest.fixture
def base(campaign_inputs: Path) -> str:
    """The tiny base."""
    return str(campaign_inputs / "base.yaml")


@pytest.fixture(scope="session")
def finished(campaign_inputs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run folder of a finished campaign of one method. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    campaign = write_yaml(folder / "campaign.yaml", campaign_dict(campaign_inputs, methods=[{"method": "uce"}]))
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as end:
        patch.setattr(sys, "argv", ["efface", "run", campaign, "--out", str(folder / "run"), "--workers", "0"])
        main()
    assert not end.value.code
    return folder / "run"


@pytest.fixture
def profile(tmp_path: Path) -> "ProfileWriter":
    return ProfileWriter(tmp_path)


class ProfileWriter:
    """`profile(slurm={…})` writes a cluster profile and gives its path."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, **sections: object) -> str:
        path = self.folder / "cluster.yaml"
        path.write_text(yaml.safe_dump({"name": "test", **sections}))
        return str(path)
