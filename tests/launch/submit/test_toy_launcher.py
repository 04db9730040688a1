"""A launcher of somebody else's: one file in a package of its own, and `efface submit toy campaign` works."""

import shutil
import sys
from pathlib import Path

import pytest
import yaml
from command import RunEfface

from efface.launch.clusters.launch_record import launch_states
from efface.launch.launcher import LAUNCHERS

EXAMPLE = Path(__file__).parents[2] / "examples" / "launcher.py"


@pytest.fixture
def toy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_profiles: Path) -> Path:
    """The package as pip would have installed it, and a profile `nursery` of the user's; the box."""
    site = tmp_path / "site"
    info = site / "toys-1.0.dist-info"
    info.mkdir(parents=True)
    shutil.copy(EXAMPLE, site / "toybox.py")
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: toys\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[efface.launchers]\ntoy = toybox\n")
    monkeypatch.syspath_prepend(str(site))
    monkeypatch.delitem(LAUNCHERS._items, "toy", raising=False)
    monkeypatch.delitem(sys.modules, "toybox", raising=False)
    box = tmp_path / "box"
    box.mkdir()
    user_profiles.mkdir(parents=True)
    (user_profiles / "nursery.yaml").write_text(yaml.safe_dump({"name": "nursery", "toy": {"folder": str(box)}}))
    yield box  # type: ignore[misc]
    LAUNCHERS._items.pop("toy", None)


def test_it_submits_a_campaign_and_status_knows_the_job(
    toy: Path, efface: RunEfface, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "run")
    command = ["submit", "toy", "demo", "--cluster", "nursery", "--out", tmp_path / "run", "--colour", "blue"]
    shown = efface(*command, "--dry-run")
    assert shown.code == 0 and shown.out.startswith("blue: python -m efface run campaign.yaml --out ")
    result = efface(*command)
    assert result.code == 0 and result.out.endswith("submitted: toy campaign toy-0\n"), result
    assert (toy / "toy-0").read_text() == shown.out
    assert launch_states(tmp_path / "run") == [("toy campaign", "toy-0", "running")]
    assert "toy campaign toy-0: running" in efface("status", tmp_path / "run").out


def test_it_is_in_the_help_with_its_options(toy: Path, efface: RunEfface) -> None:
    assert "Put a campaign into the toy box." in efface("submit", "--help").out
    assert "--colour" in efface("submit", "toy", "--help").out


def test_its_section_of_a_profile_is_strict(toy: Path, efface: RunEfface, user_profiles: Path) -> None:
    file = user_profiles / "nursery.yaml"
    file.write_text(yaml.safe_dump({"name": "nursery", "toy": {"foldr": "x"}}))
    result = efface("submit", "toy", "demo", "--cluster", "nursery").error_message
    assert result.endswith("unknown key 'toy.foldr', did you mean 'folder'?") or "key 'toy.folder' is missing" in result
    file.write_text("name: nursery\n")
    result = efface("submit", "toy", "demo", "--cluster", "nursery").error_message
    assert result == "cluster 'nursery': has no section toy, should have at least toy.folder"


def test_a_profile_that_names_an_unknown_launcher_is_answered_with_the_nearest(
    efface: RunEfface, user_profiles: Path
) -> None:
    user_profiles.mkdir(parents=True)
    (user_profiles / "campus.yaml").write_text("name: campus\nslrum: {}\n")
    result = efface("submit", "slurm", "demo", "--cluster", "campus").error_message
    assert result.endswith("unknown key 'slrum', did you mean 'slurm'?")


def test_an_unknown_launcher_is_answered_with_the_nearest(efface: RunEfface) -> None:
    assert efface("submit", "slrum", "demo").error_message == "unknown launcher 'slrum': did you mean 'slurm'?"


def test_one_that_cannot_be_imported_keeps_no_other_from_working(
    toy: Path, efface: RunEfface, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "site" / "toybox.py").write_text("import no_such_module")
    result = efface("submit", "toy", "demo", "--cluster", "nursery").error_message
    assert result.startswith("launcher 'toy' cannot be loaded from toybox: ")
    assert efface("submit", "slurm", "demo", "--dry-run", "--out", tmp_path / "run").code == 0
    assert efface("submit", "--help").code == 0
