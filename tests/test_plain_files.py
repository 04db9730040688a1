"""A pipe, a device or a file without end in a stranger's folder is refused at once by everything that reads there."""

import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from time_limit import time_limit

from efface.cluster.search.study import RunFolderJournal
from efface.cluster.storage.journal import read_journal
from efface.cluster.storage.lease import active_driver
from efface.cluster.storage.records import look_up, read_json, sha256
from efface.concepts.csv_records import read_records as read_csv_records
from efface.config_files import read_yaml
from efface.errors import UserError
from efface.eval.judging.image_table import read_table
from efface.launch.clusters.launch_record import read_records
from efface.models.delta import Delta
from efface.models.files import component_configs
from efface.models.files.lora_alpha import read_settings
from efface.models.files.untrusted_models import check_model_files
from efface.models.files.weights_file import read_checkpoint
from efface.models.image_preprocessing import read_preprocessing
from efface.plain_files import leaves, open_plain, read_plain
from efface.train.torchrun import is_torchrun_job
from efface.train.trainer import checkpoint


def run_folder(root: Path) -> Any:
    return SimpleNamespace(root=root, logs=root / "logs")


READERS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "sign": ("run.json", lambda root: read_json(root, "run.json")),
    "output": ("delta.safetensors", lambda root: sha256(root / "delta.safetensors")),
    "lease": ("leases/00000001.json", active_driver),
    "journal": ("logs/x.jsonl", lambda root: list(read_journal(run_folder(root)))),
    "launch record": ("launch.json", read_records),
    "study": ("study.jsonl", lambda root: RunFolderJournal(root / "study.jsonl").read_logs(0)),
    "YAML": ("campaign.yaml", lambda root: read_yaml(root / "campaign.yaml")),
    "CSV": ("prompts.csv", lambda root: list(read_csv_records(root / "prompts.csv"))),
    "image table": ("x/table.parquet", lambda root: read_table(root / "x")),
    "delta": ("delta.safetensors", lambda root: Delta.load(root / "delta.safetensors")),
    "safetensors": ("x.safetensors", lambda root: read_checkpoint(root / "x.safetensors")),
    "pickle": ("x.ckpt", lambda root: read_checkpoint(root / "x.ckpt")),
    "config of a base": ("config.json", lambda root: component_configs.read_json(root / "config.json")),
    "config of a judge": ("config.json", lambda root: check_model_files(root, "theirs")),
    "weights of a judge": ("model.safetensors", lambda root: check_model_files(root, "theirs")),
    "preprocessing": ("preprocessor_config.json", read_preprocessing),
    "settings of a LoRA": ("adapter_config.json", lambda root: read_settings(root / "adapter_model.bin")),
    "checkpoint": ("checkpoint.safetensors", lambda root: checkpoint.read(root / "checkpoint.safetensors", "key")),
    "job for torchrun": ("job.json", lambda root: is_torchrun_job(root / "job.json", Any)),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)], ids=["pipe", "device"])
@pytest.mark.parametrize("reader", READERS)
def test_what_never_ends_is_nothing_or_a_sentence(tmp_path: Path, reader: str, make: Callable[[Path], None]) -> None:
    name, read = READERS[reader]
    (tmp_path / name).parent.mkdir(exist_ok=True)
    make(tmp_path / name)
    with time_limit(10):
        try:
            assert not read(tmp_path)
        except UserError as error:
            assert "\n" not in str(error)


def test_a_file_is_read_to_its_limit_and_not_further(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"12345")
    assert read_plain(tmp_path / "x", 5) == b"12345" == read_plain(str(tmp_path / "x"))
    with pytest.raises(OSError, match="more than 4 bytes"):
        read_plain(tmp_path / "x", 4)
    with pytest.raises(IsADirectoryError):
        open_plain(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_plain(tmp_path / "y")
    os.mkfifo(tmp_path / "pipe")
    for endless in (tmp_path / "pipe", Path("/dev/zero")):
        with time_limit(10), pytest.raises(OSError, match="is a pipe or a device"):
            read_plain(endless)


def test_a_file_of_a_terabyte_is_no_record(tmp_path: Path) -> None:
    with (tmp_path / "run.json").open("wb") as file:
        file.truncate(10**12)
    assert read_json(tmp_path, "run.json") is None
    entry = look_up(tmp_path / "run.json")
    assert entry is not None and entry.size == 10**12


def test_a_link_out_of_a_folder_is_known_by_where_it_ends(tmp_path: Path) -> None:
    root, outside = tmp_path / "run", tmp_path / "secret"
    (root / "jobs").mkdir(parents=True)
    outside.write_text("x")
    for name, target in (("in", "jobs"), ("out", outside), ("up", "../secret"), ("loop", "loop")):
        (root / name).symlink_to(target)
    assert [name for name in ("in", "jobs", "out", "up", "loop") if leaves(root / name, root)] == ["out", "up", "loop"]
