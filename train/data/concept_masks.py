"""Where in its images a concept is, as masks of the latents.

`detector` is what MACE's authors do: the best box of an open-vocabulary detector, made a mask by a segmenter, both
loaded by transformers from the hub or a folder of the user's. `attention` needs nothing else: the pixels that the base
itself attends to the concept's words from.
"""

from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor
from torch.nn.functional import interpolate

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.models.attention_maps import CrossAttentionMaps
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.sampling.decoding import decode
from efface.train.data.concept_sentences import Sentences
from efface.train.data.conditions import without_article
from efface.train.data.latents import Posterior
from efface.train.method import MethodConfig
from efface.train.seeds import generator, normal

Box = list[float]
"""Left, top, right and bottom, in pixels."""

TIMESTEP = 300  # of 1000: shapes are there, and are still being decided on
THRESHOLD = 0.3  # of a detector's score, as the authors have it


class MaskConfig(MethodConfig):
    """The settings of a method that looks at a concept's own pixels."""

    masks: Literal["detector", "attention", "none"] = Field(
        "detector",
        description="where the concept is: by detector and segmenter (authors), by the base's own attention, or "
        "everywhere, as for styles in any case",
    )
    detector: str = Field("IDEA-Research/grounding-dino-base", description="hub id or folder of a zero-shot detector")
    segmenter: str = Field("facebook/sam-vit-huge", description="hub id or folder of a segmenter that takes boxes")

    def models(self) -> dict[str, str]:
        return {"detector": self.detector, "segmenter": self.segmenter} if self.masks == "detector" else {}

    def departure(self) -> dict[str, str]:
        """What the provenance says of masks that are not the authors'."""
        if self.masks == "detector":
            return {}
        return {"variant": f"masks: {self.masks}, not the authors' detector and segmenter"}


def attention_masks(base: Base, images: Posterior, conditioning: Conditioning, positions: Tensor) -> Tensor:
    """(N, h, w), bool: pixels from which the base attends to `positions` (tokens,) of `conditioning`, one row.

    The mean over all layers and heads at one timestep; a pixel counts above the middle of the least and the most.
    """
    scheduler = DDPMScheduler.from_config(base.scheduler_config)
    height, width = images.mean.shape[2:]
    found, maps = [], CrossAttentionMaps(base.denoiser)
    for index in range(len(images.mean)):
        noise = normal(tuple(images.mean[:1].shape), generator(0, "masks", index), base.device)
        latents = images.latents(torch.tensor([index]), torch.zeros_like(noise))
        timestep = torch.tensor([TIMESTEP * scheduler.config.num_train_timesteps // 1000], device=base.device)
        with torch.no_grad(), maps:
            base.denoiser(scheduler.add_noise(latents, noise, timestep), timestep, conditioning)
        found.append(torch.stack([_at(layer[0], positions, height, width) for layer in maps.by_layer.values()]).mean(0))
    maps.close()
    attention = torch.stack(found)
    least, most = attention.amin(dim=(1, 2), keepdim=True), attention.amax(dim=(1, 2), keepdim=True)
    return attention > (least + most) / 2


def _at(probabilities: Tensor, positions: Tensor, height: int, width: int) -> Tensor:
    """Attention (heads, pixels, tokens) to `positions` as (h, w) of the latents."""
    attended = probabilities[:, :, positions].sum(dim=-1).mean(dim=0)
    scale = (height * width / len(attended)) ** 0.5
    small = attended.view(1, 1, round(height / scale), round(width / scale))
    return interpolate(small, size=(height, width), mode="bilinear", align_corners=False)[0, 0]


def detector_masks(
    images: np.ndarray,
    detect: Callable[[np.ndarray], list[tuple[float, Box]]],
    segment: Callable[[np.ndarray, Box], np.ndarray],
    size: tuple[int, int],
) -> Tensor:
    """(N, h, w), bool, of uint8 `images` (N, H, W, 3): the segment (H, W) in the box of the best score.

    An image in which nothing is detected counts as a whole.
    """
    masks = []
    for image in images:
        boxes = detect(image)
        mask = segment(image, max(boxes)[1]) if boxes else np.ones(image.shape[:2], bool)
        masks.append(interpolate(torch.from_numpy(mask.astype(np.float32))[None, None], size=size)[0, 0] > 0.5)
    return torch.stack(masks)


def load_detector(config: MaskConfig, label: str, device: torch.device) -> tuple[Any, Any]:
    """The two functions that `detector_masks` takes. Raises UserError where a model cannot be had."""
    from PIL import Image
    from transformers import AutoModelForMaskGeneration, AutoProcessor, pipeline

    try:
        detector: Any = pipeline("zero-shot-object-detection", model=config.detector, device=device)
        segmenter: Any = AutoModelForMaskGeneration.from_pretrained(config.segmenter).to(device)
        processor: Any = AutoProcessor.from_pretrained(config.segmenter)
    except (OSError, ValueError) as error:
        raise UserError(
            f"masks: detector needs the models {config.detector} and {config.segmenter}, of which one cannot be loaded "
            f"({str(error).splitlines()[0]}); get them, or say masks: attention"
        ) from None

    def detect(image: np.ndarray) -> list[tuple[float, Box]]:
        found = detector(Image.fromarray(image), candidate_labels=[f"{label}."], threshold=THRESHOLD)
        return [(one["score"], [float(one["box"][side]) for side in ("xmin", "ymin", "xmax", "ymax")]) for one in found]

    @torch.no_grad()
    def segment(image: np.ndarray, box: Box) -> np.ndarray:
        inputs = processor(images=Image.fromarray(image), input_boxes=[[box]], return_tensors="pt").to(device)
        made = segmenter(**inputs).pred_masks.cpu()
        sizes = inputs["original_sizes"].cpu(), inputs["reshaped_input_sizes"].cpu()
        masks: Tensor = processor.image_processor.post_process_masks(made, *sizes)[0]
        return np.asarray(masks[0].any(dim=0))  # what any of its proposals covers, as the authors have it

    return detect, segment


def concept_masks(base: Base, config: MaskConfig, concept: Concept, images: Posterior, sentences: Sentences) -> Tensor:
    """(N, h, w), bool, by the config, of images that were made from the first of the sentences."""
    size = images.mean.shape[2], images.mean.shape[3]
    if config.masks == "none" or concept.kind == "style":
        return torch.ones(len(images.mean), *size, dtype=torch.bool, device=base.device)
    if config.masks == "attention":
        return attention_masks(base, images, sentences.conditioning[0], sentences.positions[0])
    pixels, _ = decode(base, images.mean * images.scaling_factor)
    detect, segment = load_detector(config, without_article(concept.phrase), base.device)
    return detector_masks(pixels, detect, segment, size).to(base.device)
