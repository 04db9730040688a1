"""What a plan needs of the hub is fetched once; a busy hub is tried again; what is there is left alone."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from command import RunEfface

from efface.errors import UserError
from efface.launch.model_downloads import RETRY_DELAYS, RequiredModel, fetch, required_models
from efface.models.files.model_files import NotCached, locate

MODEL = RequiredModel("judge", "somebody/judge", ("*.json", "*.safetensors"))


class HubError(Exception):
    """An answer of the hub's that is no file."""

    def __init__(self, status: int, retry_after: str | None = None) -> None:
        super().__init__(f"{status} from the hub")
        headers = {"Retry-After": retry_after} if retry_after else {}
        self.response = type("Response", (), {"status_code": status, "headers": headers})()


class Hub:
    """A hub of one repository, and this machine's cache of it."""

    def __init__(self, cache: Path) -> None:
        self.folder = cache / "somebody--judge"
        self.cache = cache
        self.errors: list[Exception] = []
        self.fetched: list[list[str]] = []

    def snapshot_download(self, repository: str, *, allow_patterns: list[str], local_files_only: bool = False) -> str:
        if local_files_only:
            if not self.folder.is_dir():
                raise FileNotFoundError("no snapshot")
            return str(self.folder)
        if self.errors:
            raise self.errors.pop(0)
        self.fetched.append(allow_patterns)
        self.folder.mkdir(parents=True)
        for name in ("config.json", "model.safetensors"):
            (self.folder / name).write_text("{}")
        return str(self.folder)


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    made = Hub(tmp_path / "hub")
    monkeypatch.setattr("huggingface_hub.snapshot_download", made.snapshot_download)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(made.cache))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return made


def never(seconds: float) -> None:
    raise AssertionError("should not wait")


def test_what_is_missing_is_fetched_and_then_found_without_the_hub(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(NotCached):
        locate(MODEL.source, MODEL.files, fetch=False)
    assert fetch(MODEL, never) is True
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert locate(MODEL.source, MODEL.files, fetch=False) == hub.folder
    assert fetch(MODEL, never) is False
    assert hub.fetched == [["*.json", "*.safetensors"]]


def test_what_is_on_this_machine_needs_no_hub(hub: Hub, tmp_path: Path) -> None:
    assert fetch(RequiredModel("base", str(tmp_path), ()), never) is False
    assert fetch(RequiredModel("judge", "package:miniature/judge", ("*.json",)), never) is False
    assert hub.fetched == []


@pytest.mark.parametrize("error", [HubError(429), HubError(503), ConnectionError("reset"), TimeoutError()])
def test_a_busy_hub_is_called_again_later_and_later(
    hub: Hub, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    hub.errors = [error] * 3
    waits: list[float] = []
    assert fetch(MODEL, waits.append) is True
    assert waits == [1, 2, 4]
    assert caplog.messages == [
        "somebody/judge: being fetched",
        *(f"somebody/judge: the hub cannot serve it now, trying again in {wait} s" for wait in (1, 2, 4)),
    ]


def test_the_hub_says_how_long_to_wait(hub: Hub) -> None:
    hub.errors = [HubError(429, "30"), HubError(429, "99999")]
    waits: list[float] = []
    fetch(MODEL, waits.append)
    assert waits == [30, 300]


def test_the_cause_of_an_error_counts(hub: Hub) -> None:
    wrapped = FileNotFoundError("cannot find the snapshot")
    wrapped.__cause__ = HubError(502)
    hub.errors = [wrapped]
    waits: list[float] = []
    assert fetch(MODEL, waits.append) is True and waits == [1]


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_refusal_is_reported_at_once(hub: Hub, status: int) -> None:
    hub.errors = [HubError(status)]
    with pytest.raises(UserError, match=rf"^somebody/judge: cannot be fetched from the hub \({status} from the hub\)$"):
        fetch(MODEL, never)


def test_a_hub_that_stays_away_is_given_up(hub: Hub) -> None:
    hub.errors = [HubError(503)] * (len(RETRY_DELAYS) + 1)
    waits: list[float] = []
    with pytest.raises(UserError, match="503 from the hub"):
        fetch(MODEL, waits.append)
    assert waits == list(RETRY_DELAYS) and hub.fetched == []


def test_what_came_only_in_part_is_an_error(hub: Hub) -> None:
    """As where the hub is out of reach: its library gives the folder that a download before has left."""
    more = RequiredModel("judge", MODEL.source, (*MODEL.files, "tokenizer/*"))
    with pytest.raises(
        UserError, match=r"^somebody/judge: was fetched only in part, without tokenizer/\*; fetch it again$"
    ):
        fetch(more, never)


def test_offline_nothing_is_fetched(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it"):
        fetch(MODEL, never)


PROCESS = """
import os, sys, time
from pathlib import Path
import huggingface_hub
import huggingface_hub.constants
from efface.launch.model_downloads import RequiredModel, fetch

cache = Path(sys.argv[1])
folder = cache / "somebody--judge"

def snapshot_download(repository, *, allow_patterns, local_files_only=False):
    if local_files_only:
        if not (folder / "config.json").is_file():
            raise FileNotFoundError
        return str(folder)
    with (cache / "log").open("a") as log:
        log.write("fetched\\n")
    time.sleep(1)
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    return str(folder)

huggingface_hub.snapshot_download = snapshot_download
huggingface_hub.constants.HF_HUB_CACHE = str(cache)
huggingface_hub.constants.HF_HUB_OFFLINE = False
from efface.models.files.model_files import locate
(cache / f"ready-{os.getpid()}").write_text("")
while len(list(cache.glob("ready-*"))) < 2:
    time.sleep(0.01)
print(fetch(RequiredModel("judge", "somebody/judge", ("*.json",))))
"""


def test_of_two_processes_one_fetches_and_the_other_waits(tmp_path: Path) -> None:
    def start() -> "subprocess.Popen[str]":
        return subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path)], stdout=subprocess.PIPE, text=True)

    processes = [start(), start()]
    result = sorted(process.communicate(timeout=60)[0].splitlines() for process in processes)
    assert result == [["False"], ["True"]]
    assert (tmp_path / "log").read_text() == "fetched\n"


