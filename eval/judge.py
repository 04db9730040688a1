"""A judge says of an image whether the asked concept is there. Judges are YAML in `configs/judges/`, found
by name.

kind: classifier   an image classification model whose labels are concepts        (classifier.py)
kind: clip         CLIP, zero-shot, calibrated on images of the base               (clip.py)
kind: vlm          a vision-language model asked a yes/no question                 (vlm.py)
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np

from efface.concepts.concept import Concept
from efface.eval.judge_spec import ClassifierSpec, ClipSpec, judge_name, read_judge

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Verdict:
    """`present` is None, and `score` NaN, where the judge's answer could not be read.

    score: probability in [0, 1] that the asked concept is in the image.
    """

    present: bool | None
    score: float


UNREADABLE = Verdict(None, float("nan"))


class Judge(Protocol):
    """`version` changes with the weights, the threshold, the labels and the question: 16 hex digits."""

    name: str
    version: str

    def check(self, concepts: Iterable[Concept]) -> None:
        """Raises UserError naming the concepts it cannot judge."""

    def judge(self, images: np.ndarray, concepts: Sequence[Concept]) -> list[Verdict]:
        """One verdict per image: is `asked[i]` in `images[i]`? images: uint8, (N, H, W, 3)."""


def load_judge(
    name_or_path: str | Path, device: str | torch.device = "cpu", calibration: str | Path | None = None
) -> Judge:
    """The judge of a YAML file, in memory on `device`; `calibration` is a file that `calibration.calibrate`
    made.

    Raises UserError where the YAML is wrong, the model cannot be loaded, or the calibration is another
    judge's.
    """
    spec, name = read_judge(name_or_path), judge_name(name_or_path)
    # Each kind brings its own part of transformers.
    judge: Judge
    if isinstance(spec, ClassifierSpec):
        from efface.eval.judges.classifier import load_classifier

        judge = load_classifier(name, spec, device)
    elif isinstance(spec, ClipSpec):
        from efface.eval.judges.clip import load_clip

        judge = load_clip(name, spec, device)
    else:
        from efface.eval.judges.vlm import load_vlm

        judge = load_vlm(name, spec, device)
    if calibration is None:
        return judge
    from efface.eval.calibration import calibrated, read_calibration

    return calibrated(judge, read_calibration(calibration))
