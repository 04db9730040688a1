"""Calls that fail now and then are tried again within a budget of time; errors that stay are raised at once."""

import errno
import logging
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from efface import storage_retry as retrying
from efface.errors import LocationError, StorageError
from efface.files import as_path, create_exclusive, write_atomic
from efface.storage_retry import is_transient_in_store, retry, retry_seconds


class Clock:
    """Time that only passes while somebody sleeps."""

    def __init__(self) -> None:
        self.now = 0.0
        self.delays: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.delays.append(seconds)
        self.now += seconds


@pytest.fixture(autouse=True)
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retrying, "time", clock)
    return clock


def away_until(clock: Clock, seconds: float, error: Exception) -> Callable[..., str]:
    def call(*arguments: Any, **options: Any) -> str:
        if clock.now < seconds:
            raise error
        return "answer"

    return call


def test_a_store_away_for_ten_seconds_answers_in_the_end_and_the_log_says_why_it_took_so_long(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "efface"):
        call = away_until(clock, 10, ConnectionResetError("reset"))
        assert retry("s3://bucket/file", call, is_transient_in_store) == "answer"
    assert 10 <= clock.now <= 20
    assert all(later >= earlier for earlier, later in zip(clock.delays, clock.delays[1:], strict=False))
    assert len(caplog.messages) == len(clock.delays)
    assert caplog.messages[0].startswith("s3://bucket/file: reset; trying again in 0.5 s")


def test_a_store_away_for_long_is_an_error_within_the_budget(clock: Clock) -> None:
    with pytest.raises(ConnectionResetError):
        retry("x", away_until(clock, 1e9, ConnectionResetError("reset")), is_transient_in_store)
    assert 20 <= clock.now <= retrying.RETRY_SECONDS


def test_a_block_may_have_a_budget_of_its_own(clock: Clock) -> None:
    with retry_seconds(0), pytest.raises(ConnectionResetError):
        retry("x", away_until(clock, 1, ConnectionResetError("reset")), is_transient_in_store)
    assert clock.delays == []
    retry("x", away_until(clock, 1, ConnectionResetError("reset")), is_transient_in_store)


class NoCredentialsError(Exception):
    """As botocore has it."""


@pytest.mark.parametrize(
    "error", [PermissionError("denied"), ValueError("bad"), NoCredentialsError(), LocationError("x")]
)
def test_what_no_later_attempt_mends_is_raised_at_once(error: Exception, clock: Clock) -> None:
    with pytest.raises(type(error)):
        retry("x", away_until(clock, 1, error), is_transient_in_store)
    assert clock.delays == []


READS: list[Callable[[Path], Any]] = [
    lambda path: path.stat(),
    lambda path: path.exists(),
    lambda path: path.is_file(),
    lambda path: path.is_dir(),
    lambda path: list(path.parent.iterdir()),
    lambda path: list(path.parent.glob("*")),
    lambda path: list(path.parent.rglob("*")),
    lambda path: path.read_bytes(),
    lambda path: path.read_text(),
    lambda path: path.open("rb"),
    lambda path: path.unlink(),
    lambda path: write_atomic(path, b"new"),
    lambda path: create_exclusive(path, b"new"),
]


@pytest.mark.parametrize("call", READS)
def test_every_call_to_a_store_is_tried_again(
    call: Callable[[Path], Any], clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path: Any = as_path(f"memory://{uuid.uuid4().hex}/folder/file")
    write_atomic(path, b"content")
    store = type(path.fs)
    for name in ("info", "ls", "find", "cat_file", "open", "pipe_file", "rm", "rm_file", "isfile", "isdir", "exists"):
        really = getattr(store, name)

        def interrupted(self: Any, *arguments: Any, really: Any = really, **options: Any) -> Any:
            away_until(clock, 10, ConnectionResetError("reset"))()
            return really(self, *arguments, **options)

        monkeypatch.setattr(store, name, interrupted)
    call(path)
    assert clock.now >= 10


def test_a_network_file_system_whose_server_is_away_is_tried_again(
    clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    really = os.replace

    def replace(*names: Any) -> None:
        away_until(clock, 10, OSError(errno.ESTALE, "Stale file handle"))()
        really(*names)

    monkeypatch.setattr(os, "replace", replace)
    write_atomic(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content" and [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_full_disk_is_not_tried_again(clock: Clock, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*names: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(StorageError, match="No space left"):
        write_atomic(tmp_path / "file", b"content")
    assert clock.delays == []
