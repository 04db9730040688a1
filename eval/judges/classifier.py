"""The classifier judge: a closed-set image classification model whose labels are concepts.

Multi-label models give each label its own probability (sigmoid); single-label ones share one out (softmax).
Where several labels mean one concept, the multi-label score is the highest of theirs and the single-label
score their sum.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from efface.concepts.concept import Concept, fold
from efface.errors import UserError, did_you_mean
from efface.eval.judge import Verdict
from efface.eval.judge_files import batches, load_model, load_processor, padded, weights_sha256
from efface.eval.judge_spec import ClassifierSpec
from efface.files import content_id


class Classifier:
    """Judges the concepts its model has labels for."""

    def __init__(
        self,
        name: str,
        spec: ClassifierSpec,
        model: Any,
        processor: Any,
        columns: Mapping[str, Sequence[int]],
    ) -> None:
        """columns: folded concept name -> the model's outputs that mean it."""
        self.name = name
        self.spec = spec
        self.model = model
        self.processor = processor
        self.columns = columns
        self.multi_label = model.config.problem_type == "multi_label_classification"
        self.weights = weights_sha256(model)
        self.version = content_id({"weights": self.weights, "spec": spec.model_dump(exclude={"source", "batch_size"})})

    def check(self, concepts: Iterable[Concept]) -> None:
        unknown = [concept.name for concept in concepts if self._columns(concept) is None]
        if unknown:
            hint = did_you_mean(unknown[0], sorted(self.columns))
            raise UserError(f"judge '{self.name}' has no label for {', '.join(unknown)}: {hint}")

    def judge(self, images: np.ndarray, concepts: Sequence[Concept]) -> list[Verdict]:
        self.check(concepts)
        scores: list[float] = []
        for rows in batches(len(images), self.spec.batch_size):
            probabilities = self._probabilities(images[rows])
            scores += [
                concept_score(probabilities[i], self._columns(concept) or (), self.multi_label)
                for i, concept in enumerate(concepts[rows])
            ]
        return [Verdict(score >= self.spec.threshold, score) for score in scores]

    def _columns(self, concept: Concept) -> Sequence[int] | None:
        names = map(fold, (concept.name, *concept.aliases))
        return next((self.columns[name] for name in names if name in self.columns), None)

    @torch.inference_mode()
    def _probabilities(self, images: np.ndarray) -> list[Tensor]:
        """Of every label, (labels,), for each image of a batch."""
        batch = padded(images, self.spec.batch_size)
        pixels = self.processor(images=list(batch), return_tensors="pt")["pixel_values"]
        logits = self.model(pixel_values=pixels.to(self.model.device)).logits.float().cpu()
        # Row by row: of a whole batch the last few elements are computed by other instructions than the rest.
        return [row.sigmoid() if self.multi_label else row.softmax(dim=0) for row in logits[: len(images)]]


def concept_score(probabilities: Tensor, columns: Sequence[int], multi_label: bool) -> float:
    """Probability of the concept that all `columns` mean, from one image's label probabilities (labels,)."""
    chosen = probabilities[list(columns)].double()
    return min(1.0, float(chosen.max() if multi_label else chosen.sum()))


def load_classifier(name: str, spec: ClassifierSpec, device: str | torch.device) -> Classifier:
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model = load_model(AutoModelForImageClassification, spec.source, device)
    processor = load_processor(AutoImageProcessor, spec.source)
    labels = {int(column): str(label) for column, label in model.config.id2label.items()}
    return Classifier(name, spec, model, processor, label_columns(name, labels, spec.labels))


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
