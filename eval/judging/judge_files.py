"""The model of a judge: its files found, loaded whole, and hashed, so that a verdict can name exactly who gave it."""

import hashlib
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from efface.errors import UserError
from efface.eval.judge import JudgeConfig
from efface.files import content_id
from efface.models.files.folder_identity import FILES
from efface.models.files.model_files import locate
from efface.models.files.untrusted_models import check_whole_model
from efface.models.sampling.progress_bars import no_progress_bars

logger = logging.getLogger(__name__)


def load_model(auto_class: Any, source: str, device: str | torch.device, **options: Any) -> Any:
    """The model at `source` (package:FOLDER, a folder, or a hub id) in eval mode; safetensors only.

    Raises UserError where it cannot be loaded, or where its file lacks weights, which would then be
    random.
    """
    folder = _checked(source)
    options = {"dtype": torch.float32, **options}  # else weights kept in fp16 would stay so
    model, report = _as_user_error(
        source,
        lambda: auto_class.from_pretrained(
            folder, use_safetensors=True, output_loading_info=True, trust_remote_code=False, **options
        ),
    )
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise UserError(
            f"{source}: the weights lack '{missing[0]}' ({len(missing)} missing), so this is no trained judge"
        )
    if report["unexpected_keys"]:  # of no effect, but a sign that the config is not that of the weights
        unused = sorted(report["unexpected_keys"])
        logger.warning("%s: '%s' is no part of this model (%d tensors unused)", source, unused[0], len(unused))
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise UserError(f"{source}: '{name}' holds numbers that are not finite, so this is no trained judge")
    return model.to(device).eval().requires_grad_(False)


def load_processor(auto_class: Any, source: str) -> Any:
    """The image processor, tokenizer or both that belong to the model at `source`."""
    folder = _checked(source)
    return _as_user_error(source, lambda: auto_class.from_pretrained(folder, trust_remote_code=False))


def _checked(source: str) -> Path:
    folder = locate(source, FILES)
    check_whole_model(folder, source)
    return folder


def weights_sha256(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers, by name: 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def judge_version(kind: str, config: JudgeConfig, weights: str, **more: Any) -> str:
    """`Judge.version`: 16 hex digits over all that decides a verdict. weights: their SHA-256; more: JSON values."""
    settings = config.model_dump(exclude={"source", "batch_size", "calibration_images"})
    return content_id({"weights": weights, "spec": {"kind": kind, **settings}, **more})


def batches(count: int, size: int) -> Sequence[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]


def padded(images: np.ndarray, size: int) -> np.ndarray:
    """images (N, …), and the last one again up to `size`: in batches of one shape an image's score does not depend on
    how many are judged beside it, for another shape may be computed in another order."""
    return np.concatenate([images, np.repeat(images[-1:], size - len(images), axis=0)])


def _as_user_error(source: str, load: Callable[[], Any]) -> Any:
    try:
        with no_progress_bars():
            return load()
    except Exception as error:  # whatever a library stumbles over in a stranger's files
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(f"{source}: not a model this judge can load ({reason})") from None
