"""Negative guidance: what ESD, and the erasers that descend from it, want predicted for a concept."""

from torch import Tensor


def esd_target(origin: Tensor, concept: Tensor, uncond: Tensor, eta: float) -> Tensor:
    """`origin - eta (concept - uncond)`, all of them the frozen original's noise predictions of one shape.

    `origin` is `uncond` in ESD's paper (eq. 7), and the prediction under `erase_from` where that is given.
    """
    return origin - eta * (concept - uncond)
