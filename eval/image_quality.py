"""Quality beside ERR: how well images fit their prompts (CLIP score), and how far they are from the base's (FID, KID).

    CLIP score = mean of max(0, 100 cos(image, prompt))         Hessel et al. 2021, scaled as torchmetrics does
    FID        = Frechet distance of two normal distributions   Heusel et al. 2017
    KID        = unbiased squared MMD, cubic polynomial kernel   Binkowski et al. 2018

FID and KID are torchmetrics' (extra `quality`), of features that any encoder gives. Their reference is the unedited
base on the same prompts and seeds: what an edit did to images that it should leave alone, and no realism. Numbers of
different features or numbers of images are not comparable; FID of few images is far too high, KID is not.
"""

from collections.abc import Sequence
from types import ModuleType

import numpy as np
import torch
from torch import Tensor, nn

from efface.errors import UserError
from efface.eval.judging.judge_files import batches, load_model, load_processor

BATCH = 32
KID_SUBSET, KID_SUBSETS = 1000, 100
"""Images of a subset, and how many are drawn where there are more images: torchmetrics' and clean-fid's."""


class ClipScore:
    """The CLIP score by the CLIP model at `source`. Raises UserError where it cannot be loaded."""

    def __init__(self, source: str, device: str | torch.device = "cpu") -> None:
        from transformers import CLIPModel, CLIPProcessor

        self.model = load_model(CLIPModel, source, device)
        self.processor = load_processor(CLIPProcessor, source)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, prompts: Sequence[str]) -> list[float]:
        """Of each image, uint8 (N, H, W, 3), and its prompt."""
        scores: list[float] = []
        for rows in batches(len(images), BATCH):
            pixels = self.processor.image_processor(list(images[rows]), return_tensors="pt")["pixel_values"]
            tokens = self.processor.tokenizer(list(prompts[rows]), return_tensors="pt", padding=True, truncation=True)
            seen = self.model.vision_model(pixels.to(self.model.device)).pooler_output
            said = self.model.text_model(**tokens.to(self.model.device)).pooler_output
            cosine = torch.cosine_similarity(
                self.model.visual_projection(seen).float(), self.model.text_projection(said).float()
            )
            scores += (100 * cosine).clamp(min=0).tolist()
        return scores


class _Given(nn.Module):
    """Features as they are, for metrics that ask a network for them."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.num_features = size

    def forward(self, features: Tensor) -> Tensor:
        return features


def frechet_distance(reference: Tensor, features: Tensor) -> float:
    """FID of features (N, D) and (M, D), N and M >= 2. Raises UserError without torchmetrics."""
    fid = _torchmetrics().fid.FrechetInceptionDistance(feature=_Given(features.shape[1]))
    fid.update(reference, real=True)
    fid.update(features, real=False)
    return float(fid.compute())


def kernel_distance(reference: Tensor, features: Tensor) -> float:
    """KID, from the same draws of subsets whenever it is computed. Raises UserError without torchmetrics."""
    count = min(len(reference), len(features))
    subsets = KID_SUBSETS if count > KID_SUBSET else 1
    kid = _torchmetrics().kid.KernelInceptionDistance(
        feature=_Given(features.shape[1]), subsets=subsets, subset_size=min(KID_SUBSET, count)
    )
    kid.update(reference, real=True)
    kid.update(features, real=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return float(kid.compute()[0])


def _torchmetrics() -> ModuleType:
    try:
        import torchmetrics.image.fid
        import torchmetrics.image.kid
    except ImportError as error:
        raise UserError(f"FID and KID need torchmetrics: pip install 'efface[quality]' ({error})") from None
    return torchmetrics.image
