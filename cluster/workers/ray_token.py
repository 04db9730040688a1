"""The token by which a local Ray knows its own user: Ray writes it readable to everybody on the machine."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path


def protect_token() -> None:
    """Make sure that nobody else can read the token of a Ray that this user starts: who has it can run code as them."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return  # the user's own arrangement
    with suppress(OSError, RuntimeError):  # no home: Ray itself says so
        path = Path.home() / ".ray" / "auth_token"
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            handle, name = tempfile.mkstemp(dir=path.parent)  # which only its owner can read
            try:
                with os.fdopen(handle, "w") as file:
                    file.write(secrets.token_hex(32))
                with suppress(FileExistsError):
                    os.link(name, path)  # never over one that has come to be there
            finally:
                os.unlink(name)
        found = path.stat()
        if found.st_uid == os.geteuid() and found.st_mode & 0o077:
            path.chmod(0o600)
