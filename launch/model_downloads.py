"""What a campaign or a base needs from the hub, fetched once per machine before any worker starts.

Afterwards everything runs with HF_HUB_OFFLINE=1. Processes that fetch the same model at once wait for one another.
"""

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from efface.errors import UserError
from efface.files import local_path, slug

if TYPE_CHECKING:
    from efface.cluster.campaign.spec import Campaign
    from efface.models.base import BaseSpec

logger = logging.getLogger(__name__)

RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0)
"""Seconds between two attempts, where the hub is busy or cannot be reached for the moment."""
MAX_RETRY_DELAY = 300.0
"""Seconds, if the hub itself says how long to wait."""


@dataclass(frozen=True)
class RequiredModel:
    """A model, and which of its files."""

    purpose: str
    source: str
    files: tuple[str, ...]


def required_models(names: Sequence[str]) -> list[RequiredModel]:
    """Every model that the campaigns and bases `names` need, each once. Raises UserError for an unknown name."""
    from efface.cluster.campaign.spec import read_campaign
    from efface.models.base import read_base

    found: dict[str, RequiredModel] = {}
    for name in names:
        campaign = read_campaign(name) if _is_campaign(name) else None
        base = read_base(campaign.base if campaign else name)
        judges = _judges(campaign, base) if campaign else ()
        for model in _models_of_base(base, judges):
            known = found.get(model.source)
            if known:
                purpose = known.purpose if model.purpose in known.purpose else f"{known.purpose}, {model.purpose}"
                model = replace(known, purpose=purpose, files=tuple(dict.fromkeys((*known.files, *model.files))))
            found[model.source] = model
    return list(found.values())


def _judges(campaign: "Campaign", base: "BaseSpec") -> tuple[str, ...]:
    """Those that the campaign or its concept set names; () where the base's own judges."""
    from efface.concepts.concept import load_concept_set

    named = campaign.concepts.set or base.concepts
    of_set = load_concept_set(named).judge if named and not campaign.evaluation.judges else None
    return (of_set,) if of_set else campaign.evaluation.judges


def missing_sources(names: Sequence[str]) -> list[str]:
    """Those of their models that are not on this machine."""
    return [model.source for model in required_models(names) if not _is_cached(model)]


def _is_cached(model: RequiredModel) -> bool:
    from efface.models.files.model_files import NotCached, locate

    try:
        locate(model.source, model.files, fetch=False)
    except NotCached:
        return False
    return True


def _is_campaign(name: str) -> bool:
    """Whether `name` is a campaign and not a base: both may be YAML files, and names of shipped ones."""
    from efface.config_files import list_configs, read_yaml

    path = local_path(name)
    if path.suffix in (".yaml", ".yml") and path.is_file():
        return "source" not in read_yaml(path)
    return name in list_configs("campaigns")


def _models_of_base(base: "BaseSpec", judges: Sequence[str]) -> Iterator[RequiredModel]:
    from efface.eval.judging.judge_spec import read_judge
    from efface.models.base import RANDOM
    from efface.models.files.folder_identity import FILES as JUDGE_FILES
    from efface.models.files.model_files import DIFFUSERS_FILES
    from efface.models.image_encoders import FILES as ENCODER_FILES

    if not base.source.startswith(RANDOM):
        yield RequiredModel("base", base.source, DIFFUSERS_FILES)
    for judge in judges or ((base.judge,) if base.judge else ()):
        if weights := read_judge(judge).config.weights:
            yield RequiredModel("judge", weights.source, JUDGE_FILES)
    if base.image_encoder:
        yield RequiredModel("image encoder", base.image_encoder, ENCODER_FILES)


def fetch(model: RequiredModel, sleep: Callable[[float], None] = time.sleep) -> bool:
    """Bring a model into the hub's cache; False where it was there. Raises UserError where it cannot be fetched."""
    from filelock import FileLock
    from huggingface_hub import constants

    if _is_cached(model):
        return False
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"{model.source}: is not in the hub's cache, and HF_HUB_OFFLINE forbids fetching it; unset it")
    folder = Path(constants.HF_HUB_CACHE) / ".locks"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror}), set HF_HOME to a folder that can") from None
    with FileLock(folder / f"efface-{slug(model.source)}.lock"):
        if _is_cached(model):
            return False
        _download(model, sleep)
    return True


def _download(model: RequiredModel, sleep: Callable[[float], None]) -> None:
    from huggingface_hub import snapshot_download

    from efface.models.files.model_files import abbreviated, missing_files

    logger.info("%s: being fetched", model.source)
    for delay in (*RETRY_DELAYS, None):
        try:
            folder = Path(snapshot_download(model.source, allow_patterns=list(model.files)))
            break
        except Exception as error:
            wait = _retry_after(error)
            if delay is None or wait is None:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                raise UserError(f"{model.source}: cannot be fetched from the hub ({reason})") from None
            wait = min(max(delay, wait), MAX_RETRY_DELAY)
            logger.info("%s: the hub cannot serve it now, trying again in %.0f s", model.source, wait)
            sleep(wait)
    missing = missing_files(folder, model.files)
    if missing:  # the hub's library passes over some errors where a part is there already
        raise UserError(f"{model.source}: was fetched only in part, without {abbreviated(missing)}; fetch it again")


def _retry_after(error: BaseException | None) -> float | None:
    """Seconds to wait at least before another attempt, or None where another would not help."""
    while error is not None:
        response = getattr(error, "response", None)
        if response is not None:
            status = int(response.status_code)
            retry_after = str(response.headers.get("Retry-After", ""))
            return (float(retry_after) if retry_after.isdigit() else 0.0) if status == 429 or status >= 500 else None
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & {"TransportError", "ConnectionError", "TimeoutError"}:  # httpx's, requests' and Python's own
            return 0.0
        error = error.__cause__ or error.__context__
    return None
