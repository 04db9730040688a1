"""Five fruits: siblings with a stalk or a leaf that differ in outline and number."""

import numpy as np

from efface.miniature.shapes import Patch, Shape, arc_points, disc, ellipse, polygon, stroke


def apple() -> Shape:
    t = np.linspace(0, 2 * np.pi, 60)
    dip_above = 0.22 * np.exp(-(((t - 1.5 * np.pi) / 0.42) ** 2))
    dip_below = 0.1 * np.exp(-(((t - 0.5 * np.pi) / 0.35) ** 2))
    radius = 0.84 - dip_above - dip_below
    outline = Patch(np.stack([radius * np.cos(t), 0.16 + radius * 0.96 * np.sin(t)], axis=1))
    leaf = ellipse(0.36, -0.8, 0.34, 0.15, "leaf", turn=-20)
    return [outline, stroke([(0, -0.45), (0.06, -0.95)], 0.12, "brown"), leaf]


def pear() -> Shape:
    belly = arc_points(0, 0.38, 0.62, 0.6, -35, 215)
    neck = arc_points(0, -0.35, 0.3, 0.34, 180, 360)
    return [stroke([(0, -0.6), (0.08, -1.0)], 0.12, "brown"), Patch(np.concatenate([belly, neck]))]


def banana() -> Shape:
    outer = arc_points(0, -0.55, 0.98, 1.3, 10, 170)
    inner = arc_points(0, -0.7, 0.78, 0.8, 170, 10)
    (right_x, right_y), (left_x, left_y) = outer[0], outer[-1]
    tips = [disc(right_x - 0.08, right_y - 0.05, 0.15, "brown"), disc(left_x + 0.08, left_y - 0.05, 0.15, "brown")]
    return [*tips, Patch(np.concatenate([outer, inner]))]


def cherry() -> Shape:
    stalks = [
        stroke([(-0.5, 0.3), (-0.3, -0.4), (0.15, -0.9)], 0.09, "brown"),
        stroke([(0.5, 0.45), (0.42, -0.3), (0.15, -0.9)], 0.09, "brown"),
    ]
    leaf = polygon([(0.15, -0.9), (-0.3, -0.98), (-0.6, -0.72), (-0.25, -0.6)], "leaf")
    return [*stalks, leaf, disc(-0.5, 0.48, 0.43), disc(0.5, 0.52, 0.43)]


def grape() -> Shape:
    rows = [(-0.36, (-0.58, -0.2, 0.2, 0.58)), (0.0, (-0.4, 0.0, 0.4)), (0.36, (-0.2, 0.2)), (0.7, (0.0,))]
    berries = [disc(x, y, 0.27) for y, xs in rows for x in xs]
    return [stroke([(0, -0.45), (0, -1.0)], 0.12, "brown"), ellipse(0.3, -0.78, 0.32, 0.17, "leaf", turn=15), *berries]


DRAWINGS = {"apple": apple, "pear": pear, "banana": banana, "cherry": cherry, "grape": grape}
