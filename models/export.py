"""An edited model as a full diffusers folder, for everybody who knows nothing of deltas."""

import shutil
import tempfile
from pathlib import Path

import diffusers
from diffusers import StableDiffusionPipeline

from efface.errors import UserError
from efface.models.base import Base
from efface.models.delta import Delta


def export(base: Base, delta: Delta | None, folder: str | Path) -> None:
    """Write `base` with `delta` merged to a new `folder`, which `DiffusionPipeline.from_pretrained` loads.

    The folder appears whole or not at all; `base` is left as it was. Raises UserError where `folder` is taken
    or cannot be written, and for a delta that acts at sampling time only.
    """
    folder = Path(folder)
    if folder.exists():
        raise UserError(f"{folder}: exists already; name a new folder")
    if delta and delta.kind == "hook":
        raise UserError(f"delta {delta.id} acts at sampling time and changes no weight: there is nothing to export")
    scheduler = getattr(diffusers, base.scheduler_config["_class_name"]).from_config(base.scheduler_config)
    applied = base.applied
    base.swap(delta)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        unfinished = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        try:
            StableDiffusionPipeline(
                vae=base.vae,
                text_encoder=base.text_encoder,
                tokenizer=base.tokenizer,
                unet=base.unet,
                scheduler=scheduler,
                safety_checker=None,
                feature_extractor=None,
                requires_safety_checker=False,
            ).save_pretrained(unfinished)
            unfinished.chmod(0o755)
            unfinished.rename(folder)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be written ({error.strerror})") from None
    finally:
        base.swap(applied, force=True)
