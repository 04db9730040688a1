"""The wheel that Ray carries to its nodes."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from efface.errors import UserError
from efface.launch.clusters import wheel
from efface.launch.clusters.wheel import write_wheel


@pytest.fixture
def package(tmp_path: Path) -> Path:
    root = tmp_path / "efface"
    (root / "part").mkdir(parents=True)
    (root / "__init__.py").write_text("")
    (root / "part" / "code.py").write_text("x = 1\n")
    (root / "part" / "__pycache__").mkdir()
    (root / "part" / "__pycache__" / "code.pyc").write_text("")
    (root / "part" / "weights.ckpt").write_text("")
    return root


def test_pip_installs_it_and_fetches_nothing(tmp_path: Path) -> None:
    made = write_wheel(tmp_path)
    target = tmp_path / "target"
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", f"--target={target}", str(made)]
    subprocess.run(install, check=True)
    code = (
        "import efface, efface.launch.submit.slurm as s; print(efface.__file__, (s.TEMPLATES / 'array.sh.j2').exists())"
    )
    output = subprocess.run([sys.executable, "-c", code], cwd=target, capture_output=True, text=True, check=True).stdout
    assert output == f"{target}/efface/__init__.py True\n"
    for needed in (
        "configs/campaigns/demo.yaml",
        "miniature/judge/model.safetensors",
        "launch/submit/templates/rayjob.yaml.j2",
        *(f"eval/report/templates/report.{suffix}" for suffix in ("html.j2", "css", "js")),
    ):
        assert (target / "efface" / needed).is_file()


def test_it_holds_code_and_data_alone(package: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(write_wheel(tmp_path, package)).namelist()
    assert [name for name in names if "dist-info" not in name] == ["efface/__init__.py", "efface/part/code.py"]


def test_its_name_changes_with_its_files(package: Path, tmp_path: Path) -> None:
    """Ray takes a wheel of the same name for the same wheel."""
    first, same = write_wheel(tmp_path, package), write_wheel(tmp_path, package)
    (package / "part" / "code.py").write_text("x = 2\n")
    assert first == same != write_wheel(tmp_path, package)


def test_what_strayed_into_the_package_is_not_uploaded(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wheel, "MAX_BYTES", 3 * 2**20)
    (package / "part" / "big.safetensors").write_bytes(bytes(4 * 2**20))
    with pytest.raises(UserError) as error:
        write_wheel(tmp_path, package)
    assert "has 4 MiB, should have at most 3" in str(error.value)
    assert "efface/part/big.safetensors (4 MiB)" in str(error.value)
    assert not list(tmp_path.glob("*.whl"))
