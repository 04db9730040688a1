"""What a text encoder does not read of prompts and phrases: named by row and column, or refused."""

from collections.abc import Sequence

import pytest

from efface.concepts.concept import ConceptSet
from efface.concepts.prompt_csv import PromptRow
from efface.concepts.prompts import PromptSet
from efface.concepts.text_window import Reading, TextWindow, check_concepts, check_prompts, cut_prompts
from efface.errors import UserError


def read(texts: Sequence[str]) -> list[Reading]:
    """A token for each word, its length; a tokenizer that knows no Greek."""
    found = []
    for text in texts:
        words = text.lower().split()
        known = tuple(hash(word) for word in words if word.isascii())
        found.append(Reading(tokens=known, length=len(words), kept=" ".join(words[:6])))
    return found


WINDOW = TextWindow("six words", 6, read)


def concept_set(**changes: str) -> ConceptSet:
    cat = {"name": "Cat", "kind": "animal", "phrase": "a cat", "aliases": ["kitty"], "anchor": "a pet", **changes}
    dog = {"name": "Dog", "kind": "animal", "phrase": "a dog"}
    return ConceptSet.model_validate({"name": "pets", "version": 1, "concepts": [cat, dog]})


PETS = concept_set()
COLUMNS = {"direct": ("direct_prompt_1", "direct_prompt_3"), "adversarial": ("adversarial_prompt",)}


def prompts(*direct: str, adversarial: tuple[str, ...] = ()) -> PromptSet:
    rows = {"Cat": PromptRow(direct, adversarial=adversarial, row=4, columns=COLUMNS)}  # type: ignore[arg-type]
    return PromptSet("mine.csv", rows)


def test_a_prompt_of_the_windows_size_is_whole_and_one_token_more_is_cut() -> None:
    assert cut_prompts(prompts("a cat that sits and purrs"), PETS, WINDOW) == ()
    (cut,) = cut_prompts(prompts("a cat", "a cat that sits and purrs softly"), PETS, WINDOW)
    assert str(cut) == "row 4, column direct_prompt_3 (7 tokens)"


@pytest.mark.parametrize("name", ["cat", "KITTY", "a  Cat"])
def test_it_is_reported_where_the_concept_is_named_behind_the_cut(name: str) -> None:
    (cut,) = cut_prompts(prompts("a cat", adversarial=(f"very very very very very very {name}",)), PETS, WINDOW)
    assert str(cut).startswith("row 4, column adversarial_prompt (") and cut.column == "adversarial_prompt"
    assert str(cut).endswith(" tokens, and what asks for 'Cat' stands behind them)")


def test_an_adversarial_prompt_that_never_names_the_concept_loses_no_name() -> None:
    (cut,) = cut_prompts(prompts("a cat", adversarial=("b c d e f g h",)), PETS, WINDOW)
    assert not cut.unnamed


def test_a_plan_reports_in_one_line_the_cut_ones_of_its_prompts() -> None:
    long = tuple(f"a b c d e f {letter}" for letter in "ghijklm")
    mine = prompts("a cat", adversarial=long)
    (line,) = check_prompts(mine, PETS, WINDOW, ["a cat", *long])
    assert line.startswith(
        "mine.csv: 7 of 8 prompts are longer than the 6 tokens that the text encoder of base 'six words'"
    )
    assert line.count("row 4, column adversarial_prompt") == 5 and line.endswith(
        "and 2 more, which `efface prompts` names"
    )
    assert check_prompts(mine, PETS, WINDOW, ["a cat"]) == ()


def test_a_prompt_of_which_the_tokenizer_knows_nothing_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"mine.csv, row 4, column direct_prompt_3: the tokenizer of base 'six words' kno"
    ):
        cut_prompts(prompts("a cat", "γάτα"), PETS, WINDOW)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"phrase": "one two three four"}, "concept 'Cat', phrase: a prompt with it has 7 tokens, .* reads 6"),
        ({"anchor": "one two three four"}, "concept 'Cat', anchor: a prompt with it has 7 tokens"),
        ({"phrase": "γάτα"}, "concept 'Cat', phrase: the tokenizer of base 'six words' knows nothing in 'γάτα'"),
        ({"anchor": "ζώο"}, "concept 'Cat', anchor: the tokenizer of base 'six words' knows nothing"),
        (
            {"anchor": "a γ cat"},
            "concept 'Cat' is its own anchor: to the text encoder of base 'six words' 'a γ cat' says",
        ),
    ],
)
def test_a_phrase_or_an_anchor_that_cannot_be_prompted_for_is_refused(changes: dict[str, str], sentence: str) -> None:
    with pytest.raises(UserError, match=f"concept set pets: {sentence}"):
        check_concepts(concept_set(**changes), WINDOW)


def test_a_set_that_fits_is_fine() -> None:
    check_concepts(PETS, WINDOW)
