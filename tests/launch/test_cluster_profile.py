"""Where profiles are found, and what a token may be: the user's token goes where the user's own profile says."""

from collections.abc import Callable
from pathlib import Path

import pytest
from command import RunEfface

from efface.errors import UserError
from efface.launch.clusters.cluster_profile import profile_by_name, read_profile
from efface.launch.submit.ray import RaySettings, _token

PROFILE = "name: {name}\nray: {{address: 'http://127.0.0.1:{port}'}}\n"


def test_a_bare_name_is_no_file_of_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, user_profiles: Path
) -> None:
    """Which may be somebody else's, with an address of theirs."""
    (tmp_path / "lab").write_text(PROFILE.format(name="lab", port=1))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"^unknown cluster 'lab'"):
        read_profile("lab")
    user_profiles.mkdir(parents=True)
    (user_profiles / "lab.yaml").write_text(PROFILE.format(name="lab", port=2))
    assert read_profile("lab").ray.address == "http://127.0.0.1:2"  # type: ignore[attr-defined]
    assert read_profile("./lab").ray.address == "http://127.0.0.1:1"  # type: ignore[attr-defined]


def test_the_users_own_comes_before_a_shipped_one(user_profiles: Path) -> None:
    user_profiles.mkdir(parents=True)
    (user_profiles / "local.yaml").write_text(PROFILE.format(name="local", port=7))
    assert read_profile("local").ray.address == "http://127.0.0.1:7"  # type: ignore[attr-defined]


def test_a_profile_is_called_as_its_file(user_profiles: Path) -> None:
    """So that the name in a launch record leads to the profile that was used."""
    user_profiles.mkdir(parents=True)
    (user_profiles / "lab.yaml").write_text(PROFILE.format(name="campus", port=7))
    with pytest.raises(UserError, match=r"lab\.yaml: name is 'campus', should be 'lab' as the file is called$"):
        profile_by_name("lab")


def test_status_can_be_given_the_profile(
    efface: RunEfface, finished: Path, profile: Callable[..., str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    from efface.launch.clusters.launch_record import LaunchRecord, append_records

    queried: list[str] = []

    def state(self: object, id: str, profile: object) -> str:
        queried.append(getattr(profile, "name", "none"))
        return "running"

    monkeypatch.setattr("efface.launch.submit.ray.RayJob.state", state)
    shutil.copytree(finished, tmp_path / "run")
    append_records(tmp_path / "run", [LaunchRecord("ray", "campaign", "efface-x-0123456789ab", "test")])
    efface("status", tmp_path / "run")
    efface("status", tmp_path / "run", "--cluster", profile(ray={}))
    assert queried == ["none", "test"]


NO_TOKENS = {
    "a private key": "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXktdjEAAAAA\n-----END",
    "credentials": "[default]\naws_secret_access_key = abc\n",
    "a token of the hub": "hf_" + "a" * 34,
    "nothing": "",
    "two words": "one two",
    "a header more": "token\r\nX-Other: 1",
    "a long file": "x" * 10_000,
    "no text": "\xff\xfe",
}


@pytest.mark.parametrize("what", NO_TOKENS)
def test_a_file_that_holds_no_token_is_not_sent(what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    file = tmp_path / "token"
    file.write_text(NO_TOKENS[what], encoding="latin-1")
    with pytest.raises(UserError, match=r"does not look like a token|no token can be read there"):
        _token(RaySettings(token_file=str(file)))
    file.write_text("0123abcd" * 8 + "\n")
    assert _token(RaySettings(token_file=str(file))) == "0123abcd" * 8
