"""The Ray that a run works on: a private folder for one of its own, and quick answers about one that is gone."""

import os
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from efface.cluster.workers.ray_probe import PREFACE, answers, endpoint
from efface.cluster.workers.ray_session import init_ray, ray_scratch
from efface.cluster.workers.ray_token import protect_token
from efface.errors import UserError

# the folder of its files


def test_the_folder_is_this_users_alone_and_goes_with_the_run() -> None:
    with ray_scratch() as scratch:
        found = os.stat(scratch)
        assert stat.S_IMODE(found.st_mode) == 0o700 and found.st_uid == os.geteuid()
    assert not os.path.exists(scratch)


SOCKET = "/ray/session_2026-11-24_03-14-40_123456_4194304/sockets/plasma_store.1"
"""The longest path of Ray's below the folder, with the largest process id of Linux."""


def test_a_socket_below_it_has_a_path_that_the_system_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = tmp_path / ("deep" * 20)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with ray_scratch() as scratch:
        assert len(scratch + SOCKET) <= 107
    assert not list(long.iterdir())


def test_a_folder_in_which_others_may_rename_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="x") as loose:
        os.chmod(loose, 0o777)  # and not sticky
        monkeypatch.setattr(tempfile, "tempdir", loose)
        with ray_scratch() as scratch:
            assert not scratch.startswith(loose)


