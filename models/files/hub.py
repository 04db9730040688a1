"""The Hugging Face hub: deltas found by their id, and files published there.

    owner/name                       the delta of a repository
    owner/name@v1                    at a branch, tag or commit
    hf://owner/name@v1/file          one of several, or where a folder here has the owner's name

Who publishes or reads private repositories is known to the hub's own library (`hf auth login`, HF_TOKEN): efface
takes no token, passes none on, and shows none.
"""

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from efface.errors import UserError
from efface.files import local_path

DELTA_FILE = "delta.safetensors"
"""What the delta of a repository is called, if it has one alone."""
SCHEME = "hf://"
SUFFIX = ".safetensors"
NAME = r"[A-Za-z0-9][\w.-]{0,95}"
ADDRESS = re.compile(rf"(?P<repository>{NAME}/{NAME})(?:@(?P<revision>[\w.-]{{1,250}}))?(?:/(?P<file>[\w./ -]+))?")


@dataclass(frozen=True)
class HubAddress:
    """A repository of the hub, or a file in it."""

    repository: str
    revision: str | None = None
    file: str | None = None


def hub_address(source: str | Path) -> HubAddress | None:
    """What a text names on the hub; None for a path on this machine. Raises UserError for a wrong `hf://` address."""
    text = str(source)
    found = ADDRESS.fullmatch(text.removeprefix(SCHEME))
    if text.startswith(SCHEME):
        if not found:
            raise UserError(f"{text}: should be like {SCHEME}owner/name, {SCHEME}owner/name@revision/file{SUFFIX}")
        return HubAddress(**found.groupdict())
    if not found or found["file"] or text.endswith(SUFFIX):
        return None
    path = local_path(text)
    return None if path.exists() or path.parent.is_dir() else HubAddress(**found.groupdict())


def find_delta(source: str | Path) -> Path:
    """The file of a delta that a path or an address of the hub names, fetched where it is not in the hub's cache.

    Raises UserError where the hub has none, or several, or cannot be reached.
    """
    address = hub_address(source)
    return download_delta(address) if address else local_path(source)


def download_delta(address: HubAddress) -> Path:
    """See `find_delta`."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        try:
            name = address.file or DELTA_FILE
            return Path(hf_hub_download(address.repository, name, revision=address.revision))
        except EntryNotFoundError as error:
            if address.file or isinstance(error, LocalEntryNotFoundError):
                raise
            name = _only_delta(address)
            return Path(hf_hub_download(address.repository, name, revision=address.revision))
    except UserError:
        raise
    except Exception as error:
        named = f"{address.repository}{f', {address.file}' if address.file else ''}"
        raise UserError(f"{named}: no such file, and not to be had from the hub ({_reason(error)})") from None


def _only_delta(address: HubAddress) -> str:
    """The one delta of a repository without `DELTA_FILE`, such as a package of one model."""
    from huggingface_hub import HfApi

    names = HfApi().list_repo_files(address.repository, revision=address.revision)
    if "model_index.json" in names:
        raise UserError(f"{address.repository}: is a whole model and no delta; name it as a base")
    deltas = sorted(name for name in names if name.endswith(SUFFIX) and name.count("/") <= 1 and "models/" not in name)
    if not deltas:
        raise UserError(f"{address.repository}: has no delta, which would be {DELTA_FILE}")
    if len(deltas) > 1:
        at = f"@{address.revision}" if address.revision else ""
        raise UserError(
            f"{address.repository}: has {len(deltas)} deltas; name one, such as "
            f"{SCHEME}{address.repository}{at}/{deltas[0]}"
        )
    return deltas[0]


def upload(repository: str, files: Mapping[str, Path | bytes], message: str, *, private: bool) -> str:
    """Publish files, by their path in the repository, in one commit; its web address.

    The repository is made where there is none; `private` is of a new one. Raises UserError where the hub refuses it or
    cannot be reached.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    check_repository(repository)
    operations = [
        CommitOperationAdd(path_in_repo=name, path_or_fileobj=data if isinstance(data, bytes) else str(data))
        for name, data in files.items()
    ]
    try:
        api = HfApi()
        api.create_repo(repository, private=private, exist_ok=True)
        with warnings.catch_warnings(action="ignore"):  # of tables among the files
            commit = api.create_commit(repository, operations, commit_message=message)
        return str(commit.commit_url)
    except Exception as error:
        status = getattr(getattr(error, "response", None), "status_code", None)
        advice = "; log in with `hf auth login`, or set HF_TOKEN" if status in (401, 403) else ""
        raise UserError(f"{repository}: the hub did not take it ({_reason(error)}){advice}") from None


def check_repository(repository: str) -> None:
    """Raises UserError for what cannot be the id of a repository."""
    if not re.fullmatch(f"{NAME}/{NAME}", repository):
        raise UserError(f"{repository}: is no id of a repository, should be like owner/name")


def _reason(error: Exception) -> str:
    """The first line of what the hub's library says, without the user's token, should it be there."""
    from huggingface_hub import get_token

    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    token = get_token()
    return (text.replace(token, "…") if token else text).strip().rstrip(".")
