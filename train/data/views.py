"""Views of a training image, as the authors of CA augment theirs: mirrored, shrunk onto grey, or enlarged and cropped.

A view comes with the region of the latents that shows the image, and with words for its caption.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from efface.train.seeds import integer

Augmentation = Literal["none", "flip", "zoom"]

FAR, NEAR = ("a far away ", "very small "), ("zoomed in ", "close up ")


@dataclass(frozen=True)
class View:
    """How an image of `size` pixels is shown in as many."""

    size: int
    flip: bool
    scale: int  # pixels that the image is resized to
    top: int  # where it is pasted, or cropped where it is larger
    left: int

    def pixels(self, image: np.ndarray) -> np.ndarray:
        """The view of a uint8 image (size, size, 3): fp32 in [-1, 1], 0 where no image is."""
        whole = Image.fromarray(image[:, ::-1] if self.flip else image)
        resized = np.asarray(whole.resize((self.scale, self.scale), Image.Resampling.LANCZOS))
        scaled = (resized / 127.5 - 1).astype(np.float32)
        rows, columns = (slice(start, start + min(self.scale, self.size)) for start in (self.top, self.left))
        if self.scale > self.size:
            return scaled[rows, columns]
        view = np.zeros((self.size, self.size, 3), np.float32)
        view[rows, columns] = scaled
        return view

    def region(self, latent_size: int) -> Tensor:
        """Ones where the latents (…, latent_size, latent_size) show the image alone, (1, h, w): a rim of one is left
        out, as the authors do, also where the view is the whole image."""
        if self.scale > self.size:
            return torch.ones(1, latent_size, latent_size)
        pixels, place = self.size // latent_size, torch.arange(latent_size)
        rows, columns = (
            (place > start // pixels) & (place < (start + self.scale) // pixels - 1) for start in (self.top, self.left)
        )
        return (rows[:, None] & columns[None, :]).float()[None]

    def hints(self) -> tuple[str, ...]:
        """Words of which one is put before the caption, "" where there are none."""
        if self.scale > self.size:
            return NEAR
        return FAR if self.scale < 0.6 * self.size else ("",)


def draw_view(augment: Augmentation, size: int, rng: torch.Generator) -> View:
    """A random view: half of them are mirrored; with `zoom` 66 % are shrunk to a third or more, the others enlarged to
    1.2 to 1.4 times."""
    flip = bool(integer(2, rng))
    if augment != "zoom":
        return View(size, flip, size, 0, 0)
    shrunk = float(torch.rand((), generator=rng)) < 0.66
    low, high = (size // 3, size + 1) if shrunk else (int(1.2 * size), int(1.4 * size))
    scale = low + integer(high - low, rng)
    top, left = (integer(abs(size - scale) + 1, rng) for _ in "yx")
    return View(size, flip, scale, top, left)