def test_a_campaign_needs_its_base_its_judges_and_the_bases_image_encoder(tmp_path: Path) -> None:
    campaign = {"name": "mine", "base": "sd-v1-4", "methods": [{"method": "uce"}]}
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**campaign, "evaluation": {"judges": ["llava-1.5-7b", "miniature"]}}))
    found = {model.source: model for model in required_models([str(file)])}
    assert list(found) == [
        "CompVis/stable-diffusion-v1-4",
        "llava-hf/llava-1.5-7b-hf",
        "package:miniature/judge",
        "openai/clip-vit-large-patch14",
    ]
    assert "unet/diffusion_pytorch_model.safetensors" in found["CompVis/stable-diffusion-v1-4"].files


def test_a_model_needed_twice_is_one_need() -> None:
    base, clip = required_models(["sd-v1-4", "esd-ablation"])
    assert (base.purpose, clip.purpose) == ("base", "judge, image encoder")
    assert {"*.json", "*.safetensors", "model.safetensors"} <= set(clip.files)


def test_a_base_of_random_weights_needs_only_its_judge() -> None:
    assert "base" not in [model.purpose for model in required_models(["sd-v1-4-random"])]


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(UserError, match=r"unknown base 'sd-v1-5': did you mean 'sd-v1-4'\?"):
        required_models(["sd-v1-5"])


def test_prefetch_says_what_it_did(hub: Hub, monkeypatch: pytest.MonkeyPatch, efface: RunEfface) -> None:
    here = RequiredModel("base", "package:miniature/model", ())
    choose: Callable[[Any], list[RequiredModel]] = lambda names: [here, MODEL]  # noqa: E731
    monkeypatch.setattr("efface.launch.model_downloads.required_models", choose)
    result = efface("prefetch", "mine")
    assert result.err == "efface: somebody/judge: being fetched\n"
    assert result.out.splitlines() == [
        "base: package:miniature/model is there already",
        "judge: somebody/judge fetched",
    ]
