"""Five vehicles seen from the side: siblings that share wheels or windows and differ in outline."""

from efface.miniature.shapes import Shape, disc, polygon, rectangle, stroke


def _wheel(x: float, y: float, radius: float) -> Shape:
    return [disc(x, y, radius, "black"), disc(x, y, radius * 0.45, "white")]


def car() -> Shape:
    cabin = polygon([(-0.6, 0.0), (-0.36, -0.5), (0.36, -0.5), (0.64, 0.0)])
    windows = [
        polygon([(-0.46, -0.04), (-0.28, -0.38), (-0.06, -0.38), (-0.06, -0.04)], "glass"),
        polygon([(0.06, -0.04), (0.06, -0.38), (0.28, -0.38), (0.47, -0.04)], "glass"),
    ]
    body = polygon([(-1.0, 0.42), (-0.98, 0.05), (-0.6, -0.04), (0.64, -0.04), (0.98, 0.1), (1.0, 0.42)])
    return [cabin, *windows, body, *_wheel(-0.55, 0.42, 0.26), *_wheel(0.55, 0.42, 0.26)]


def bus() -> Shape:
    body = rectangle(-1.0, -0.72, 1.0, 0.5)
    windows = [rectangle(x, -0.52, x + 0.36, -0.06, "glass") for x in (-0.88, -0.42, 0.04, 0.5)]
    stripe = rectangle(-1.0, 0.12, 1.0, 0.26, "white")
    return [body, *windows, stripe, *_wheel(-0.55, 0.52, 0.23), *_wheel(0.55, 0.52, 0.23)]


def truck() -> Shape:
    cargo = rectangle(-1.0, -0.8, 0.32, 0.42, "white")
    cab = polygon([(0.38, 0.42), (0.38, -0.36), (0.72, -0.36), (1.0, 0.02), (1.0, 0.42)])
    window = polygon([(0.5, 0.0), (0.5, -0.24), (0.68, -0.24), (0.86, 0.0)], "glass")
    bed = rectangle(-1.0, 0.32, 1.0, 0.46, "black")
    return [cargo, cab, window, bed, *_wheel(-0.62, 0.52, 0.25), *_wheel(0.62, 0.52, 0.25)]


def train() -> Shape:
    smoke = [disc(0.62, -0.82, 0.17, "white"), disc(0.32, -0.88, 0.12, "white")]
    chimney = polygon([(0.46, -0.1), (0.42, -0.6), (0.82, -0.6), (0.78, -0.1)], "black")
    boiler = rectangle(-0.25, -0.2, 0.95, 0.4)
    cabin = rectangle(-0.95, -0.72, -0.2, 0.4)
    roof = rectangle(-1.0, -0.86, -0.12, -0.7, "dark")
    window = rectangle(-0.78, -0.54, -0.38, -0.14, "glass")
    wheels = [disc(x, 0.5, 0.21, "black") for x in (-0.62, -0.1, 0.4, 0.8)]
    rail = stroke([(-1.0, 0.82), (1.0, 0.82)], 0.14, "brown")
    nose = polygon([(0.9, 0.4), (0.9, 0.1), (1.0, 0.7), (0.9, 0.7)], "dark")
    return [*smoke, chimney, boiler, cabin, roof, window, nose, rail, *wheels]


def boat() -> Shape:
    mast = rectangle(-0.05, -0.95, 0.05, 0.35, "brown")
    sails = [
        polygon([(0.1, -0.9), (0.1, 0.2), (0.85, 0.2)], "white"),
        polygon([(-0.1, -0.7), (-0.1, 0.2), (-0.7, 0.2)], "white"),
    ]
    hull = polygon([(-1.0, 0.35), (1.0, 0.35), (0.62, 0.9), (-0.62, 0.9)])
    return [mast, *sails, hull]


DRAWINGS = {"car": car, "bus": bus, "truck": truck, "train": train, "boat": boat}
