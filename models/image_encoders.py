"""Image encoders: pictures to feature vectors, for distances between sets of images and to prompts."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForImageClassification, CLIPVisionModelWithProjection

from efface.errors import UserError
from efface.models.files.model_files import abbreviated, locate
from efface.models.files.untrusted_models import check_model_files
from efface.models.image_preprocessing import read_preprocessing
from efface.models.sampling.progress_bars import no_progress_bars

FILES = ("config.json", "model.safetensors", "preprocessor_config.json")

ImageEncoder = Callable[[np.ndarray], Tensor]


def load_image_encoder(spec: str, device: str | torch.device = "cpu", batch_size: int = 32) -> ImageEncoder:
    """A function from uint8 (N, H, W, 3) to features, fp32 (N, D) on the CPU.

    `spec` is a transformers folder, 'package:FOLDER' or a hub id. A CLIP gives its projected image embedding,
    not normalised; any image classifier gives the pooled features its last layer reads. Raises UserError
    where the model is not to be had, or is neither.
    """
    folder = locate(spec, FILES)
    check_model_files(folder, spec)
    preprocess = read_preprocessing(folder)
    features = _features(spec, folder, torch.device(device))

    @torch.no_grad()
    def encode(images: np.ndarray) -> Tensor:
        batches = torch.from_numpy(np.ascontiguousarray(images)).split(batch_size)
        return torch.cat([features(preprocess(batch.to(device))).float().cpu() for batch in batches])

    return encode


def _features(spec: str, folder: Path, device: torch.device) -> Callable[[Tensor], Tensor]:
    """Pixels (B, 3, h, w), normalised, to features (B, D)."""
    options: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    try:
        kind = AutoConfig.from_pretrained(folder, **options).model_type
        loader: Any = CLIPVisionModelWithProjection if kind.startswith("clip") else AutoModelForImageClassification
        with no_progress_bars():
            model, report = loader.from_pretrained(
                folder, use_safetensors=True, dtype=torch.float32, output_loading_info=True, **options
            )
    except Exception as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(f"{spec}: neither a CLIP nor an image classifier of transformers ({reason})") from None
    used = "" if isinstance(model, CLIPVisionModelWithProjection) else f"{model.base_model_prefix}."
    missing = sorted(name for name in report["missing_keys"] if name.startswith(used))
    if missing:  # which transformers would fill at random
        raise UserError(f"{spec}: the weights lack {abbreviated(missing)}")
    model = model.to(device).eval().requires_grad_(False)
    if isinstance(model, CLIPVisionModelWithProjection):
        return lambda pixels: model(pixels).image_embeds
    return lambda pixels: _pooled(model.base_model(pixels))


def _pooled(output: Any) -> Tensor:
    """Pooled features (B, D): the model's own pooling, or of a transformer without one its first token."""
    pooled = getattr(output, "pooler_output", None)
    return output.last_hidden_state[:, 0] if pooled is None else pooled.flatten(1)
