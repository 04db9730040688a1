"""The package works from a wheel: nothing of the checkout is needed but what is packaged."""

import csv
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
from environments import TORCH, environment
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
SHORT = [
    "--set=concepts.targets=[cat]",
    "--set=methods=[{method: uce, preset: miniature}]",
    "--set=evaluation.images_per_prompt=1",
    "--set=evaluation.prompts_per_concept={forget: 1, indirect: 1, adversarial: 1, adjacent: 1, retain: 1}",
]


@pytest.fixture(autouse=True)
def _the_wheel_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """No other efface is found by what runs in an environment of its own."""
    monkeypatch.delenv("PYTHONPATH", raising=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-build-isolation", "--quiet", f"--wheel-dir={folder}"]
    build = folder / "checkout"
    # Built from a copy, as setuptools leaves its own folders where it builds.
    subprocess.run(["git", "-C", str(ROOT), "checkout-index", "--all", f"--prefix={build}/"], check=True)
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(build)], check=True)
    return next(folder.glob("efface-*.whl"))


def test_the_wheel_holds_every_package_and_its_data_and_no_tests(wheel: Path) -> None:
    names = subprocess.run(
        [sys.executable, "-m", "zipfile", "--list", str(wheel)], check=True, capture_output=True, text=True
    ).stdout
    for needed in (
        "efface/launch/cli.py",
        "efface/train/methods/esd.py",
        "efface/configs/campaigns/demo.yaml",
        "efface/configs/bases/sd-v1-4/tokenizer/merges.txt",
        "efface/concepts/data/genmu-2025.csv",
        "efface/miniature/model/unet/diffusion_pytorch_model.safetensors",
        "efface/miniature/judge/model.safetensors",
    ):
        assert needed in names
    assert "tests/" not in names
    assert wheel.stat().st_size < 30e6


def test_a_campaign_runs_from_the_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env")
    # The dependencies are borrowed from this environment, without its editable install of the checkout.
    site = Path(subprocess.run([python, "-c", "import site; print(site.getsitepackages()[0])"], **_TEXT).stdout.strip())
    (site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", f"--target={site}", str(wheel)], check=True
    )
    where = subprocess.run([python, "-c", "import efface; print(efface.__file__)"], cwd=tmp_path, **_TEXT).stdout
    assert Path(where.strip()).is_relative_to(site)
    _run_demo(python, tmp_path, "--workers=0")


def test_the_versions_efface_is_tested_with_are_permitted(wheel: Path) -> None:
    lines = [line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line]
    tested = {canonicalize_name(name): version for name, version in lines}
    for requirement in requirements(wheel):
        assert requirement.specifier.contains(tested[canonicalize_name(requirement.name)]), requirement


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("diffusers", "0.36.0"),  # to 0.39: no base can be loaded, as from_pretrained does not take `dtype`
        ("diffusers", "0.39.0"),
        ("transformers", "4.56.2"),  # to 5.5: a text encoder with the names of 5.6 comes up at random
        ("transformers", "5.5.0"),
    ],
)
def test_releases_that_are_known_to_fail_are_not_permitted(name: str, version: str, wheel: Path) -> None:
    (bound,) = (each for each in requirements(wheel) if each.name == name)
    assert not bound.specifier.contains(version)


@pytest.mark.slow
def test_a_campaign_runs_on_ray_in_an_empty_environment(wheel: Path, tmp_path: Path) -> None:
    python = environment(tmp_path / "env", f"--constraint={ROOT / 'constraints.txt'}", str(wheel))
    _run_demo(python, tmp_path)


@pytest.mark.slow
def test_a_campaign_runs_on_ray_with_the_lowest_versions_that_are_permitted(wheel: Path, tmp_path: Path) -> None:
    bounds = [each for each in requirements(wheel) if each.name != "torch"]
    lowest = [f"{bound.name}{bound.specifier}".replace(">=", "==") for bound in bounds]
    python = environment(tmp_path / "env", TORCH, *lowest, str(wheel))
    subprocess.run([python, "-m", "pip", "check"], **_TEXT)
    base, _ = _run_demo(python, tmp_path)
    # The miniature makes images of its prompts, which it does not where a part of it comes out random.
    assert (base["forget"], base["adjacent"], base["retain"]) == ("0.0", "1.0", "1.0")


def requirements(wheel: Path) -> list[Requirement]:
    """What the package itself needs, without its extras."""
    with zipfile.ZipFile(wheel) as file:
        (name,) = (name for name in file.namelist() if name.endswith(".dist-info/METADATA"))
        lines = file.read(name).decode().splitlines()
    found = [Requirement(line.partition(":")[2]) for line in lines if line.startswith("Requires-Dist:")]
    return [requirement for requirement in found if requirement.marker is None]


_TEXT = {"check": True, "capture_output": True, "text": True}


def _run_demo(python: str, folder: Path, *options: str) -> list[dict[str, str]]:
    """The rows of the leaderboard, the base and UCE."""
    command = [python, "-m", "efface", "run", "demo", "--out=run", *SHORT, *options]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    with (folder / "run" / "leaderboard.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["base", "uce"]
    return rows
