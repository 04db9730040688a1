"""What is handed on of a folder: its own files, and nothing that a link finds elsewhere."""

from pathlib import Path

import pytest

from efface.cluster.package.files_inside import files_inside
from efface.errors import UserError


def test_a_link_that_leads_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    model, secret = tmp_path / "model", tmp_path / "secret"
    (model / "unet").mkdir(parents=True)
    (model / "unet" / "config.json").write_text("{}")
    (model / "same.json").symlink_to("unet/config.json")
    secret.write_text("hunter2")
    assert list(files_inside(model)) == ["same.json", "unet/config.json"]
    for target in (secret, tmp_path, "../secret"):
        (model / "notes").symlink_to(target)
        with pytest.raises(UserError, match="model/notes: is a link that leads out of the folder"):
            files_inside(model)
        (model / "notes").unlink()


def test_a_snapshot_of_the_hub_s_cache_is_links_to_its_own_files(tmp_path: Path) -> None:
    repository = tmp_path / "models--me--cat"
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    (repository / "blobs" / "ff").write_text("{}")
    (snapshot / "config.json").symlink_to("../../blobs/ff")
    assert list(files_inside(snapshot)) == ["config.json"]
    (snapshot / "x").symlink_to("../../../secret")
    with pytest.raises(UserError, match="leads out of the folder"):
        files_inside(snapshot)
