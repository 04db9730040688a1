"""What counts as being on this machine: a model in the hub's cache with all its parts."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.utils import filter_repo_objects

from efface.errors import UserError
from efface.launch.model_downloads import RequiredModel, fetch, missing_sources
from efface.models.files.folder_identity import FILES as JUDGE_FILES
from efface.models.files.model_files import NotCached, locate, missing_files

LLAVA, COMMIT = "llava-hf/llava-1.5-7b-hf", "a" * 40
PARTS = [f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3)]
INDEX = "model.safetensors.index.json"
WEIGHT_MAP = {f"layer.{number}": part for number, part in enumerate(PARTS)}
WHOLE = ["config.json", INDEX, *PARTS, "README.md", "pytorch_model.bin"]


class Cache:
    """A cache of the hub's, in the layout of its library, and what the hub would send."""

    def __init__(self, folder: Path) -> None:
        self.repository = folder / "models--llava-hf--llava-1.5-7b-hf"
        self.snapshot = self.repository / "snapshots" / COMMIT
        self.blobs = self.repository / "blobs"
        for made in (self.snapshot, self.blobs, self.repository / "refs"):
            made.mkdir(parents=True)
        (self.repository / "refs" / "main").write_text(COMMIT)
        self.sent: list[str] = []

    def hold(self, *names: str) -> None:
        for name in names:
            (self.blobs / f"etag-{name}").write_text(json.dumps({"weight_map": WEIGHT_MAP} if name == INDEX else {}))
            if not (self.snapshot / name).is_symlink():
                (self.snapshot / name).symlink_to(f"../../blobs/etag-{name}")

    def send(self, patterns: Iterable[str]) -> None:
        self.sent = [name for name in filter_repo_objects(WHOLE, allow_patterns=list(patterns))]
        self.hold(*self.sent)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cache:
    made = Cache(tmp_path)
    own: Callable[..., str] = huggingface_hub.snapshot_download

    def snapshot_download(repository: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if not local_files_only:
            made.send(allow_patterns)
        options: Any = {"allow_patterns": allow_patterns, "local_files_only": True, "cache_dir": tmp_path}
        return own(repository, **options)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return made


def found() -> Path:
    return locate(LLAVA, JUDGE_FILES, fetch=False)


def test_weights_of_which_one_part_of_three_came_are_not_here(cache: Cache) -> None:
    cache.hold("config.json", INDEX, PARTS[0])
    with pytest.raises(NotCached, match=rf"only in part in the hub's cache, without {PARTS[1]}, {PARTS[2]}$"):
        found()
    assert missing_sources([str(campaign(cache))]) == [LLAVA]


def campaign(cache: Cache) -> Path:
    file = cache.repository / "mine.yaml"
    campaign = {"name": "mine", "base": "miniature", "methods": [{"method": "uce"}]}
    file.write_text(json.dumps({**campaign, "evaluation": {"judges": ["llava-1.5-7b"]}}))
    return file


def test_the_parts_that_are_missing_are_fetched_and_then_all_is_here(cache: Cache) -> None:
    cache.hold("config.json", INDEX, PARTS[0])
    model = RequiredModel("judge", LLAVA, JUDGE_FILES)
    assert fetch(model) is True
    assert cache.sent == ["config.json", INDEX, *PARTS]  # the index among them
    assert found() == cache.snapshot
    assert fetch(model) is False


@pytest.mark.parametrize("came", [PARTS[:1], PARTS[:2], PARTS[1:]])
def test_without_an_index_the_numbers_in_the_names_tell_what_is_missing(cache: Cache, came: list[str]) -> None:
    cache.hold("config.json", *came)
    assert missing_files(cache.snapshot, JUDGE_FILES) == [part for part in PARTS if part not in came]


def test_the_index_tells_where_the_names_have_no_numbers(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(WEIGHT_MAP, "head", "head.safetensors")
    cache.hold("config.json", INDEX, *PARTS)
    assert missing_files(cache.snapshot, JUDGE_FILES) == ["head.safetensors"]


def test_parts_that_nobody_requested_are_not_missed(cache: Cache) -> None:
    cache.hold("config.json", INDEX, PARTS[0])
    assert missing_files(cache.snapshot, ("config.json",)) == []


def test_an_index_beside_the_weights_in_one_file_is_of_no_use(cache: Cache) -> None:
    """transformers takes the one file."""
    cache.hold("config.json", INDEX, "model.safetensors")
    assert missing_files(cache.snapshot, JUDGE_FILES) == []


def test_a_link_to_nothing_is_no_file(cache: Cache) -> None:
    cache.hold("config.json", INDEX, *PARTS)
    (cache.blobs / f"etag-{PARTS[1]}").unlink()
    assert missing_files(cache.snapshot, JUDGE_FILES) == [PARTS[1]]
    (cache.blobs / "etag-config.json").unlink()
    assert missing_files(cache.snapshot, ("*.json",)) == ["config.json"]


def test_a_download_that_was_broken_off_may_be_of_any_file(cache: Cache) -> None:
    cache.hold("config.json", INDEX, *PARTS)
    (cache.blobs / "abc.1234.incomplete").write_text("")
    assert missing_files(cache.snapshot, JUDGE_FILES) == ["blobs/abc.1234.incomplete"]
    (cache.blobs / "abc").write_text("")  # another attempt came to its end
    assert missing_files(cache.snapshot, JUDGE_FILES) == []


def test_a_download_of_another_file_is_of_no_account_where_the_hub_has_listed_its_files(cache: Cache) -> None:
    cache.hold("config.json", INDEX, *PARTS)
    (cache.blobs / "abc.1234.incomplete").write_text("")
    listing = cache.repository / "trees" / f"{COMMIT}.json"
    listing.parent.mkdir()
    listing.write_text(json.dumps({"format_version": 1, "files": {"config.json": {"size": 2, "blob_id": "b"}}}))
    assert found() == cache.snapshot


def test_offline_a_part_is_not_taken_for_the_whole(cache: Cache, monkeypatch: pytest.MonkeyPatch) -> None:
    cache.hold("config.json", INDEX, PARTS[0])
    monkeypatch.setattr(cache, "send", lambda patterns: None)
    with pytest.raises(UserError, match=rf"only in part in the hub's cache, without {PARTS[1]}, {PARTS[2]}; run `eff"):
        locate(LLAVA, JUDGE_FILES)
