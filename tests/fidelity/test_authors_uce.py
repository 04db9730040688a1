"""UCE's solved weights are those of the authors' two scripts, run on the same model (docs/fidelity.md says how)."""

from typing import Any

import pytest
import torch

from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base
from efface.train.method import UnlearningTask, parse_config
from efface.train.methods.uce import UCE
from tests.fidelity.authors_code import recorded

OLDER = {
    "tokens": "all",
    "preserve_scale": None,
    "preserve": ["Monet", "Rembrandt"],
    "templates": ["{name}"],
    "empty_prompt": "start",
}


def solve(base: Base, concept_set: ConceptSet, concepts: list[str], preset: str | None = None, **config: Any) -> Any:
    targets = tuple(map(concept_set.find, concepts))
    return UCE(parse_config("uce", config, preset)).solve(UnlearningTask(base, targets, concept_set, seed=0))


def assert_as_recorded(solved: dict[str, torch.Tensor], case: str) -> None:
    expected = {name.removeprefix(f"{case}/"): value for name, value in recorded("uce").items() if case in name}
    assert solved.keys() == expected.keys() and len(expected) == 8
    for name, value in expected.items():
        torch.testing.assert_close(solved[name], value, rtol=0, atol=1e-5)


WAYS = ("painting by", "art by", "artwork by", "picture by", "style of")


@pytest.mark.parametrize(
    ("case", "concepts", "config"),
    [
        ("newer/object", ["golf ball", "church"], {}),
        ("newer/art", ["Van Gogh", "Picasso"], {"preserve": ["Monet", "Rembrandt", "Warhol"]}),
        ("newer/expanded", ["Van Gogh"], {"templates": ["{name}", *(f"{way} {{name}}" for way in WAYS)]}),
    ],
)
def test_the_preset_authors_is_their_newer_script(
    case: str, concepts: list[str], config: dict[str, Any], recorded_base: Base, authors_concepts: ConceptSet
) -> None:
    assert_as_recorded(solve(recorded_base, authors_concepts, concepts, "authors", **config), case)


@pytest.mark.parametrize("technique", ["replace", "tensor"])
def test_all_tokens_are_their_older_script(technique: str, recorded_base: Base) -> None:
    """One painter becomes 'art', the other, of another kind, the empty prompt at its start-of-text token."""
    painters = (
        Concept(name="Van Gogh", kind="style", phrase="Van Gogh style"),
        Concept(name="Picasso", kind="celebrity", phrase="Pablo Picasso"),
    )
    concept_set = ConceptSet(name="painters", version=1, concepts=painters)
    config = {**OLDER, "technique": technique, "guide": "", "guides": {"style": "art"}}
    assert_as_recorded(solve(recorded_base, concept_set, ["Van Gogh", "Picasso"], **config), f"older/{technique}")
