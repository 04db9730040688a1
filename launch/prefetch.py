"""`efface prefetch`: what a plan or a base needs from the hub, fetched once per machine before any worker starts.

Afterwards everything runs with HF_HUB_OFFLINE=1. Processes that fetch the same model at once wait for one another.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import UserError
from efface.files import slug

if TYPE_CHECKING:
    from efface.models.base import BaseSpec

DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between two tries, where the hub is busy or cannot be reached for the moment."""
LONGEST_WAIT = 300.0
"""Seconds, if the hub itself says how long to wait."""


@dataclass(frozen=True)
class Need:
    """A model, and which of its files."""

    purpose: str
    source: str
    files: tuple[str, ...]


def prefetch(names: Sequence[str]) -> None:
    """Fetch what campaigns and bases need, and say what was there already."""
    for need in needs(names):
        fetched = fetch(need)
        print(f"{need.purpose}: {need.source} {'fetched' if fetched else 'is there already'}", flush=True)


def needs(names: Sequence[str]) -> list[Need]:
    """Every model that the campaigns and bases `names` need, each once. Raises UserError for an unknown name."""
    from efface.cluster.campaign import read_campaign
    from efface.models.base import read_base

    found: dict[str, Need] = {}
    for name in names:
        campaign = read_campaign(name) if _is_campaign(name) else None
        base = read_base(campaign.base if campaign else name)
        judges = campaign.evaluation.judges if campaign else ()
        for need in _of_base(base, judges):
            known = found.get(need.source)
            if known:
                purpose = known.purpose if need.purpose in known.purpose else f"{known.purpose}, {need.purpose}"
                need = replace(known, purpose=purpose, files=tuple(dict.fromkeys((*known.files, *need.files))))
            found[need.source] = need
    return list(found.values())


def missing_sources(names: Sequence[str]) -> list[str]:
    """What of it is not on this machine."""
    return [need.source for need in needs(names) if not _is_here(need)]


def _is_here(need: Need) -> bool:
    from efface.models.locate import NotFetched, locate

    try:
        locate(need.source, need.files, fetch=False)
    except NotFetched:
        return False
    return True


def _is_campaign(name: str) -> bool:
    """Whether `name` is a campaign and not a base: both may be YAML files, and names of shipped ones."""
    from efface.strict import read_yaml, shipped

    path = Path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return "source" not in read_yaml(path)
    return name in shipped("campaigns")


def _of_base(base: "BaseSpec", judges: Sequence[str]) -> Iterator[Need]:
    from efface.eval.judges.identity import FILES as JUDGE_FILES
    from efface.models.base import RANDOM
    from efface.models.encoders import FILES as ENCODER_FILES
    from efface.models.locate import DIFFUSERS_FILES
    from efface.strict import find_config, read_yaml

    if not base.source.startswith(RANDOM):
        yield Need("base", base.source, DIFFUSERS_FILES)
    for judge in judges or ((base.judge,) if base.judge else ()):
        yield Need("judge", str(read_yaml(find_config("judges", judge)).get("source", "")), JUDGE_FILES)
    if base.image_encoder:
        yield Need("image encoder", base.image_encoder, ENCODER_FILES)


def fetch(need: Need, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Bring a model into the hub's cache; False where it was there. Raises UserError where it is not to be had."""
    from filelock import FileLock
    from huggingface_hub import constants

    if _is_here(need):
        return False
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{need.source}: is not in the hub's cache, and HF_HUB_OFFLINE forbids to fetch it; unset it")
    folder = Path(constants.HF_HUB_CACHE) / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}), set HF_HOME to a folder that can") from None
    with FileLock(folder / f"efface-{slug(need.source)}.lock"):
        if _is_here(need):
            return False
        _download(need, sleep)
    return True


def _download(need: Need, sleep: Callable[[float], None]) -> None:
    from huggingface_hub import snapshot_download

    from efface.models.locate import lacking, some

    print(f"{need.source}: being fetched", flush=True)
    for delay in (*DELAYS, None):
        try:
            folder = Path(snapshot_download(need.source, allow_patterns=list(need.files)))
            break
        except Exception as error:
            wait = _wait(error)
            if delay is None or wait is None:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(f"{need.source}: not to be had from the hub ({reason})") from None
            wait = min(max(delay, wait), LONGEST_WAIT)
            print(f"{need.source}: the hub cannot serve it now, another try in {wait:.0f} s", flush=True)
            sleep(wait)
    lacks = lacking(folder, need.files)
    if lacks:  # some troubles the hub's library passes over where there is a part already
        raise UserError(f"{need.source}: came only in part, without {some(lacks)}; fetch it once more")


def _wait(error: BaseException | None) -> float | None:
    """Seconds to wait at least before another try, or None where another try is of no use."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            status = int(response.status_code)
            asked = str(response.headers.get("Retry-After", ""))
            return (float(asked) if asked.isdigit() else 0.0) if status == 429 or status >= 500 else None
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"TransportError", "ConnectionError", "TimeoutError"}:  # httpx's, requests' and Python's own
            return 0.0
        error = error.__cause__ or error.__context__
    return None
