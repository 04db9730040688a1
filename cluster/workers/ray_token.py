"""The token by which a local Ray knows its own user: Ray writes it readable to everybody on the machine."""

import os
import secrets
import tempfile
from contextlib import suppress
from pathlib import Path

from efface.errors import UserError
from efface.files import local_path


def protect_token() -> None:
    """Make sure that nobody else can read the token of a Ray that this user starts: who has it can run code as them."""
    if os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH"):
        return  # the user's own arrangement
    try:
        _keep_token(local_path("~/.ray/auth_token"))
    except (OSError, UserError):  # no home, or none that can keep a token
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # for this process and those that it starts


def _keep_token(path: Path) -> None:
    """Write a token to `path` if there is none, and close it to all but this user. Raises OSError."""
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
    if not os.access(path, os.R_OK):
        raise PermissionError(f"{path} cannot be read")
    found = path.stat()
    if found.st_uid == os.geteuid() and found.st_mode & 0o077:
        path.chmod(0o600)
