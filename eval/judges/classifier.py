"""Kind `classifier`: a closed-set image classification model whose labels are concepts.

Multi-label models give each label its own probability (sigmoid); single-label ones share one out (softmax).
Where several labels mean one concept, the multi-label score is the highest of theirs and the single-label
score their sum.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from efface.concepts.concept import Concept, fold
from efface.errors import UserError, did_you_mean
from efface.eval.judge import JUDGES, JudgeConfig, JudgeWeights, Source, Verdict
from efface.eval.judging.judge_files import batches, judge_version, load_model, load_processor, padded, weights_sha256


class ClassifierConfig(JudgeConfig):
    """The settings of a classifier."""

    source: Source = Field(
        description="a transformers image classification model: package:FOLDER, a folder, or a hub id"
    )
    threshold: float = Field(0.5, gt=0, lt=1, description="probability from which a concept counts as present")
    labels: dict[str, str] = Field({}, description="label of the model -> concept, where the two names differ")
    batch_size: int = Field(32, ge=1, description="images per forward pass")

    @property
    def weights(self) -> JudgeWeights:
        return JudgeWeights(self.source)


@JUDGES.register("classifier")
class Classifier:
    """Judges the concepts its model has labels for."""

    Config = ClassifierConfig

    def __init__(
        self,
        name: str,
        config: ClassifierConfig,
        model: Any,
        processor: Any,
        columns: Mapping[str, Sequence[int]],
    ) -> None:
        """columns: folded concept name -> the model's outputs that mean it."""
        self.name = name
        self.config = config
        self.model = model
        self.processor = processor
        self.columns = columns
        self.multi_label = model.config.problem_type == "multi_label_classification"
        self.weights = weights_sha256(model)
        self.version = judge_version("classifier", config, self.weights)

    @classmethod
    def load(cls, name: str, config: ClassifierConfig, device: str | torch.device) -> "Classifier":
        from transformers import AutoImageProcessor, AutoModelForImageClassification

        model = load_model(AutoModelForImageClassification, config.source, device)
        if model.config.problem_type == "regression":
            raise UserError(f"{config.source}: is of the problem_type 'regression', should be a classification")
        processor = load_processor(AutoImageProcessor, config.source)
        labels = {int(column): str(label) for column, label in model.config.id2label.items()}
        return cls(name, config, model, processor, label_columns(name, labels, config.labels))

    def check(self, concepts: Iterable[Concept]) -> None:
        unknown = [concept.name for concept in concepts if self._columns(concept) is None]
        if unknown:
            hint = did_you_mean(unknown[0], sorted(self.columns))
            raise UserError(f"judge '{self.name}' has no label for {', '.join(unknown)}: {hint}")

    def judge(self, images: np.ndarray, concepts: Sequence[Concept]) -> list[Verdict]:
        self.check(concepts)
        scores: list[float] = []
        for rows in batches(len(images), self.config.batch_size):
            probabilities = self._probabilities(images[rows])
            scores += [
                concept_score(probabilities[i], self._columns(concept) or (), self.multi_label)
                for i, concept in enumerate(concepts[rows])
            ]
        return [Verdict(score >= self.config.threshold, score) for score in scores]

    def _columns(self, concept: Concept) -> Sequence[int] | None:
        names = map(fold, (concept.name, *concept.aliases))
        return next((self.columns[name] for name in names if name in self.columns), None)

    @torch.inference_mode()
    def _probabilities(self, images: np.ndarray) -> list[Tensor]:
        """Of every label, (labels,), for each image of a batch."""
        batch = padded(images, self.config.batch_size)
        pixels = self.processor(images=list(batch), return_tensors="pt")["pixel_values"]
        logits = self.model(pixel_values=pixels.to(self.model.device)).logits.float().cpu()
        # Row by row: of a whole batch the last few elements are computed by other instructions than the rest.
        return [row.sigmoid() if self.multi_label else row.softmax(dim=0) for row in logits[: len(images)]]


def concept_score(probabilities: Tensor, columns: Sequence[int], multi_label: bool) -> float:
    """Probability of the concept that all `columns` mean, from one image's label probabilities (labels,)."""
    chosen = probabilities[list(columns)].double()
    return min(1.0, float(chosen.max() if multi_label else chosen.sum()))


def label_columns(name: str, labels: Mapping[int, str], renamed: Mapping[str, str]) -> dict[str, list[int]]:
    """Folded concept name -> output columns. Raises UserError where the model lacks a renamed label."""
    known = set(labels.values())
    for label in renamed:
        if label not in known:
            raise UserError(f"judge '{name}': labels: the model has no label '{label}', {did_you_mean(label, known)}")
    columns: dict[str, list[int]] = {}
    for column, label in sorted(labels.items()):
        columns.setdefault(fold(renamed.get(label, label)), []).append(column)
    return columns
