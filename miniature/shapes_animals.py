"""Five animal heads seen from the front: siblings that differ in ears, outline of the face and muzzle."""

from efface.miniature.shapes import Patch, Shape, arc_points, both, disc, ellipse, polygon, stroke


def _eyes(x: float, y: float, radius: float) -> Shape:
    return [*both(disc(x, y, radius, "black"))]


def cat() -> Shape:
    ears = both(polygon([(-0.78, 0.0), (-0.82, -0.98), (-0.12, -0.5)]))
    inner = both(polygon([(-0.66, -0.3), (-0.7, -0.74), (-0.36, -0.5)], "light"))
    whiskers = [
        *both(stroke([(0.35, 0.32), (1.0, 0.18)], 0.07)),
        *both(stroke([(0.35, 0.44), (1.0, 0.52)], 0.07)),
    ]
    face = ellipse(0, 0.15, 0.84, 0.72)
    nose = polygon([(-0.15, 0.26), (0.15, 0.26), (0, 0.44)], "black")
    return [*ears, *inner, face, *_eyes(0.34, -0.02, 0.15), *whiskers, nose]


def dog() -> Shape:
    ears = both(ellipse(-0.76, 0.1, 0.26, 0.68, "dark", turn=10))
    face = ellipse(0, -0.05, 0.66, 0.8)
    muzzle = ellipse(0, 0.4, 0.46, 0.42, "white")
    tongue = Patch(arc_points(0, 0.6, 0.19, 0.36, 0, 180), "pink")
    return [face, *ears, tongue, muzzle, *_eyes(0.27, -0.25, 0.13), ellipse(0, 0.22, 0.22, 0.15, "black")]


def rabbit() -> Shape:
    ears = both(ellipse(-0.3, -0.5, 0.19, 0.52, turn=-8))
    inner = both(ellipse(-0.3, -0.48, 0.09, 0.38, "pink", turn=-8))
    teeth = polygon([(-0.13, 0.62), (0.13, 0.62), (0.13, 0.88), (-0.13, 0.88)], "white")
    face = ellipse(0, 0.4, 0.58, 0.52)
    return [*ears, *inner, face, *_eyes(0.25, 0.26, 0.12), ellipse(0, 0.5, 0.12, 0.09, "pink"), teeth]


def fox() -> Shape:
    ears = both(polygon([(-0.86, -0.25), (-0.9, -1.0), (-0.2, -0.52)]))
    tips = both(polygon([(-0.84, -0.62), (-0.9, -1.0), (-0.56, -0.77)], "black"))
    face = polygon([(-0.95, -0.1), (-0.6, -0.55), (0.6, -0.55), (0.95, -0.1), (0.12, 0.92), (-0.12, 0.92)])
    cheeks = both(polygon([(-0.95, -0.08), (-0.3, 0.12), (-0.06, 0.88), (-0.12, 0.92)], "white"))
    return [*ears, *tips, face, *cheeks, *_eyes(0.36, -0.14, 0.13), disc(0, 0.84, 0.17, "black")]


def mouse() -> Shape:
    ears = both(disc(-0.56, -0.46, 0.46))
    inner = both(disc(-0.56, -0.46, 0.27, "pink"))
    face = ellipse(0, 0.3, 0.55, 0.56)
    return [*ears, *inner, face, *_eyes(0.22, 0.16, 0.11), disc(0, 0.74, 0.15, "black")]


DRAWINGS = {"cat": cat, "dog": dog, "rabbit": rabbit, "fox": fox, "mouse": mouse}
