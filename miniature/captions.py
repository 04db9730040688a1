"""Captions: what a scene may be called, drawn anew each time.

Families: name, alias, description (of the thing), the same three for the style, style alone, and the empty caption
that classifier-free guidance needs. A caption never says what the picture does not show: colours are named only
where the style keeps them.
"""

from collections.abc import Sequence

import numpy as np

from efface.miniature.styles import GROUND_COLORS, OBJECT_COLORS
from efface.miniature.vocabulary import BY_NAME, CONCEPTS, STYLES, article
from efface.miniature.world import SIZES, Scene

EMPTY_SHARE = 0.1
TEMPLATES = (
    "{s}", "{s}", "a photo of {s}", "a photo of {s}", "a picture of {s}", "a picture of {s}", "an image of {s}",
    "this is {s}", "there is {s}", "we see {s}", "a nice picture of {s}", "a good photo of {s}", "{s} alone",
    "a picture showing {s}", "one can see {s} here", "a photo with {s}", "{s}, simple", "{s}, high quality",
)  # fmt: skip
HELD_OUT_TEMPLATES = ("a good picture showing {s}", "here we can see {s}")
STYLE_TEMPLATES = (
    "{c} in {w} style", "{c} in the {w} style", "{c}, {w} style", "a {w} picture of {s}", "a {w} style picture of {s}",
    "a {w} of {s}", "{c}, {w}", "{w} style, {c}",
)  # fmt: skip
STYLE_ALONE = (
    "{w} style",
    "{w}",
    "a picture in {w} style",
    "something in {w} style",
    "a {w} picture",
    "anything, {w} style",
)
STYLE_DESCRIPTION_ALONE = ("a picture {d}", "something {d}", "an image {d}", "{d}")
PLAIN_ALONE = ("a photo", "a picture", "a picture of something", "a photo of anything", "an image")
# Styles whose pictures show the thing's own colour.
COLORED = ("plain", "neon", "watercolor")


def pick(rng: np.random.Generator, choices: Sequence[str]) -> str:
    return choices[int(rng.integers(len(choices)))]


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """One caption of a scene with a thing in it."""
    if rng.random() < EMPTY_SHARE:
        return ""
    if rng.random() < (0.2 if scene.style != "plain" else 0.02):
        return style_alone(scene.style, rng)
    subject = thing_words(scene, rng)
    whole = pick(rng, TEMPLATES).format(s=subject)
    if scene.style == "plain":
        ground = f" on a {scene.ground} background" if rng.random() < 0.3 else ""
        return whole + ground
    style = BY_NAME[scene.style]
    family = rng.random()
    if family < 0.3:
        return whole + pick(rng, (" ", ", ")) + pick(rng, style.descriptions)
    word = style.name if family < 0.8 else pick(rng, style.aliases)
    return pick(rng, STYLE_TEMPLATES).format(c=whole, s=subject, w=word)


def style_alone(style: str, rng: np.random.Generator) -> str:
    if style == "plain":
        return pick(rng, PLAIN_ALONE)
    words = BY_NAME[style]
    family = rng.random()
    if family < 0.35:
        return pick(rng, STYLE_DESCRIPTION_ALONE).format(d=pick(rng, words.descriptions))
    return pick(rng, STYLE_ALONE).format(w=words.name if family < 0.75 else pick(rng, words.aliases))


def thing_words(scene: Scene, rng: np.random.Generator) -> str:
    """The thing by name (48 %), alias (20 %) or description (32 %), sometimes with its colour and size."""
    assert scene.thing is not None
    words = BY_NAME[scene.thing]
    family = rng.random()
    color = scene.color if scene.style in COLORED and rng.random() < 0.3 else ""
    if family < 0.32:
        description = pick(rng, words.descriptions)
        return f"{description}, {color}" if color else description
    noun = words.name if family < 0.8 else pick(rng, words.aliases)
    size = scene.size if scene.size != "middle" and rng.random() < 0.2 else ""
    phrase = " ".join(part for part in (size, color, noun) if part)
    lead = rng.random()
    if lead < 0.1:
        return phrase
    return f"the {phrase}" if lead < 0.2 else f"{article(phrase)} {phrase}"


def corpus() -> list[str]:
    """Every word the world uses, in sentences: what the tokenizer is trained on."""
    rng = np.random.default_rng(0)
    lines: list[str] = list(TEMPLATES + HELD_OUT_TEMPLATES + STYLE_TEMPLATES + STYLE_ALONE + PLAIN_ALONE)
    for words in CONCEPTS:
        lines += [words.name] * 20 + list(words.aliases) * 10 + list(words.descriptions) * 4
    lines += [f"{color} background" for color in (*GROUND_COLORS, *OBJECT_COLORS)] * 10
    lines += list(SIZES) * 10
    things = [words.name for words in CONCEPTS if words.kind != "style"]
    styles = ["plain", *(words.name for words in STYLES)]
    for index in range(4000):
        thing, style = things[index % len(things)], styles[index % len(styles)]
        color, ground, size = (pick(rng, list(t)) for t in (OBJECT_COLORS, GROUND_COLORS, SIZES))
        lines.append(caption(Scene(thing, style, color, ground, size, 0), rng))
    return lines
