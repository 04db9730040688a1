"""What a method states about its own cost: passes of a batch as rows, and the images made before the first step.

One row is one latent with one prompt. A method's `cost` stands in its own file, beside the loss that it describes;
memory (`cost/memory.py`) and operations (`cost/flops.py`) are estimated from it, so no table of methods is needed.
"""

from dataclasses import dataclass

from efface.models.recipe import Recipe


@dataclass(frozen=True)
class BaseImages:
    """Images that the base makes before the first step; those in a cache are not made again."""

    recipe: Recipe
    per_concept: int = 0
    """For each concept to forget."""
    per_set_concept: int = 0
    """For each concept of the concept set, once for all jobs that share a cache."""
    encoded: bool = False
    """Whether the VAE makes latents of them."""
    encoder_weights: int = 0
    """Weights of the image encoder that describes them."""


@dataclass(frozen=True)
class Cost:
    """What one batch takes, and what comes before the first; a closed form takes nothing of it."""

    trained_rows: int = 0
    """Rows of the pass with a gradient."""
    frozen_rows: int = 0
    """Rows of the largest pass without one: a step of a roll-out, or the teacher's."""
    mean_frozen_rows: float = 0.0
    """Rows of all passes without a gradient in a batch, on average."""
    mean_search_rows: float = 0.0
    """Rows of all passes before a step with a gradient to the conditioning (an adversary's), on average."""
    text_rows: int = 0
    """Prompts in the pass of the text encoder with a gradient, where that is what is trained."""
    latent_sizes: tuple[int, ...] = ()
    """Sides that the latents' height and width are drawn from; empty: the base's own."""
    images: BaseImages | None = None
