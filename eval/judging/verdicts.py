"""The one way from images to verdicts: a judge sees those that are evidence, and only an answer that is one counts."""

from collections.abc import Sequence

import numpy as np

from efface.concepts.concept import Concept
from efface.eval.judge import UNREADABLE, Judge, Verdict
from efface.eval.judging.image_errors import ImageError


def verdicts(
    judge: Judge, images: np.ndarray, concepts: Sequence[Concept], errors: Sequence[ImageError | None]
) -> list[Verdict]:
    """One verdict an image, unreadable for those with an error, which the judge does not see.

    So is a verdict whose score is no number. images: uint8 (N, H, W, 3).
    """
    sound = [i for i, error in enumerate(errors) if error is None]
    found = [UNREADABLE] * len(errors)
    if sound:
        for i, verdict in zip(sound, judge.judge(images[sound], [concepts[i] for i in sound]), strict=True):
            found[i] = verdict if np.isfinite(verdict.score) else UNREADABLE
    return found
