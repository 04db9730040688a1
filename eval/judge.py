"""A judge says of an image whether the asked concept is there. Judges are YAML in `configs/judges/`, found
by name.

kind: classifier   an image classification model whose labels are concepts        (classifier.py)
kind: clip         CLIP, zero-shot, calibrated on images of the base               (clip.py)
kind: vlm          a vision-language model asked a yes/no question                 (vlm.py)
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from efface.concepts.concept import Concept
from efface.config_files import find_config, list_configs, parse, read_yaml
from efface.errors import UserError, did_you_mean

KINDS = ("classifier", "clip", "vlm")


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


def judge_names() -> list[str]:
    """The judges shipped in `configs/judges/`."""
    return list_configs("judges")


def load_judge(
    name_or_path: str | Path, device: str | torch.device = "cpu", calibration: str | Path | None = None
) -> Judge:
    """The judge of a YAML file, in memory on `device`; `calibration` is a file that `calibration.calibrate`
    made.

    Raises UserError where the YAML is wrong, the model cannot be loaded, or the calibration is another
    judge's.
    """
    path = find_config("judges", name_or_path)
    data = read_yaml(path)
    kind = data.get("kind")
    if kind not in KINDS:
        raise UserError(f"{path}: kind: '{kind}' is no kind of judge, {did_you_mean(str(kind), KINDS)}")
    # Each kind brings its own part of transformers.
    judge: Judge
    if kind == "classifier":
        from efface.eval.judges.classifier import ClassifierSpec, load_classifier

        judge = load_classifier(path.stem, parse(ClassifierSpec, data, str(path)), device)
    elif kind == "clip":
        from efface.eval.judges.clip import ClipSpec, load_clip

        judge = load_clip(path.stem, parse(ClipSpec, data, str(path)), device)
    else:
        from efface.eval.judges.vlm import VlmSpec, load_vlm

        judge = load_vlm(path.stem, parse(VlmSpec, data, str(path)), device)
    if calibration is None:
        return judge
    from efface.eval.calibration import calibrated, read_calibration

    return calibrated(judge, read_calibration(calibration))
