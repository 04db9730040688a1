"""What names a delta on the hub, and what a path on this machine."""

from pathlib import Path

import pytest

from efface.errors import UserError
from efface.models.files.hub import HubAddress, find_delta, hub_address


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("me/cat", HubAddress("me/cat")),
        ("me/cat@v1.0", HubAddress("me/cat", "v1.0")),
        ("hf://me/cat", HubAddress("me/cat")),
        ("hf://me/cat@v1/deltas/a.safetensors", HubAddress("me/cat", "v1", "deltas/a.safetensors")),
        ("me/cat.safetensors", None),
        ("cat.safetensors", None),
        ("me/cat/delta.safetensors", None),
        ("/me/cat", None),
        ("../me", None),
        ("~/me", None),
    ],
)
def test_an_address_of_the_hub_is_told_from_a_path(
    text: str, address: HubAddress | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert hub_address(text) == address


def test_what_is_here_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also a file that is missing in a folder that is there, so that a slip of the pen asks nobody's server."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me").mkdir()
    assert hub_address("me/cat") is None
    assert find_delta("me/cat") == Path("me/cat")
    assert hub_address("hf://me/cat") == HubAddress("me/cat")


@pytest.mark.parametrize("text", ["hf://cat", "hf://me/cat@", "hf://me//cat", "hf://-/x"])
def test_a_wrong_address_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="should be like hf://owner/name"):
        hub_address(text)
