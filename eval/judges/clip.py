"""Kind `clip`: zero-shot, by how much more an image is like "an image of X" than like "an image without X".

    score = softmax(logit_scale * [cos(image, with X), cos(image, without X)])[0]

These scores mean different things for different concepts, so a verdict needs a threshold: one per concept,
fitted on images of the unedited base (`calibration.py`), or one for all from the YAML. Without either it
refuses to judge.
"""

from collections.abc import Iterable, Mapping, Sequence
from hashlib import sha256
from typing import Any

import numpy as np
import torch
from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import normalize

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.eval.judge import JUDGES, JudgeConfig, JudgeWeights, Source, Verdict, check_template
from efface.eval.judging.judge_files import batches, judge_version, load_model, load_processor, padded, weights_sha256


class ClipConfig(JudgeConfig):
    """The settings of a CLIP judge."""

    source: Source = Field(description="a CLIP model: package:FOLDER, a folder, or a hub id")
    threshold: float | None = Field(None, gt=0, lt=1, description="for all concepts, instead of a calibration")
    present: str = Field("an image of {concept}", description="the text for an image that shows {concept}")
    absent: str = Field("an image without {concept}", description="the text for one that does not")
    batch_size: int = Field(32, ge=1, description="images per forward pass")

    @field_validator("present", "absent")
    @classmethod
    def _names_the_concept(cls, text: str) -> str:
        return check_template(text, "concept")

    @property
    def fitted(self) -> bool:
        return self.threshold is None

    @property
    def weights(self) -> JudgeWeights:
        return JudgeWeights(self.source)


@JUDGES.register("clip")
class ClipJudge:
    """Judges every concept it has a threshold for. `thresholds`: concept name -> probability in [0, 1]."""

    Config = ClipConfig

    def __init__(
        self,
        name: str,
        config: ClipConfig,
        model: Any,
        processor: Any,
        thresholds: Mapping[str, float] | None = None,
    ) -> None:
        self.name = name
        self.config = config
        self.model = model
        self.processor = processor
        self.thresholds = dict(thresholds or {})
        self.needs_thresholds = config.fitted
        self.weights = weights_sha256(model)
        self.version = self._version()
        self._text_embeds: dict[str, Tensor] = {}
        """Embeddings of a concept's two texts, by its words in them."""

    @classmethod
    def load(cls, name: str, config: ClipConfig, device: str | torch.device) -> "ClipJudge":
        from transformers import CLIPModel, CLIPProcessor

        model = load_model(CLIPModel, config.source, device)
        return cls(name, config, model, load_processor(CLIPProcessor, config.source))

    def calibrated(self, thresholds: Mapping[str, float]) -> "ClipJudge":
        """The same judge with these thresholds, and another version."""
        judge = object.__new__(ClipJudge)
        judge.__dict__ |= self.__dict__ | {"thresholds": dict(thresholds)}
        judge.version = judge._version()
        return judge

    def check(self, concepts: Iterable[Concept]) -> None:
        unknown = [concept.name for concept in concepts if self._threshold(concept) is None]
        if unknown:
            raise UserError(
                f"judge '{self.name}' has no threshold for {', '.join(dict.fromkeys(unknown))}: "
                "calibrate it on images of the base, or give a threshold in its YAML"
            )

    def judge(self, images: np.ndarray, concepts: Sequence[Concept]) -> list[Verdict]:
        self.check(concepts)
        scores = self.scores(images, concepts)
        return [
            Verdict(score >= (self._threshold(concept) or 0.0), score)
            for score, concept in zip(scores, concepts, strict=True)
        ]

    @torch.inference_mode()
    def scores(self, images: np.ndarray, concepts: Sequence[Concept]) -> list[float]:
        """Probability of "with" against "without" for each image and its concept; needs no threshold."""
        numbers: dict[bytes, int] = {}
        """Of the images that differ, in turn: one that several concepts are looked for in is encoded once."""
        number = [numbers.setdefault(sha256(image.tobytes()).digest(), len(numbers)) for image in images]
        first = [number.index(n) for n in range(len(numbers))]
        encoded = [self._encode_images(images[first[rows]]) for rows in batches(len(first), self.config.batch_size)]
        seen = [image for batch in encoded for image in batch]
        scale = self.model.logit_scale.float().exp()
        return [
            float((scale * (self._encode_text(concept.question) @ seen[n])).softmax(dim=0)[0])
            for n, concept in zip(number, concepts, strict=True)
        ]

    def _encode_images(self, images: np.ndarray) -> Tensor:
        """Unit vectors (N, D) of a batch of images, computed with the last one repeated until it is full."""
        pixels = self.processor.image_processor(list(padded(images, self.config.batch_size)), return_tensors="pt")
        output = self.model.vision_model(pixels["pixel_values"].to(self.model.device))
        return normalize(self.model.visual_projection(output.pooler_output).float())[: len(images)]

    def _encode_text(self, concept: str) -> Tensor:
        """Unit vectors (2, D): the text with the concept, and the one without."""
        if concept not in self._text_embeds:
            texts = [text.format(concept=concept) for text in (self.config.present, self.config.absent)]
            tokens = self.processor.tokenizer(texts, return_tensors="pt", padding=True, truncation=True)
            output = self.model.text_model(**tokens.to(self.model.device))
            self._text_embeds[concept] = normalize(self.model.text_projection(output.pooler_output).float())
        return self._text_embeds[concept]

    def _threshold(self, concept: Concept) -> float | None:
        return self.thresholds.get(concept.name, self.config.threshold)

    def _version(self) -> str:
        return judge_version("clip", self.config, self.weights, thresholds=self.thresholds)
