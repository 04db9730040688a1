"""What a judge is: it says of an image whether a concept is in it. A kind of judge is a config and a class to load.

    @JUDGES.register("clip")
    class ClipJudge:
        Config = ClipConfig

        @classmethod
        def load(cls, name: str, config: ClipConfig, device: str | torch.device) -> "ClipJudge": ...

One file each in `eval/judges/`, or an entry point of the group `efface.judges`. A judge itself is a YAML file, of ours
in `configs/judges/`: its `kind`, and the fields of that kind's config (`judge_spec.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Protocol, runtime_checkable

import numpy as np
from pydantic import Field, StringConstraints

from efface.concepts.concept import Concept
from efface.config_files import StrictModel
from efface.registry import Registry

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Verdict:
    """`present` is None, and `score` NaN, where the judge's answer could not be read.

    score: probability in [0, 1] that the requested concept is in the image.
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
        """One verdict per image: is `concepts[i]` in `images[i]`? images: uint8, (N, H, W, 3)."""


@runtime_checkable
class ThresholdJudge(Judge, Protocol):
    """A judge that can judge a concept only once a threshold was fitted on images of the base (`calibration.py`).

    Its config says so too, by `fitted`.
    """

    needs_thresholds: bool
    """Whether they are to be fitted; not where its YAML gives one for all concepts.

    A judge of which some concepts have thresholds of its own all the same says which: `fixed`, name -> threshold.
    """

    def scores(self, images: np.ndarray, concepts: Sequence[Concept]) -> list[float]:
        """The score of each image for its concept, which needs no threshold."""

    def calibrated(self, thresholds: Mapping[str, float]) -> Judge:
        """The same judge with a threshold for each concept name, and another version."""


Source = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


@dataclass(frozen=True)
class JudgeWeights:
    """A judge's model: where it lies (package:FOLDER, a folder, or a hub id), and the torch dtype it is loaded in."""

    source: str
    dtype: str = "float32"


class JudgeConfig(StrictModel):
    """What a judge's YAML says beside its `kind`. Every field has a description."""

    calibration_images: int = Field(
        20, ge=1, le=1000, description="images of each concept on which it is measured before its verdicts count"
    )

    @property
    def fitted(self) -> bool:
        """Whether thresholds are fitted before that, on as many images again."""
        return False

    @property
    def weights(self) -> JudgeWeights | None:
        """The model to be there before anything is judged; None: the judge has none."""
        return None

    @property
    def identity(self) -> str:
        """What else decides its verdicts, such as the version of a library; "": nothing."""
        return ""


class JudgeKind(Protocol):
    """A class of judges; importing it, which a plan does, loads no library of models."""

    Config: type[JudgeConfig]

    def load(self, name: str, config: Any, device: str | torch.device) -> Judge:
        """The judge called `name`, in memory. Raises UserError where its model cannot be loaded."""


JUDGES: Registry[JudgeKind] = Registry("kind of judge", "efface.judges", package="efface.eval.judges")
"""Kinds of judges, one file each."""


def check_template(text: str, name: str) -> str:
    """The text, which holds {name} once and no other braces. Raises ValueError."""
    rest = text.replace(f"{{{name}}}", "", 1)
    if rest == text or "{" in rest or "}" in rest:
        raise ValueError(f"the text should hold {{{name}}} once and no other braces")
    return text
