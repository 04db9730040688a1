"""Captions of an anchor and, word for word beside them, of the concept that is to become it.

The built-in templates make 200 captions of each kind from 20 motifs in 10 settings, in an order in which
the first few already differ in both. In a template `{}` stands for the phrase ("a cat").
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from efface.concepts.concept import Concept, ConceptSet, Kind, fold
from efface.errors import UserError

VIEWS = (
    "a photo of {}", "a close-up photo of {}", "a wide shot of {}", "a picture of {}", "a snapshot of {}",
    "a bright photo of {}", "a dark photo of {}", "a black and white photo of {}", "a sharp photo of {}",
    "a blurry photo of {}", "a drawing of {}", "an oil painting of {}", "a watercolour of {}",
    "a sketch of {}", "an illustration of {}", "a photo of {} from above", "a side view of {}",
    "a photo of {} from afar",    "a studio photo of {}", "a postcard with {}",
)  # fmt: skip
SETTINGS: dict[Kind, tuple[str, ...]] = {
    "object": (
        "", " on a wooden table", " in a garden", " in a living room", " on the street", " at a market",
        " on a white background", " by a window", " in the snow", " on a beach",
    ),
    "animal": (
        "", " in the grass", " in a forest", " on a white background", " by the water", " on a rock",
        " at sunset", " in the snow", " in a field of flowers", " in the rain",
    ),
    "celebrity": (
        "", " smiling", " giving a speech", " at a party", " in a park", " in an office", " wearing a hat",
        " on a red carpet", " at a press conference", " in the street",
    ),
    "scene": (
        "", " at dawn", " at noon", " at dusk", " at night", " in the rain", " in the snow", " in the fog",
        " in summer", " in autumn",
    ),
    "action": (
        "", " in a park", " indoors", " on a beach", " in the city", " in the mountains", " in a stadium",
        " in the evening", " in front of a crowd", " on a rainy day",
    ),
    "nsfw": (
        "", " in a bedroom", " on a beach", " in a studio", " in a garden", " by a window", " in the evening",
        " on a sofa", " in a bathroom", " by the sea",
    ),
}  # fmt: skip
SUBJECTS = (
    "a harbour", "a village street", "a vase of flowers", "a mountain lake", "an old woman", "a wheat field",
    "a city square", "a fishing boat", "a bowl of fruit", "a forest path", "a child with a dog",
    "a stone bridge", "a farmhouse", "a dancer", "a church", "a river valley", "a man reading", "a cafe",
    "two horses", "an orchard",
)  # fmt: skip
STYLE_SETTINGS = (
    "", " at dawn", " at dusk", " at night", " in the rain", " in the snow", " in spring", " in autumn",
    " under a clear sky", " before a storm",
)  # fmt: skip


Form = Literal["first", "all", "phrase"]
"""What a caption's target is: the first of its forms, any of them, or the concept's phrase alone."""


@dataclass(frozen=True)
class Caption:
    anchor: str
    """What the anchor image is made from."""
    targets: tuple[str, ...]
    """The same picture as the concept would be asked for, in each of the forms that it may be shown with."""

    @property
    def target(self) -> str:
        """The first of the forms."""
        return self.targets[0]


def captions(
    concept: Concept,
    concept_set: ConceptSet,
    own: Mapping[Kind, Sequence[str]],
    limit: int,
    form: Form = "first",
) -> tuple[Caption, ...]:
    """At most `limit` captions of the concept's anchor; `own` templates replace the built-in ones of a kind.

    The concept's phrase takes the anchor's place. Only a style whose anchor is no style itself ("a painting") is added,
    ", in the style of …", and what is not safe for work is put before the anchor's caption, which goes on without it.
    Raises UserError where the concept has no anchor, or a template no place for one that is replaced.
    """
    anchor = concept_set.anchor_phrase(concept)
    if not anchor:
        what_to_do = f"give it one in the concept set {concept_set.name}, a concept's name or a plain phrase"
        raise UserError(f"concept '{concept.name}' has no anchor to be mapped to: {what_to_do}")
    replaces = concept.kind != "nsfw" and (concept.kind != "style" or _is_in(concept_set, concept.anchor))
    templates = tuple(own.get(concept.kind, ())) or _built_in(concept.kind, replaces)
    placeless = [template for template in templates if replaces and "{}" not in template]
    if placeless and form != "phrase":
        where = f"templates of {concept.kind}: '{placeless[0]}'"
        raise UserError(f"{where} should hold {{}}, the place where '{concept.name}' comes for its anchor '{anchor}'")
    return tuple(_caption(template, concept, anchor, replaces, form) for template in templates[:limit])


def everyday_captions(limit: int = 200) -> tuple[str, ...]:
    """The first of 200 captions of everyday scenes: what a text encoder reads when nothing in particular is meant."""
    return tuple(motif + setting for motif, setting in _combinations(SUBJECTS, STYLE_SETTINGS)[:limit])


def _caption(template: str, concept: Concept, anchor: str, replaces: bool, form: Form) -> Caption:
    caption, name, phrase = template.format(anchor), concept.name, concept.phrase
    if form == "phrase":
        targets = [phrase]
    elif replaces:
        targets = [template.format(phrase)]
    elif concept.kind == "style":  # the authors draw the second form twice as often
        targets = [f"{caption}, in the style of {name}", *[f"in {name}'s style, {caption}"] * 2]
    else:
        targets = [f"{phrase}, {caption}", f"in {phrase} style, {caption}", f"{caption}, {phrase}"]
    return Caption(caption, tuple(targets[:1] if form == "first" else targets))


def _built_in(kind: Kind, replaces: bool) -> tuple[str, ...]:
    if kind == "style":
        # "a harbour at dawn, blueprint style", or "a painting of a harbour at dawn".
        style = "{motif}{setting}, {{}}" if replaces else "{{}} of {motif}{setting}"
        return tuple(
            style.format(motif=motif, setting=setting) for motif, setting in _combinations(SUBJECTS, STYLE_SETTINGS)
        )
    return tuple(motif + setting for motif, setting in _combinations(VIEWS, SETTINGS[kind]))


def _combinations(motifs: Sequence[str], settings: Sequence[str]) -> list[tuple[str, str]]:
    """Every pair once: each round goes through all motifs, with the settings moved on by one."""
    return [
        (motif, settings[(index + turn) % len(settings)])
        for turn in range(len(settings))
        for index, motif in enumerate(motifs)
    ]


def _is_in(concept_set: ConceptSet, name: str | None) -> bool:
    return name is not None and any(fold(name) in map(fold, (c.name, *c.aliases)) for c in concept_set.all)


def has_one_place(template: str) -> bool:
    """Whether a template holds `{}`, a concept's phrase, or `{name}`, its bare name, once and no other brace."""
    places = template.count("{}") + template.count("{name}")
    return places == 1 and template.replace("{}", "").replace("{name}", "").count("{") == 0


def has_phrase_once(template: str) -> bool:
    """Whether a template holds `{}`, a concept's phrase, once and no other brace."""
    return template.count("{}") == 1 and not set("{}") & set(template.replace("{}", ""))


def places_fit(template: str, kind: Kind) -> bool:
    """Whether a caption template holds `{}` once; one of a kind that is added to a caption may do without."""
    places = template.count("{}")
    return "{" not in template.replace("{}", "") and (places == 1 or (places == 0 and kind in ("style", "nsfw")))
