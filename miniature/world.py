"""The miniature world: scenes (what is to be seen) drawn at random and rendered to 64 x 64 RGB pictures.

A scene is a function of (seed, index) alone, and a picture is a function of its scene alone.
"""

from dataclasses import dataclass

import numpy as np

from efface.miniature import shapes_animals, shapes_fruit, shapes_plants, shapes_vehicles
from efface.miniature.shapes import Patch, Shape
from efface.miniature.styles import CANVAS, GROUND_COLORS, OBJECT_COLORS, PAINTERS, SIZE, Color, Paint
from efface.miniature.vocabulary import NAMES, OBJECTS, STYLES

DRAWINGS = shapes_animals.DRAWINGS | shapes_plants.DRAWINGS | shapes_vehicles.DRAWINGS | shapes_fruit.DRAWINGS
# The colours a thing usually has; half of the scenes use one of them.
USUAL_COLORS: dict[str, tuple[str, ...]] = {
    "cat": ("orange", "brown", "white"),
    "dog": ("brown", "orange"),
    "rabbit": ("white", "brown"),
    "fox": ("orange",),
    "mouse": ("white", "brown"),
    "daisy": ("white", "pink"),
    "sunflower": ("yellow", "orange"),
    "tulip": ("red", "purple", "pink"),
    "rose": ("red", "pink"),
    "cactus": ("green",),
    "car": ("red", "blue"),
    "bus": ("yellow", "red"),
    "truck": ("blue", "green"),
    "train": ("green", "red"),
    "boat": ("brown", "blue"),
    "apple": ("red", "green"),
    "pear": ("green", "yellow"),
    "banana": ("yellow",),
    "cherry": ("red",),
    "grape": ("purple", "green"),
}
SIZES: dict[str, tuple[float, float]] = {"small": (0.65, 0.71), "middle": (0.75, 0.82), "big": (0.87, 0.93)}
PLAIN_SHARE = 0.6


@dataclass(frozen=True)
class Scene:
    """One picture in words. `thing` is None for an empty ground; `style` is "plain" or a named style.

    `size` is a key of `SIZES`; `seed` draws what has no word: place, tilt, mirror image, shade.
    """

    thing: str | None
    style: str
    color: str
    ground: str
    size: str
    seed: int


def draw_scene(seed: int, index: int, thing: str | None = None, style: str | None = None) -> Scene:
    """The scene number `index` of the world `seed`; `thing` and `style` may be given."""
    rng = np.random.default_rng((seed, index))
    thing = thing or OBJECTS[int(rng.integers(len(OBJECTS)))].name
    if style is None:
        named = STYLES[int(rng.integers(len(STYLES)))].name
        style = "plain" if rng.random() < PLAIN_SHARE else named
    palette = USUAL_COLORS[thing] if rng.random() < 0.5 else tuple(OBJECT_COLORS)
    color = str(rng.choice(palette))
    ground = str(rng.choice([name for name in GROUND_COLORS if name != color]))
    size = str(rng.choice(list(SIZES), p=[0.3, 0.4, 0.3]))
    return Scene(thing, style, color, ground, size, int(rng.integers(2**31)))


def empty_scene(seed: int, index: int) -> Scene:
    """A ground with nothing on it, in any style."""
    scene = draw_scene(seed, index)
    return Scene(None, scene.style, scene.color, scene.ground, scene.size, scene.seed)


def _shaded(color: Color, rng: np.random.Generator) -> Color:
    values = np.clip(np.array(color) * rng.uniform(0.93, 1.05) + rng.uniform(-6, 6, 3), 0, 255)
    return int(values[0]), int(values[1]), int(values[2])


def _placed(shape: Shape, size: str, rng: np.random.Generator) -> Shape:
    """The shape in canvas pixels: scaled, a little tilted and stretched, perhaps mirrored, somewhere inside."""
    scale = rng.uniform(*SIZES[size])
    stretch = np.array([rng.uniform(0.94, 1.06), rng.uniform(0.94, 1.06)])
    if rng.random() < 0.5:
        stretch[0] = -stretch[0]
    tilt = np.radians(rng.uniform(-6, 6))
    turn = np.array([[np.cos(tilt), -np.sin(tilt)], [np.sin(tilt), np.cos(tilt)]])
    room = 0.97 - scale
    center = rng.uniform(-room, room, 2)
    unit = CANVAS / 2
    width = scale * unit
    return [Patch((p.points * stretch @ turn.T * scale + center + 1.0) * unit, p.role, p.width * width) for p in shape]


def render(scene: Scene) -> np.ndarray:
    """The picture of a scene: uint8, shape (64, 64, 3)."""
    rng = np.random.default_rng(scene.seed)
    paint = Paint(_shaded(OBJECT_COLORS[scene.color], rng), _shaded(GROUND_COLORS[scene.ground], rng), rng)
    shape = _placed(DRAWINGS[scene.thing](), scene.size, rng) if scene.thing else []
    return np.asarray(PAINTERS[scene.style](shape, paint))


def labels(scene: Scene) -> np.ndarray:
    """Which concepts the scene shows: float32, shape (concepts,), 1 for its thing and for its named style."""
    present = np.zeros(len(NAMES), dtype=np.float32)
    for name in (scene.thing, scene.style):
        if name in NAMES:
            present[NAMES.index(name)] = 1.0
    return present


__all__ = ["SIZE", "Scene", "draw_scene", "empty_scene", "labels", "render"]
