"""A checkpoint of the older kind is a pickle: its tensors are read, nothing in it is run, and no size is believed."""

import contextlib
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from efface.errors import UserError
from efface.models.files.weights_file import read_checkpoint


def ckpt(folder: Path, content: object, **options: Any) -> Path:
    torch.save(content, folder / "model.ckpt", **options)
    return folder / "model.ckpt"


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "left", [np.float64(0.5), np.int64(470_000), np.bool_(True), np.str_("epoch"), np.arange(3.0), [np.float32(1)]]
)
def test_a_numpy_number_beside_the_tensors_does_not_matter(left: object, zipped: bool, tmp_path: Path) -> None:
    content = {"state_dict": {"x": torch.ones(2)}, "best_model_score": left}
    file = ckpt(tmp_path, content, _use_new_zipfile_serialization=zipped)
    assert list(read_checkpoint(file)) == ["x"]


def test_a_numpy_number_by_its_older_name_does_not_matter(tmp_path: Path) -> None:
    """numpy 1 called `numpy._core` `numpy.core`; the pickle is that of torch's older format."""
    file = ckpt(tmp_path, {"x": torch.ones(2), "step": np.float64(1)}, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    assert b"numpy._core.multiarray" in data
    file.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    assert list(read_checkpoint(file)) == ["x"]


def test_numpy_itself_is_not_called(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = ckpt(tmp_path, {"x": torch.ones(2), "step": np.float64(1)})
    monkeypatch.setattr("numpy._core.multiarray.scalar", None)
    monkeypatch.setattr("numpy.dtype", None)
    assert list(read_checkpoint(file)) == ["x"]


class Call:
    """Pickled as a call of any function there is."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize(
    "function", [np.load, np.fromfile, np.frombuffer, eval, os.system, getattr], ids=lambda function: function.__name__
)
def test_other_functions_are_refused_and_not_run(function: object, tmp_path: Path) -> None:
    file = ckpt(tmp_path, {"x": torch.ones(2), "y": Call(function, "1")})
    with pytest.raises(UserError, match="holds more than tensors, which could run code when read"):
        read_checkpoint(file)


def test_a_dictionary_that_holds_itself_is_refused(tmp_path: Path) -> None:
    content: dict[str, object] = {"x": torch.ones(2)}
    content["state_dict"] = content
    assert list(read_checkpoint(ckpt(tmp_path, content))) == ["x"]


def test_lists_nested_without_end_are_passed_over(tmp_path: Path) -> None:
    file = ckpt(tmp_path, {"x": torch.ones(2), "deep": 0}, _use_new_zipfile_serialization=False)
    data = file.read_bytes()
    assert data.count(b"K\x00") >= 1
    file.write_bytes(data.replace(b"K\x00", b"]" * 100_000 + b"K\x00" + b"a" * 100_000, 1))
    with contextlib.suppress(UserError):
        assert list(read_checkpoint(file)) == ["x"]


def test_tensors_that_are_not_all_there_are_left_out(tmp_path: Path) -> None:
    """A million million numbers in a file of a kilobyte: sparse, or on no device at all."""
    indices = torch.zeros(1, 1, dtype=torch.long)
    sparse = torch.sparse_coo_tensor(indices, torch.ones(1), (10**12,), check_invariants=False)
    meta = torch.zeros(10**12, device="meta")
    assert list(read_checkpoint(ckpt(tmp_path, {"x": torch.ones(2), "sparse": sparse, "meta": meta}))) == ["x"]


def test_a_file_that_unpacks_to_much_more_than_it_is_is_refused(tmp_path: Path) -> None:
    stored = ckpt(tmp_path, {"x": torch.zeros(2**22)})
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry.filename))
    with pytest.raises(UserError, match="unpacks to 16 MiB, which is more than a checkpoint of its size holds"):
        read_checkpoint(packed)


def test_a_file_packed_as_usual_is_read(tmp_path: Path) -> None:
    stored = ckpt(tmp_path, {"x": torch.arange(4096.0)})
    packed = tmp_path / "packed.ckpt"
    with zipfile.ZipFile(stored) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for entry in old.infolist():
            new.writestr(entry.filename, old.read(entry.filename))
    assert torch.equal(read_checkpoint(packed)["x"], torch.arange(4096.0))
