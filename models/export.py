"""An edited model as a full diffusers folder, for everybody who knows nothing of deltas.

Beside the weights lies `efface.json`, which says what was erased. Folders are written so that old loaders read them as
well as new ones: diffusers from 0.31 and transformers from 4, which papers' own code pins.
"""

import copy
import json
import shutil
import uuid
from pathlib import Path
from typing import Any, TypeVar

import diffusers
import torch
from diffusers import AutoencoderKL, SchedulerMixin, StableDiffusionPipeline, UNet2DConditionModel
from safetensors.torch import load_file, save_file
from transformers import CLIPTextModel, CLIPTokenizer

from efface.errors import UserError
from efface.files import local_path, open_to_readers, write_json
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.sampling.progress_bars import no_progress_bars
from efface.models.sampling.sampler_hooks import static, stock_advice

PROVENANCE = "efface.json"
"""The id and the provenance of the delta that is merged in a folder."""

Module = TypeVar("Module", bound=torch.nn.Module)


def export(
    base: Base,
    delta: Delta | None,
    folder: str | Path,
    dtype: torch.dtype = torch.float32,
    merge_adapters: bool = False,
) -> None:
    """Write `base` with `delta` merged to a new `folder`, which `DiffusionPipeline.from_pretrained` loads.

    dtype: of the weights in its files; a loader that is given no dtype computes in fp32 all the same.
    merge_adapters: of a delta that weighs adapters by the prompt, merge them at full strength; the provenance says so.
    The folder appears whole or not at all; `base` is left as it was. Raises UserError where `folder` is taken
    or cannot be written, for a delta that acts at sampling time only, or changes nothing, and for a scheduler that
    diffusers does not know.
    """
    folder = local_path(folder)
    check_new_folder(folder)
    if delta and delta.kind == "hook" and merge_adapters:
        delta = static(delta)
    if delta and delta.kind == "hook":
        raise UserError(
            f"delta {delta.id} acts at sampling time and changes no weight, so there is nothing to export: "
            f"{stock_advice(delta)}"
        )
    if delta and not delta.has_effect(base):
        raise UserError(f"delta {delta.id} changes no weight of base '{base.spec.name}', which nothing was erased from")
    _scheduler(base)  # refused before anything is written
    applied = base.applied
    base.swap(delta)
    try:
        # Not one of `tempfile`, which nobody but its owner could read.
        unfinished = folder.parent / f".{folder.name[:60]}.{uuid.uuid4().hex[:8]}"
        unfinished.mkdir(parents=True)
        try:
            _save(pipeline_of(base, dtype), unfinished)
            if delta:
                write_json(unfinished / PROVENANCE, {"delta": delta.id, "provenance": delta.provenance})
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        base.swap(applied, force=True)


def _in_dtype(module: Module, dtype: torch.dtype) -> Module:
    """The module, or a copy of it in another dtype: the base keeps its bits."""
    if dtype == torch.float32:
        return module
    # torch's own, for that of diffusers warns of each component.
    return torch.nn.Module.to(copy.deepcopy(module), dtype)


def check_new_folder(folder: Path) -> None:
    """Raises UserError where there is something already, even an empty folder, or there cannot be a folder."""
    try:
        exists = folder.exists() or folder.is_symlink()
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    if exists:
        raise UserError(f"{folder}: exists already; name a new folder")


def write_pipeline(
    folder: Path,
    *,
    vae: AutoencoderKL,
    text_encoder: CLIPTextModel,
    tokenizer: CLIPTokenizer,
    unet: UNet2DConditionModel,
    scheduler: SchedulerMixin,
) -> None:
    """The parts as a diffusers folder that `from_pretrained` loads without any argument, in releases old and new."""
    _save(_pipeline(vae=vae, text_encoder=text_encoder, tokenizer=tokenizer, unet=unet, scheduler=scheduler), folder)


def pipeline_of(base: Base, dtype: torch.dtype = torch.float32) -> StableDiffusionPipeline:
    """A stock pipeline of the base as it is now, with the base's own scheduler. In fp32 it shares the base's weights.

    Raises UserError for a scheduler that diffusers does not know.
    """
    return _pipeline(
        vae=_in_dtype(base.vae, dtype),
        text_encoder=_in_dtype(base.text_encoder, dtype),
        tokenizer=base.tokenizer,
        unet=_in_dtype(base.unet, dtype),
        scheduler=_scheduler(base),
    )


def _pipeline(**parts: Any) -> StableDiffusionPipeline:
    return StableDiffusionPipeline(**parts, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _save(pipeline: StableDiffusionPipeline, folder: Path) -> None:
    with no_progress_bars():
        pipeline.save_pretrained(folder)
    _name_text_encoder_as_ever(folder / "text_encoder")
    # Before release 5, transformers' CLIPTokenizer reads these two and no tokenizer.json.
    pipeline.tokenizer.backend_tokenizer.model.save(str(folder / "tokenizer"))
    open_to_readers(folder)


def _name_text_encoder_as_ever(folder: Path) -> None:
    """`text_model.` before the names of all tensors, and fp32 as the dtype to load them in.

    transformers from 5.6 writes the names without, where older releases find nothing by them and go on with random
    weights; and it loads in the dtype of the config, while diffusers loads the UNet and the VAE in fp32.
    """
    weights, config = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(weights)
    named = {f"text_model.{name.removeprefix('text_model.')}": tensor for name, tensor in tensors.items()}
    save_file(named, weights, metadata={"format": "pt"})
    config_data = json.loads(config.read_text(encoding="utf-8"))
    config.write_text(json.dumps({**config_data, "dtype": "float32"}, indent=2) + "\n", encoding="utf-8")


def _scheduler(base: Base) -> SchedulerMixin:
    """The scheduler that the base's own config describes."""
    name = base.scheduler_config.get("_class_name")
    known = getattr(diffusers, name, None) if isinstance(name, str) and name.endswith("Scheduler") else None
    where = f"base '{base.spec.name}': scheduler_config.json"
    if "_class_name" not in base.scheduler_config:
        raise UserError(f"{where} has no _class_name, should name the base's scheduler, such as PNDMScheduler")
    if known is None:
        raise UserError(f"{where} names the scheduler {name!r}, which diffusers {diffusers.__version__} does not have")
    try:
        return known.from_config(base.scheduler_config)
    except Exception as error:  # whatever a class says of a package that it lacks, or of values it cannot use
        raise UserError(f"{where}: no {name} can be made of it ({' '.join(str(error).split())})") from None
