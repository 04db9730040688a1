"""Small copies of images, many in one WebP picture (a sprite), so that one file can show tens of thousands.

The size of a thumbnail follows from how many there are and how many bytes they may take. Where even the smallest do not
fit, the first ones are kept: callers give the images in the order of their importance.
"""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from PIL import Image

SIDES = (128, 96, 64, 48, 32)
"""Pixels of a thumbnail, the largest that fits is taken."""
COLUMNS, ROWS = 16, 16
"""Thumbnails in one sprite."""
QUALITY = 60
TRIAL = 48
"""Images by which the bytes of all are estimated."""


@dataclass(frozen=True)
class Sprites:
    """Thumbnails by the hash of their image."""

    side: int
    columns: int
    positions: Mapping[str, int]
    """Number of each thumbnail: in sprite `n // (COLUMNS * ROWS)`, row by row from the left."""
    pictures: tuple[bytes, ...]
    """WebP."""
    left_out: int
    """Images for whose thumbnail there was no space."""
    missing: frozenset[str] = frozenset()
    """Hashes of wanted images that are not there."""

    def encoded(self) -> list[str]:
        """The pictures in base64."""
        return [base64.b64encode(picture).decode() for picture in self.pictures]


def make_sprites(wanted: Sequence[str], images: Iterable[tuple[str, bytes]], max_bytes: int) -> Sprites:
    """Thumbnails of the `wanted` images (hashes, the most important first), of those that `images` holds as PNG.

    The sprites take about `max_bytes` at most, as WebP.
    """
    order = {sha: i for i, sha in enumerate(dict.fromkeys(wanted))}
    small = _shrunk(images, order)
    kept = sorted(small, key=order.__getitem__)
    side, fitting = _fit([small[sha] for sha in kept], max_bytes)
    kept = kept[:fitting]
    pictures = tuple(
        _encoded([small[sha] for sha in kept[start : start + COLUMNS * ROWS]], side)
        for start in range(0, len(kept), COLUMNS * ROWS)
    )
    positions = {sha: i for i, sha in enumerate(kept)}
    return Sprites(side, COLUMNS, positions, pictures, len(small) - len(kept), frozenset(order.keys() - small.keys()))


def _shrunk(images: Iterable[tuple[str, bytes]], order: Mapping[str, int]) -> dict[str, Image.Image]:
    """The wanted images, at most as large as a thumbnail may be."""
    side = SIDES[0] if len(order) < 2000 else SIDES[2]
    found = {}
    for sha, png in images:
        if sha in order and sha not in found:
            found[sha] = _thumbnail(Image.open(io.BytesIO(png)).convert("RGB"), side)
    return found


def _thumbnail(image: Image.Image, side: int) -> Image.Image:
    """The image, no larger than `side` pixels either way; a smaller one as it is."""
    if max(image.size) > side:
        scale = side / max(image.size)
        size = max(1, round(image.width * scale)), max(1, round(image.height * scale))
        image = image.resize(size, Image.Resampling.LANCZOS)
    return image


def _fit(images: Sequence[Image.Image], max_bytes: int) -> tuple[int, int]:
    """The side of a thumbnail, and how many there may be."""
    if not images:
        return SIDES[0], 0
    trial = images[:: max(1, len(images) // TRIAL)][:TRIAL]
    largest = max(max(image.size) for image in trial)
    for side in (side for side in SIDES if side <= largest or side == SIDES[-1]):
        each = len(_encoded(trial, side)) / len(trial)
        if each * len(images) <= max_bytes or side == SIDES[-1]:
            return side, min(len(images), int(max_bytes / each))
    raise AssertionError("the smallest side is always taken")


def _encoded(images: Sequence[Image.Image], side: int) -> bytes:
    rows = -(-len(images) // COLUMNS)
    sprite = Image.new("RGB", (COLUMNS * side, rows * side), "#808080")
    for i, image in enumerate(images):
        sprite.paste(_thumbnail(image, side), (i % COLUMNS * side, i // COLUMNS * side))
    buffer = io.BytesIO()
    sprite.save(buffer, format="WEBP", quality=QUALITY, method=2)
    return buffer.getvalue()
