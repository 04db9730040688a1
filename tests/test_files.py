"""Files that are whole or absent, on a disk and in an object store alike; and names made of content."""

import errno
import hashlib
import json
import multiprocessing
import os
import re
import stat
import uuid
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from efface import files
from efface.errors import LocationError, NoSpaceError, StorageError
from efface.files import (
    as_path,
    content_id,
    create_exclusive,
    file_stem,
    is_remote,
    local_copy,
    local_path,
    open_to_readers,
    sha256_file,
    slug,
    write_atomic,
    write_json,
)

HASH = "[0-9a-f]{8}"


@pytest.fixture(autouse=True)
def _no_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("efface.storage_retry.RETRY_SECONDS", 0.0)


@pytest.fixture(params=["disk", "memory"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A folder that is not there yet, on a disk and in fsspec's store in memory."""
    return tmp_path / "new" if request.param == "disk" else as_path(f"memory://{uuid.uuid4().hex}/new")


def test_a_path_is_local_and_a_url_is_not(tmp_path: Path) -> None:
    assert as_path(str(tmp_path)) == tmp_path and as_path(tmp_path) is tmp_path
    assert not is_remote(tmp_path) and as_path(f"file://{tmp_path}") == tmp_path
    assert as_path("://odd") == Path("://odd")
    remote = as_path("memory://bucket/folder")
    assert is_remote(remote) and str(remote / "file") == "memory://bucket/folder/file"


@pytest.mark.parametrize(
    ("url", "sentence"),
    [
        ("nowhere://bucket/x", "cannot be opened"),
        ("s3:///x", r"names no bucket, should be like s3://bucket/folder"),
        ("s3://", r"names no bucket, should be like s3://bucket/folder"),
    ],
)
def test_a_url_that_no_store_has_is_a_mistake_described_in_one_sentence(url: str, sentence: str) -> None:
    with pytest.raises(LocationError, match=f"{url}: {sentence}") as excinfo:
        as_path(url)
    assert "\n" not in str(excinfo.value) and excinfo.value.exit_code == 2


def test_what_is_written_is_read_and_its_folder_made(folder: Path) -> None:
    write_atomic(folder / "deep" / "file", b"one")
    assert (folder / "deep" / "file").read_bytes() == b"one"
    write_atomic(folder / "deep" / "file", b"another")
    assert (folder / "deep" / "file").read_bytes() == b"another"
    assert [path.name for path in (folder / "deep").iterdir()] == ["file"]


def test_a_file_is_created_once_and_never_written_over(folder: Path) -> None:
    assert create_exclusive(folder / "file", b"first")
    assert not create_exclusive(folder / "file", b"second")
    assert (folder / "file").read_bytes() == b"first"
    assert [path.name for path in folder.iterdir()] == ["file"]


def test_json_is_written_so_that_people_and_programs_read_it(folder: Path) -> None:
    write_json(folder / "file", {"name": "Müller", "seeds": [1, 2]})
    text = (folder / "file").read_text(encoding="utf-8")
    assert json.loads(text) == {"name": "Müller", "seeds": [1, 2]} and "Müller" in text and text.endswith("}\n")
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(folder / "nan", float("nan"))
    assert not (folder / "nan").exists()


def test_a_hash_is_that_of_the_bytes(folder: Path) -> None:
    write_atomic(folder / "file", b"abc")
    # FIPS 180-4, the example of one block.
    assert sha256_file(folder / "file") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_a_local_copy_has_the_content_and_is_gone_afterwards(folder: Path) -> None:
    write_atomic(folder / "delta.safetensors", b"tensors")
    with local_copy(folder / "delta.safetensors") as copy:
        assert copy.read_bytes() == b"tensors" and copy.name == "delta.safetensors" and not is_remote(copy)
    assert copy.exists() == (not is_remote(folder))


def test_a_local_copy_of_what_is_not_there_is_a_place_to_write_it(folder: Path) -> None:
    folder.mkdir(parents=True)
    with local_copy(folder / "none") as copy:
        assert not copy.exists() and copy.parent.is_dir()


@pytest.mark.parametrize("umask", [0o022, 0o027, 0o077], ids=oct)
def test_who_may_read_a_file_is_the_umask_s_to_say(umask: int, tmp_path: Path) -> None:
    (tmp_path / "by another library").touch(0o600)
    before = os.umask(umask)
    try:
        write_atomic(tmp_path / "written", b"")
        create_exclusive(tmp_path / "created", b"")
        open_to_readers(tmp_path)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == dict.fromkeys(["by another library", "written", "created"], 0o666 & ~umask)


def test_a_file_that_holds_these_bytes_is_not_touched(tmp_path: Path) -> None:
    write_atomic(tmp_path / "file", b"same")
    before = (tmp_path / "file").stat()
    write_atomic(tmp_path / "file", b"same")
    assert (tmp_path / "file").stat() == before
    write_atomic(tmp_path / "file", b"diff")
    assert (tmp_path / "file").read_bytes() == b"diff"


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_beside_it(
    call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_atomic(tmp_path / "file", b"old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, call, full)
    with pytest.raises(StorageError, match=r"file: cannot be written \(No space left on device\)"):
        write_atomic(tmp_path / "file", b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_bytes() == b"old"


def test_a_file_that_cannot_be_created_is_not_taken_for_one_that_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(122, "Disk quota exceeded")

    monkeypatch.setattr(os, "link", full)
    with pytest.raises(StorageError, match="Disk quota exceeded"):
        create_exclusive(tmp_path / "file", b"")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("write", [write_atomic, create_exclusive])
@pytest.mark.parametrize(
    "folder", ["file/under/it", "file/it", "dangling/it", "a" * 300 + "/it", "deep/" * 1000 + "it"]
)
def test_a_folder_that_cannot_be_is_a_mistake_described_in_one_sentence(
    folder: str, write: Callable[[Path, bytes], object], tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    with pytest.raises(LocationError, match="it: cannot be written") as excinfo:
        write(tmp_path / folder, b"")
    assert "\n" not in str(excinfo.value)


def no_links(code: int) -> Callable[..., None]:
    def link(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    return link


NO_LINKS = [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS]
"""What exFAT, SMB and gcsfuse say where a hard link is requested."""


@pytest.mark.parametrize("code", NO_LINKS)
def test_without_hard_links_a_file_is_created_once_too(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "link", no_links(code))
    assert create_exclusive(tmp_path / "file", b"first")
    assert not create_exclusive(tmp_path / "file", b"second")
    assert (tmp_path / "file").read_bytes() == b"first"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_without_hard_links_of_many_processes_one_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "link", no_links(errno.EPERM))
    test_of_many_processes_that_create_a_file_at_once_one_succeeds(tmp_path)


def test_without_hard_links_a_creation_that_fails_leaves_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "link", no_links(errno.EPERM))
    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(NoSpaceError):
        create_exclusive(tmp_path / "file", b"first")
    assert not list(tmp_path.iterdir())


def test_a_file_system_that_syncs_no_folders_is_written_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.fsync

    def files_only(handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        really(handle)

    monkeypatch.setattr(os, "fsync", files_only)
    write_atomic(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


@pytest.mark.parametrize("write", [write_atomic, create_exclusive])
def test_content_is_on_the_disk_before_its_name_and_its_name_before_the_call_returns(
    write: Callable[[Path, bytes], object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def noted(name: str) -> None:
        really = getattr(os, name)

        def call(*arguments: Any) -> Any:
            folder = name == "fsync" and stat.S_ISDIR(os.fstat(arguments[0]).st_mode)
            calls.append(f"{name} {'folder' if folder else 'file'}" if name == "fsync" else name)
            return really(*arguments)

        monkeypatch.setattr(os, name, call)

    for name in ("fsync", "replace", "link"):
        noted(name)
    write(tmp_path / "file", b"content")
    named = "replace" if write is write_atomic else "link"
    assert calls == ["fsync file", named, "fsync folder"]


def test_the_names_of_new_folders_are_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[str] = []
    really = os.fsync

    def fsync(handle: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{handle}"))
        really(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    write_atomic(tmp_path / "new" / "deep" / "file", b"content")
    assert {str(tmp_path), str(tmp_path / "new"), str(tmp_path / "new" / "deep")} <= set(synced)


@pytest.mark.parametrize(
    ("code", "kind", "exit_code"),
    [
        (errno.ENOSPC, NoSpaceError, 75),
        (errno.EDQUOT, NoSpaceError, 75),
        (errno.EROFS, StorageError, 75),
        (errno.EIO, StorageError, 75),
        (errno.EACCES, LocationError, 2),
    ],
)
def test_an_error_of_the_disk_says_whether_to_try_again_later(
    code: int, kind: type[StorageError], exit_code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(StorageError) as excinfo:
        write_atomic(tmp_path / "file", b"content")
    assert type(excinfo.value) is kind and excinfo.value.exit_code == exit_code


@pytest.mark.parametrize("error", [OSError("broken pipe"), PermissionError("denied"), RuntimeError("a\nb"), KeyError()])
def test_whatever_a_store_says_becomes_one_sentence(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    path = as_path(f"memory://{uuid.uuid4().hex}/file")

    def fail(*arguments: object, **more: object) -> None:
        raise error

    monkeypatch.setattr(type(path.fs), "pipe_file", fail)  # type: ignore[attr-defined]
    for write in (write_atomic, create_exclusive):
        with pytest.raises(StorageError, match="cannot be written") as excinfo:
            write(path, b"")
        assert "\n" not in str(excinfo.value)


def _create_on_signal(start: Connection, path: Path, name: str) -> None:
    start.recv()
    start.send(create_exclusive(path, name.encode()))


def test_of_many_processes_that_create_a_file_at_once_one_succeeds(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    for attempt in range(5):
        path = tmp_path / str(attempt)
        pipes = [context.Pipe() for _ in range(8)]
        own = [
            context.Process(target=_create_on_signal, args=(there, path, str(number)))
            for number, (_, there) in enumerate(pipes)
        ]
        for process in own:
            process.start()
        for here, _ in pipes:
            here.send("go")
        succeeded = [number for number, (here, _) in enumerate(pipes) if here.recv()]
        for process in own:
            process.join()
        assert [int(path.read_bytes())] == succeeded


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    contents = [letter * 100_000 for letter in (b"a", b"b")]
    write_atomic(tmp_path / "file", contents[0])
    context = multiprocessing.get_context("fork")
    writer = context.Process(
        target=lambda: [write_atomic(tmp_path / "file", contents[i % 2]) for i in range(1, 200)], daemon=True
    )
    writer.start()
    seen = set()
    while writer.is_alive():
        seen.add(hashlib.sha256((tmp_path / "file").read_bytes()).hexdigest())
    writer.join()
    assert seen <= {hashlib.sha256(content).hexdigest() for content in contents} and writer.exitcode == 0


def test_an_id_is_made_of_content_and_not_of_its_order() -> None:
    assert content_id({"b": [1, "ü"], "a": None}) == content_id({"a": None, "b": [1, "ü"]})
    expected = hashlib.sha256('{"a":null,"b":[1,"ü"]}'.encode()).hexdigest()[:16]
    assert content_id({"b": [1, "ü"], "a": None}) == expected
    assert content_id([1, 2]) != content_id([2, 1])


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Van Gogh", "van-gogh"), ("  a//b  ", "a-b"), ("--", "x"), ("", "x"), ("é", "x"), ("x" * 60, "x" * 40),
     ("a" * 39 + " b", "a" * 39)],
)  # fmt: skip
def test_a_name_becomes_a_part_of_a_file_name(text: str, expected: str) -> None:
    assert slug(text) == expected


def test_a_temporary_file_is_hidden_so_that_what_lists_a_folder_passes_it_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    really = os.replace
    monkeypatch.setattr(files.os, "replace", lambda old, new: (seen.extend(os.listdir(tmp_path)), really(old, new))[-1])
    write_atomic(tmp_path / "file", b"")
    assert len(seen) == 1 and seen[0].startswith(".file.")


@pytest.mark.parametrize(
    ("names", "stems"),
    [
        (["cat", "Van Gogh", "Blue_Jay"], ["cat", "van-gogh", "blue-jay"]),
        (["C", "C++", "C#", "+C"], ["c", f"c-{HASH}", f"c-{HASH}", f"c-{HASH}"]),
        (["猫", "犬", "🐱"], [f"x-{HASH}"] * 3),
        (["caf", "cafe", "café"], ["caf", "cafe", f"caf-{HASH}"]),
        (["x" * 40, "x" * 41, "x" * 42], ["x" * 40, f"x{{40}}-{HASH}", f"x{{40}}-{HASH}"]),
    ],
)
def test_names_that_differ_have_files_of_their_own(names: list[str], stems: list[str]) -> None:
    found = [file_stem(name) for name in names]
    assert len(set(found)) == len(names)
    assert all(re.fullmatch(stem, own) for stem, own in zip(stems, found, strict=True))


@pytest.mark.parametrize("path", ["~", "~/runs/a", Path("~/runs/a")])
def test_a_path_in_the_home_folder_is_found_without_a_shell(
    path: str | Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path(path) == as_path(path) == tmp_path / str(path)[2:]


def test_a_name_that_only_begins_like_one_is_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HOME", raising=False)
    for name in ("~nobody-of-this-name/x", "a~", "a/~/b", "~\0"):
        assert str(local_path(name)) == name
