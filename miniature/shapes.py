"""Drawings as data: a shape is a list of `Patch`es in painter's order, in a box of about [-1, 1] x [-1, 1].

x grows to the right and y downwards. A patch names the *role* of its colour ("main", "leaf", "glass", ...), never
a colour: the style decides how roles become paint (`efface.miniature.styles`). All coordinates are float64 arrays
of shape (points, 2), so one affine map places a whole shape.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Points = np.ndarray
Shape = list["Patch"]


@dataclass(frozen=True)
class Patch:
    """A filled polygon (`width` 0) or an open stroke of `width` (in the shape's units) along `points`."""

    points: Points
    role: str = "main"
    width: float = 0.0


def polygon(points: Sequence[tuple[float, float]], role: str = "main") -> Patch:
    return Patch(np.array(points, dtype=float), role)


def stroke(points: Sequence[tuple[float, float]], width: float, role: str = "line") -> Patch:
    return Patch(np.array(points, dtype=float), role, width)


def rectangle(left: float, top: float, right: float, bottom: float, role: str = "main") -> Patch:
    return polygon([(left, top), (right, top), (right, bottom), (left, bottom)], role)


def ellipse(cx: float, cy: float, rx: float, ry: float, role: str = "main", turn: float = 0.0) -> Patch:
    """An ellipse of half-axes `rx`, `ry`, turned clockwise by `turn` degrees."""
    return Patch(arc_points(cx, cy, rx, ry, 0.0, 360.0, turn), role)


def disc(cx: float, cy: float, radius: float, role: str = "main") -> Patch:
    return ellipse(cx, cy, radius, radius, role)


def arc_points(
    cx: float, cy: float, rx: float, ry: float, start: float, end: float, turn: float = 0.0, count: int = 40
) -> Points:
    """`count` points of an ellipse's arc from `start` to `end` degrees (clockwise from the right)."""
    angle = np.radians(np.linspace(start, end, count))
    tilt = np.radians(turn)
    x, y = rx * np.cos(angle), ry * np.sin(angle)
    return np.stack([cx + x * np.cos(tilt) - y * np.sin(tilt), cy + x * np.sin(tilt) + y * np.cos(tilt)], axis=1)


def mirrored(patch: Patch) -> Patch:
    """The patch reflected about the vertical axis."""
    return Patch(patch.points * np.array([-1.0, 1.0]), patch.role, patch.width)


def both(patch: Patch) -> Shape:
    """The patch and its mirror image."""
    return [patch, mirrored(patch)]
