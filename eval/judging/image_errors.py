"""Images that are no evidence: a judge finds no concept in them, which is not the same as a concept forgotten.

    not finite   the model made values that are not numbers, as of overflow in fp16 or a diverged training
    one colour   every pixel is the same, within rounding
    blanked      every pixel is black: what a safety filter leaves of an image

Such an image has no verdict (`present` is null), whatever the judge would say, and is counted apart.
"""

from collections.abc import Collection, Mapping
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

ImageError = Literal["not finite", "one colour", "blanked"]
IMAGE_ERRORS: tuple[ImageError, ...] = get_args(ImageError)

SAME = 2
"""Grey levels by which pixels of one colour may differ: rounding moves each by one at most."""


def image_errors(images: np.ndarray, not_finite: Collection[int] = ()) -> list[ImageError | None]:
    """What is wrong with each image, None where nothing is. images: uint8 (N, H, W, 3); `not_finite`: positions."""
    low, high = images.min(axis=(1, 2)), images.max(axis=(1, 2))
    same = (high.astype(int) - low <= SAME).all(axis=1)
    black = (high == 0).all(axis=1)
    return [
        "not finite" if i in not_finite else "blanked" if black[i] else "one colour" if same[i] else None
        for i in range(len(images))
    ]


def broken_images(table: pa.Table) -> dict[ImageError, int]:
    """How many images of an image table have each error; those that none has are left out."""
    broken = table.filter(pc.is_valid(table["image_error"]))
    keys = ["model_id", "prompt_id", "seed", "recipe_id", "image_error"]
    found = broken.select(keys).group_by(keys).aggregate([])["image_error"].to_pylist()
    return {error: found.count(error) for error in IMAGE_ERRORS if error in found}


def counted(broken: Mapping[ImageError, int] | Mapping[str, int]) -> str:
    """`5 images are no evidence (3 not finite, 2 one colour)`."""
    some = ", ".join(f"{count} {error}" for error, count in broken.items())
    total = sum(broken.values())
    return f"{total} image{' is' if total == 1 else 's are'} no evidence ({some})"
