"""Whether a Ray answers at an address, found out within seconds.

Ray's servers speak gRPC, so HTTP/2 (RFC 9113): each side begins with a frame of settings, before any authentication.
"""

import os
import socket
import time
from urllib.parse import urlsplit

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
"""What a client begins with (sections 3.4 and 6.5): the preface, and a frame of no settings."""

SETTINGS = 4
"""The type of such a frame."""

CLIENT_PORT = 10001
"""Of `ray://HOST`, where none is given."""


def endpoint(address: str) -> tuple[str, int] | None:
    """Host and port that `ray.init(address)` connects to; None where only Ray knows.

    Raises ConnectionError where `auto` finds no Ray on this machine, ValueError where this is no address.
    """
    from ray._private import services

    if address == "local":
        return None
    if "://" in address:
        url = urlsplit(address)
        return (url.hostname, url.port or CLIENT_PORT) if url.scheme == "ray" and url.hostname else None
    host, _, port = services.canonicalize_bootstrap_address_or_die(address).rpartition(":")
    return host.strip("[]"), int(port)


def answers(host: str, port: int, timeout: float = 10.0) -> bool:
    """Whether a Ray, or another server of gRPC, answers there before `timeout` seconds are over."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            if _is_grpc(host, port, max(0.1, deadline - time.monotonic())):
                return True
        except OSError:
            pass
        if time.monotonic() + 1 > deadline:
            return False
        time.sleep(1)  # it may be coming up


def _is_grpc(host: str, port: int, timeout: float) -> bool:
    with socket.create_connection((host, port), timeout) as connection:
        if os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
            return True  # only Ray has the certificates to talk to it
        connection.sendall(PREFACE)
        with connection.makefile("rb") as answer:
            frame = answer.read(9)
    return len(frame) == 9 and frame[3] == SETTINGS
