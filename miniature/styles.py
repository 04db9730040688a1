"""How a placed shape becomes a picture: the plain style and five named ones.

Each style keeps a signature that an 8x VAE cannot lose: its ground, its palette, or where its light is. A painter
gets patches in canvas pixels, draws them at `SCALE` times the final size and returns an RGB image of 64 x 64.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from efface.miniature.shapes import Patch, Shape

SIZE = 64
SCALE = 4
CANVAS = SIZE * SCALE

Color = tuple[int, int, int]

OBJECT_COLORS: dict[str, Color] = {
    "red": (214, 40, 40),
    "orange": (244, 132, 24),
    "yellow": (246, 206, 40),
    "green": (52, 150, 60),
    "blue": (38, 92, 212),
    "purple": (128, 52, 168),
    "pink": (244, 120, 178),
    "brown": (134, 84, 44),
    "white": (246, 246, 246),
}
GROUND_COLORS: dict[str, Color] = {
    "red": (232, 128, 118),
    "yellow": (248, 228, 150),
    "green": (166, 214, 150),
    "blue": (158, 204, 240),
    "purple": (196, 170, 226),
    "gray": (176, 178, 182),
}
FIXED_ROLES: dict[str, Color] = {
    "white": (250, 250, 250),
    "black": (24, 24, 28),
    "line": (24, 24, 28),
    "pink": (244, 138, 160),
    "leaf": (44, 140, 60),
    "yellow": (250, 200, 30),
    "brown": (118, 70, 34),
    "glass": (190, 230, 250),
}


@dataclass(frozen=True)
class Paint:
    """What a painter needs besides the shape: the main colour, the ground and a source of small variations."""

    main: Color
    ground: Color
    rng: np.random.Generator


def mix(a: Color, b: Color, share: float) -> Color:
    """`share` of `b` and the rest of `a`."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


def role_color(role: str, main: Color) -> Color:
    if role == "main":
        return main
    if role == "dark":
        return mix(main, (0, 0, 0), 0.35)
    if role == "light":
        return mix(main, (255, 255, 255), 0.5)
    return FIXED_ROLES[role]


def _draw(draw: ImageDraw.ImageDraw, patch: Patch, fill: Color | None, line: Color | None, width: float) -> None:
    """Paint one patch: its surface with `fill`, its outline with `line` of `width` canvas pixels."""
    points = [(float(x), float(y)) for x, y in patch.points]
    if patch.width == 0.0:
        if fill is not None:
            draw.polygon(points, fill=fill)
        if line is not None:
            draw.line([*points, *points[:2]], fill=line, width=round(width), joint="curve")
        return
    if line is not None and patch.role != "line":
        draw.line(points, fill=line, width=round(patch.width + width * 1.6), joint="curve")
    color = line if (patch.role == "line" and line is not None) else fill
    if color is not None:
        draw.line(points, fill=color, width=max(2, round(patch.width)), joint="curve")


def _shrink(image: Image.Image) -> Image.Image:
    return image.resize((SIZE, SIZE), Image.Resampling.BOX)


def _filled(shape: Shape, paint: Paint) -> Image.Image:
    image = Image.new("RGB", (CANVAS, CANVAS), paint.ground)
    draw = ImageDraw.Draw(image)
    for patch in shape:
        color = role_color(patch.role, paint.main)
        _draw(draw, patch, color, mix(color, (0, 0, 0), 0.72), 1.1 * SCALE)
    return image


def _outlined(shape: Shape, ground: Color, line: Color, width: float) -> Image.Image:
    image = Image.new("RGB", (CANVAS, CANVAS), ground)
    draw = ImageDraw.Draw(image)
    for patch in shape:
        _draw(draw, patch, ground, line, width * SCALE)
    return image


def plain(shape: Shape, paint: Paint) -> Image.Image:
    return _shrink(_filled(shape, paint))


def neon(shape: Shape, paint: Paint) -> Image.Image:
    """Glowing outlines in the main colour on near-black."""
    bright = mix(paint.main, (255, 255, 255), 0.25)
    lines = np.asarray(_outlined(shape, (0, 0, 0), bright, 2.0), dtype=np.float32)
    glow = Image.fromarray(lines.astype(np.uint8)).filter(ImageFilter.GaussianBlur(2.5 * SCALE))
    night = np.array([10, 8, 26], dtype=np.float32)
    return _shrink(Image.fromarray(np.clip(lines + 0.9 * np.asarray(glow) + night, 0, 255).astype(np.uint8)))


def watercolor(shape: Shape, paint: Paint) -> Image.Image:
    """Pale, soft-edged washes on white paper, with a stain of the ground's colour around the shape."""
    image = Image.new("RGB", (CANVAS, CANVAS), (252, 250, 244))
    draw = ImageDraw.Draw(image)
    x, y = paint.rng.uniform(0.35, 0.65, 2) * CANVAS
    rx, ry = paint.rng.uniform(0.38, 0.5, 2) * CANVAS
    draw.ellipse((x - rx, y - ry, x + rx, y + ry), fill=mix(paint.ground, (255, 255, 255), 0.45))
    image = image.filter(ImageFilter.GaussianBlur(6 * SCALE))
    draw = ImageDraw.Draw(image)
    for patch in shape:
        color = mix(role_color(patch.role, paint.main), (255, 255, 255), 0.38)
        _draw(draw, patch, color, mix(color, (255, 255, 255), 0.4), 1.6 * SCALE)
    return _shrink(image.filter(ImageFilter.GaussianBlur(1.0 * SCALE)))


def sketch(shape: Shape, paint: Paint) -> Image.Image:
    """Gray outlines and nothing else on white paper."""
    shade = int(paint.rng.uniform(60, 105))
    return _shrink(_outlined(shape, (250, 249, 245), (shade, shade, shade + 4), 1.9))


def sepia(shape: Shape, paint: Paint) -> Image.Image:
    """The plain picture in brown tones, darkened towards the corners."""
    gray = np.asarray(_filled(shape, paint).convert("L"), dtype=np.float32)[..., None] / 255.0
    dark, bright = np.array([46, 26, 10], dtype=np.float32), np.array([240, 212, 160], dtype=np.float32)
    axis = np.linspace(-1, 1, CANVAS)
    corner = 1.0 - 0.42 * np.clip((axis[:, None] ** 2 + axis[None, :] ** 2) - 0.5, 0, 1.5)[..., None] / 1.5
    return _shrink(Image.fromarray(((dark + (bright - dark) * gray) * corner).astype(np.uint8)))


def blueprint(shape: Shape, paint: Paint) -> Image.Image:
    """White outlines on deep blue."""
    ground = mix((24, 62, 148), (40, 90, 190), float(paint.rng.random()))
    return _shrink(_outlined(shape, ground, (238, 244, 255), 1.9))


PAINTERS: dict[str, Callable[[Shape, Paint], Image.Image]] = {
    "plain": plain,
    "neon": neon,
    "watercolor": watercolor,
    "sketch": sketch,
    "sepia": sepia,
    "blueprint": blueprint,
}
