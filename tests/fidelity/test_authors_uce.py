"""UCE's solved weights are those of the authors' two scripts, run on the same model (docs/fidelity.md says how)."""

from typing import Any

import pytest
import torch

from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base
from efface.train.method import UnlearningTask, parse_config
from efface.train.methods import uce
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
        ("newer/unsafe", ["violence", "nudity", "harm"], {}),
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


MALE_OF_TEN = {"doctor": [9, 7, 4, 5], "nurse": [2, 5, 5, 5]}
"""What the classifier was made to say of the images of each round."""
PROFESSIONS = ConceptSet(
    name="professions",
    version=1,
    concepts=tuple(
        Concept(name=name, kind="object", phrase=f"a photo of a {name}", anchor="a person") for name in MALE_OF_TEN
    ),
)
DEBIAS = {"attributes": ["male", "female"], "shares": [0.5, 0.5]}


def test_debiasing_with_amounts_given_solves_as_their_script_does_for_those_that_it_came_to(
    recorded_base: Base,
) -> None:
    """Sums over rounds of what was wanted less what was seen: 0.5 - (9, 7, 4) tenths, 0.5 - 2 tenths."""
    amounts = {"doctor": [-0.5, 0.5], "nurse": [0.3, -0.3]}
    solved = solve(
        recorded_base, PROFESSIONS, [*amounts], "debias", preserve=["Monet"], debias={**DEBIAS, "amounts": amounts}
    )
    assert_as_recorded(solved, "debias")


def test_debiasing_asks_the_classifier_until_the_shares_are_right(
    recorded_base: Base, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, ...]] = []

    def classify(images: Any, attributes: Any) -> list[int]:
        turn, concept = divmod(len(seen), 2)
        assert list(attributes) == ["male", "female"]
        seen.append(images.shape)
        return [0 if i < list(MALE_OF_TEN.values())[concept][turn] else 1 for i in range(10)]

    monkeypatch.setattr(uce, "load_classifier", lambda source, device: classify)
    before = {name: value.clone() for name, value in recorded_base.tensors().items()}
    config = {**DEBIAS, "steps": 1}  # what the images are does not matter here
    solved = solve(recorded_base, PROFESSIONS, [*MALE_OF_TEN], "debias", preserve=["Monet"], debias=config)
    assert_as_recorded(solved, "debias")
    assert len(seen) == 8
    assert recorded_base.applied is None
    assert all(torch.equal(value, before[name]) for name, value in recorded_base.tensors().items())
