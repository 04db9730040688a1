"""Five plants: four blooms on a stem that differ in their head, and a cactus."""

import numpy as np

from efface.miniature.shapes import Patch, Shape, arc_points, both, disc, ellipse, polygon, rectangle, stroke


def _stem(top: float) -> Shape:
    leaves = [ellipse(-0.28, 0.72, 0.3, 0.12, "leaf", turn=25), ellipse(0.28, 0.62, 0.3, 0.12, "leaf", turn=-25)]
    return [rectangle(-0.06, top, 0.06, 1.0, "leaf"), *leaves]


def daisy() -> Shape:
    turns = np.arange(8) * 45.0 + 22.5
    petals = [
        ellipse(0.46 * np.cos(np.radians(t)), -0.3 + 0.46 * np.sin(np.radians(t)), 0.28, 0.14, turn=t) for t in turns
    ]
    return [*_stem(0.2), *petals, disc(0, -0.3, 0.2, "yellow")]


def sunflower() -> Shape:
    angles = np.radians(np.arange(28) * 360 / 28)
    radii = np.where(np.arange(28) % 2 == 0, 0.74, 0.5)
    petals = Patch(np.stack([radii * np.cos(angles), -0.26 + radii * np.sin(angles)], axis=1))
    return [*_stem(0.3), petals, disc(0, -0.26, 0.42, "brown")]


def tulip() -> Shape:
    crown = [(-0.52, -0.28), (-0.56, -0.95), (-0.24, -0.55), (0, -1.0), (0.24, -0.55), (0.56, -0.95), (0.52, -0.28)]
    cup = Patch(np.concatenate([np.array(crown), arc_points(0, -0.3, 0.52, 0.52, 0, 180)]))
    leaves = both(polygon([(-0.05, 1.0), (-0.62, 0.1), (-0.2, 0.5), (0.0, 0.8)], "leaf"))
    return [rectangle(-0.06, 0.1, 0.06, 1.0, "leaf"), *leaves, cup]


def rose() -> Shape:
    turns = np.radians(np.arange(5) * 72 - 90)
    outer = [disc(0.36 * np.cos(t), -0.3 + 0.36 * np.sin(t), 0.36, "dark") for t in turns]
    angle = np.linspace(0, 4.5 * np.pi, 60)
    radius = 0.05 + 0.0252 * angle
    spiral = np.stack([radius * np.cos(angle), -0.3 + radius * np.sin(angle)], axis=1)
    return [*_stem(0.2), *outer, disc(0, -0.3, 0.48), Patch(spiral, "line", 0.1)]


def cactus() -> Shape:
    arms = [
        stroke([(0, 0.25), (-0.62, 0.25), (-0.62, -0.35)], 0.26, "main"),
        stroke([(0, 0.0), (0.62, 0.0), (0.62, -0.6)], 0.26, "main"),
    ]
    column = Patch(np.concatenate([arc_points(0, -0.72, 0.22, 0.24, 180, 360), np.array([[0.22, 0.6], [-0.22, 0.6]])]))
    pot = polygon([(-0.5, 0.5), (0.5, 0.5), (0.36, 1.0), (-0.36, 1.0)], "brown")
    ribs = [stroke([(0, -0.8), (0, 0.45)], 0.06)]
    return [*arms, column, *ribs, pot]


DRAWINGS = {"daisy": daisy, "sunflower": sunflower, "tulip": tulip, "rose": rose, "cactus": cactus}
