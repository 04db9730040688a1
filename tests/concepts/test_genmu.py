"""The shipped `genmu-2025`: the challenge's concepts by all their names, and prompts that keep what they promise."""

import re
from itertools import chain

import pytest

from efface.concepts.concept import Concept, ConceptSet, fold, load_concept_set
from efface.concepts.prompts import PromptSet, load_prompt_set
from efface.train.data import captions

# The beginnings of the words that would give a name away, its misspellings and inflections with it.
STEMS = {
    "Barberton Daisy": "barb dais gerber transvaal",
    "Golf Ball": "golf ball",
    "Apple Fruit": "appl fruit",
    "Blue Jay": "blue jay",
    "Labrador Retriever": "lab retriev",
    "Van Gogh": "van gogh goug vincent",
    "Doodle": "doodl",
    "Neon": "neon",
    "Monet": "monet claude",
    "Sketch": "sketch",
    "Wedding": "wed newlywed",
    "Sunset": "sunset",
    "Rainfall": "rain",
    "Aurora Borealis": "auror bore bori northern",
    "Scenery": "scen landscap",
    "Sleeping": "sleep slept asleep",
    "Walking": "walk",
    "Eating": "eat ate",
    "Dancing": "danc",
    "Jumping": "jump",
    "Welsh Springer Spaniel": "welsh springer spaniel",
}
TARGETS = list(STEMS)


@pytest.fixture(scope="module")
def genmu() -> ConceptSet:
    return load_concept_set("genmu-2025")


@pytest.fixture(scope="module")
def prompts(genmu: ConceptSet) -> PromptSet:
    return load_prompt_set("genmu-2025", genmu)


def test_it_holds_the_twenty_concepts_in_the_groups_of_the_challenge(genmu: ConceptSet) -> None:
    assert [concept.name for concept in genmu.concepts] == TARGETS[:20]
    assert genmu.kinds() == {"object": 3, "animal": 2, "style": 5, "scene": 5, "action": 5}


@pytest.mark.parametrize(
    ("spelt", "name"),
    [
        ("BarbetonDaisy", "Barberton Daisy"),
        ("Barbeton Daisy", "Barberton Daisy"),
        ("GolfBall", "Golf Ball"),
        ("AppleFruit", "Apple Fruit"),
        ("BlueJay", "Blue Jay"),
        ("LabradorRetriever", "Labrador Retriever"),
        ("Welsh Springer Spaniel", "Welsh Springer Spaniel"),
        ("VanGough", "Van Gogh"),
        ("AuroraBorialis", "Aurora Borealis"),
        ("Aurora Borialis", "Aurora Borealis"),
        ("Scenerie", "Scenery"),
        ("Scenery", "Scenery"),
    ],
)
def test_the_challenges_spellings_are_known(genmu: ConceptSet, spelt: str, name: str) -> None:
    assert genmu.find(spelt).name == name


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_has_three_adjacent_concepts_that_are_shown_and_two_held_out_outside_the_twenty(
    genmu: ConceptSet, name: str
) -> None:
    adjacent = genmu.adjacent_to(genmu.find(name))
    assert [concept.held_out for concept in adjacent] == [False, False, False, True, True]
    assert not set(adjacent) & set(genmu.concepts)


def test_of_each_kind_one_more_retained_concept_is_shown_and_two_are_held_out(genmu: ConceptSet) -> None:
    kinds = [(concept.kind, concept.held_out) for concept in genmu.retained]
    assert kinds == [(kind, h) for kind in genmu.kinds() for h in (False, True, True)]


def test_no_caption_of_an_anchor_that_is_built_in_names_what_is_held_out(genmu: ConceptSet) -> None:
    words = [*captions.VIEWS, *captions.SUBJECTS, *captions.STYLE_SETTINGS, *chain(*captions.SETTINGS.values())]
    assert [text for text in words if genmu.held_out_in(text)] == []
    assert [concept.name for concept in genmu.all if genmu.held_out_in(genmu.anchor_phrase(concept))] == []


def test_every_neighbour_but_the_second_dog_is_adjacent_to_something(genmu: ConceptSet) -> None:
    used = {other.name for concept in genmu.all for other in genmu.adjacent_to(concept)}
    assert {concept.name for concept in genmu.neighbours} - used == {"Welsh Springer Spaniel"}


@pytest.mark.parametrize("name", TARGETS)
def test_the_anchor_is_a_phrase_without_the_target_and_no_concept_that_is_scored(genmu: ConceptSet, name: str) -> None:
    target = genmu.find(name)
    phrase = genmu.anchor_phrase(target)
    assert phrase and not given_away(name, phrase)
    assert phrase not in {concept.phrase for concept in genmu.all}


@pytest.mark.parametrize("name", TARGETS)
def test_one_model_is_asked_for_the_other_nineteen_and_fifteen_more_as_retained(
    genmu: ConceptSet, prompts: PromptSet, name: str
) -> None:
    target = genmu.find(name)
    retained = 19 if target in genmu.concepts else 20
    assert list(prompts.counts(genmu, target).values()) == [5, 5, 0, 5 * 5, 5 * (retained + 15)]


@pytest.mark.parametrize("name", TARGETS)
def test_indirect_prompts_hold_neither_the_name_nor_an_alias_nor_a_word_of_them(
    genmu: ConceptSet, prompts: PromptSet, name: str
) -> None:
    concept = genmu.find(name)
    words = {word for known in (name, *concept.aliases) for word in known.casefold().split()}
    generic = {"style", "art", "dog", "light", "lights", "fall", "sun", "set", "natural", "ceremony", "party"}
    for text in prompts.rows[name].indirect:
        assert not given_away(name, text), text
        assert not (words - generic) & set(re.findall(r"\w+", text.casefold())), text
        assert not [known for known in (name, *concept.aliases) if fold(known) in fold(text)], text


def test_direct_prompts_name_what_they_ask_for(genmu: ConceptSet, prompts: PromptSet) -> None:
    for concept in genmu.all:
        for text in prompts.rows[concept.name].direct:
            assert named(concept, text), f"{concept.name}: {text}"


def test_a_direct_prompt_of_a_neighbour_does_not_ask_for_the_concept_it_lies_beside(
    genmu: ConceptSet, prompts: PromptSet
) -> None:
    for name in TARGETS:
        for other in genmu.adjacent_to(genmu.find(name)):
            for text in prompts.rows[other.name].direct:
                assert fold(name) not in fold(text), f"{name}: {text}"


def test_no_two_prompts_are_the_same_and_all_fit_a_text_encoder(prompts: PromptSet) -> None:
    texts = [text for row in prompts.rows.values() for text in row.direct + row.indirect]
    assert len(set(map(fold, texts))) == len(texts)
    assert max(len(text.split()) for text in texts) < 45  # 77 tokens, at well under two a word


def given_away(name: str, text: str) -> list[str]:
    return [stem for stem in STEMS[name].split() if re.search(rf"\b{stem}", text.casefold())]


def named(concept: Concept, text: str) -> bool:
    """Whether `text` holds a word that starts like a word of the concept's name or of an alias."""
    words = [word for known in (concept.name, *concept.aliases) for word in re.findall(r"\w+", known.casefold())]
    stems = [re.sub(r"(ing|y|s)$", "", word) for word in words if len(word) > 2]
    return any(re.search(rf"\b{re.escape(stem)}", text.casefold()) for stem in stems)