def test_a_file_system_without_permissions_is_passed_over_or_a_mistake(monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.stat

    def loose(path: Any, **more: Any) -> Any:
        found = really(path, **more)
        if str(path).startswith("/tmp/efface-"):
            return os.stat_result((found.st_mode | 0o077, *found[1:]))
        return found

    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    monkeypatch.setattr(os, "stat", loose)
    with ray_scratch() as scratch:
        assert scratch.startswith("/var/tmp/")
    monkeypatch.setattr(tempfile, "TemporaryDirectory", no_folder)
    with pytest.raises(UserError, match="TMPDIR: /tmp and /tmp cannot hold Ray's sockets"):
        ray_scratch()


def no_folder(**more: Any) -> None:
    raise PermissionError(13, "Permission denied")


# its token


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_a_token_is_written_that_nobody_else_can_read(home: Path) -> None:
    before = os.umask(0o000)
    try:
        protect_token()
    finally:
        os.umask(before)
    token = home / ".ray" / "auth_token"
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and len(token.read_text()) == 64


def test_a_token_that_is_there_stays_and_is_closed_to_others(home: Path) -> None:
    token = home / ".ray" / "auth_token"
    token.parent.mkdir()
    token.write_text("mine")
    token.chmod(0o644)
    protect_token()
    assert stat.S_IMODE(token.stat().st_mode) == 0o600 and token.read_text() == "mine"


def test_a_token_kept_elsewhere_is_left_to_its_owner(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/elsewhere")
    protect_token()
    assert not (home / ".ray").exists()


@pytest.mark.parametrize("where", ["/dev/null", "/proc/none"])
def test_without_a_home_it_is_a_new_secret_of_this_process(
    where: str, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", where)
    found = []
    for _ in range(2):
        monkeypatch.setenv("RAY_AUTH_TOKEN", "")  # so that what is set is taken back afterwards
        protect_token()
        found.append(os.environ["RAY_AUTH_TOKEN"])
    assert [len(token) for token in found] == [64, 64] and found[0] != found[1]


# a Ray to join


@pytest.fixture
def server() -> Iterator[Callable[[bytes | None], int]]:
    """A function that starts a server which answers every connection with these bytes (None: never), and its port."""
    listeners: list[socket.socket] = []

    def start(answer: bytes | None) -> int:
        listener = socket.create_server(("127.0.0.1", 0))
        listeners.append(listener)

        def serve() -> None:
            kept = []
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                kept.append(connection)
                if answer is not None:
                    connection.recv(100)
                    connection.sendall(answer)

        threading.Thread(target=serve, daemon=True).start()
        return int(listener.getsockname()[1])

    yield start
    for listener in listeners:
        listener.close()


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def timeouts(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """For how many seconds a Ray that is to be joined is asked; in fact for 1."""
    asked: list[float] = []

    def quickly(host: str, port: int, timeout: float = answers.__defaults__[0]) -> bool:
        asked.append(timeout)
        return answers(host, port, timeout=1.0)

    monkeypatch.setattr("efface.cluster.workers.ray_session.answers", quickly)
    return asked


SETTINGS_FRAME = bytes([0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 100])  # RFC 9113, 6.5: at most 100 streams


def test_a_server_of_grpc_answers(server: Callable[[bytes | None], int]) -> None:
    assert answers("127.0.0.1", server(SETTINGS_FRAME), timeout=5)


def test_the_preface_is_that_of_the_standard() -> None:
    assert PREFACE[:24].hex() == "505249202a20485454502f322e300d0a0d0a534d0d0a0d0a"  # RFC 9113, 3.4


@pytest.mark.parametrize("answer", [None, b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH_9.6\r\n"])
def test_whatever_else_listens_there_is_no_ray(answer: bytes | None, server: Callable[[bytes | None], int]) -> None:
    start = time.monotonic()
    assert not answers("127.0.0.1", server(answer), timeout=1.5)
    assert time.monotonic() - start < 5


def test_a_real_server_of_grpc_answers() -> None:
    grpc = pytest.importorskip("grpc")
    from concurrent.futures import ThreadPoolExecutor

    running = grpc.server(ThreadPoolExecutor(1))
    port = running.add_insecure_port("127.0.0.1:0")
    running.start()
    try:
        assert answers("127.0.0.1", port, timeout=5)
    finally:
        running.stop(None)


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("ray://head:7000", ("head", 7000)),
        ("ray://head", ("head", 10001)),
        ("10.1.2.3:6379", ("10.1.2.3", 6379)),
        ("local", None),
        ("anyscale://x", None),
    ],
)
def test_where_an_address_leads(address: str, expected: tuple[str, int] | None) -> None:
    assert endpoint(address) == expected


@pytest.mark.parametrize("form", ["127.0.0.1:{}", "ray://127.0.0.1:{}"])
def test_a_ray_that_is_gone_is_a_mistake_within_seconds(form: str, closed_port: int, timeouts: list[float]) -> None:
    address = form.format(closed_port)
    start = time.monotonic()
    with pytest.raises(UserError, match=f"no Ray cluster can be joined at '{address}': no Ray answers at") as error:
        init_ray(address, 1, "unused")
    assert time.monotonic() - start < 30 and 0 < timeouts.pop() < 30 and "\n" not in str(error.value)


def test_an_address_that_is_none_is_a_mistake() -> None:
    with pytest.raises(UserError, match="no Ray cluster can be joined at 'nonsense'"):
        init_ray("nonsense", 1, "unused")


def test_a_session_that_is_over_is_not_waited_for(
    closed_port: int, timeouts: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private import services, utils

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(services, "find_gcs_addresses", lambda: set())
    monkeypatch.setattr(utils, "read_ray_address", lambda folder=None: f"127.0.0.1:{closed_port}")
    with pytest.raises(UserError, match="no Ray cluster can be joined at 'auto': no Ray answers at"):
        init_ray("auto", 1, "unused")
    assert 0 < timeouts.pop() < 30
    monkeypatch.setattr(utils, "read_ray_address", lambda folder=None: None)
    with pytest.raises(UserError, match="no Ray cluster can be joined at 'auto'"):
        init_ray("auto", 1, "unused")


JOIN = """
import sys
from efface.cluster.workers import ray_session
print("joining", flush=True)
ray_session.init_ray(sys.argv[1], 1, "unused")
"""


def test_ctrl_c_ends_the_wait_for_a_ray_that_does_not_answer(server: Callable[[bytes | None], int]) -> None:
    import signal

    command = [sys.executable, "-c", JOIN, f"127.0.0.1:{server(None)}"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout and process.stdout.readline() == "joining\n"
        time.sleep(3)
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.wait(timeout=60)
        assert time.monotonic() - start < 10


def test_a_ray_that_does_not_come_up_is_one_sentence_and_may_be_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where its processes take too long Ray raises the class Exception itself."""
    import ray

    def too_slow(*_: Any, **__: Any) -> None:
        raise Exception("The current node timed out during startup.\nThis could happen because …")

    stopped = []
    monkeypatch.setattr(ray, "init", too_slow)
    monkeypatch.setattr(ray, "shutdown", lambda: stopped.append(True))
    with pytest.raises(UserError, match="--workers 0") as refused:
        init_ray(None, 1, str(tmp_path))
    assert refused.value.exit_code == 75 and "\n" not in str(refused.value) and stopped
    assert "The current node timed out during startup." in str(refused.value)
