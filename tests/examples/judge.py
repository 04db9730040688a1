"""A judge that goes by colour: a concept is in an image where enough of its pixels are near the concept's colour.

kind: colour
colours: {cat: [220, 140, 40], bus: [200, 30, 30]}
"""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.eval.judge import JUDGES, JudgeConfig, Verdict
from efface.files import content_id


class ColourConfig(JudgeConfig):
    colours: dict[str, tuple[int, int, int]] = Field(description="concept -> red, green and blue, from 0 to 255")
    share: float = Field(0.1, gt=0, lt=1, description="share of the pixels from which a concept counts as present")


@JUDGES.register("colour")
class ColourJudge:
    """Looks for the colour of a concept."""

    Config = ColourConfig

    def __init__(self, name: str, config: ColourConfig) -> None:
        self.name, self.config = name, config
        self.version = content_id(config.model_dump(mode="json"))

    @classmethod
    def load(cls, name: str, config: ColourConfig, device: Any) -> "ColourJudge":
        return cls(name, config)

    def check(self, concepts: Iterable[Concept]) -> None:
        for concept in concepts:
            if concept.name not in self.config.colours:
                raise UserError(f"judge '{self.name}': colours has none for {concept.name}, should have one")

    def judge(self, images: np.ndarray, concepts: Sequence[Concept]) -> list[Verdict]:
        shares = [
            float((abs(image.astype(int) - self.config.colours[concept.name]) < 64).all(axis=-1).mean())
            for image, concept in zip(images, concepts, strict=True)
        ]
        return [Verdict(share >= self.config.share, share) for share in shares]
