"""Concept sets: how a concept is found, what is close to it, and which mistakes in a file are reported."""

import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.concepts.concept import Concept, ConceptSet, concept_set_names, load_concept_set
from efface.concepts.prompts import load_prompt_set
from efface.errors import UserError

PETS = """
name: pets
version: 1
concepts:
  - {name: Blue Cat, kind: animal, phrase: a blue cat, aliases: [Bleu Cat], anchor: dog, adjacent: [Fox]}
  - {name: Dog, kind: animal, phrase: a dog, question: a dog of any breed, anchor: a plain sofa, retained: [blue-cat]}
  - {name: Bird, kind: animal, phrase: a bird}
neighbours:
  - {name: Fox, kind: animal, phrase: a fox}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "pets.yaml"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def pets(tmp_path: Path) -> ConceptSet:
    return load_concept_set(write(tmp_path, PETS))


@pytest.mark.parametrize("name", ["Blue Cat", "blue cat", "BlueCat", "blue_cat", "BLUE-CAT", " bleu  cat "])
def test_a_concept_is_found_by_any_spelling_of_its_name_or_alias(pets: ConceptSet, name: str) -> None:
    assert pets.find(name).name == "Blue Cat"


def test_a_neighbour_is_found_like_a_concept(pets: ConceptSet) -> None:
    assert pets.find("fox") in pets.neighbours


def test_an_unknown_concept_is_answered_with_the_nearest_name(pets: ConceptSet) -> None:
    with pytest.raises(UserError, match="unknown concept 'Blu Cat' in concept set pets: did you mean 'Blue Cat'"):
        pets.find("Blu Cat")


def test_the_question_is_the_phrase_unless_given(pets: ConceptSet) -> None:
    assert [concept.question for concept in pets.concepts] == ["a blue cat", "a dog of any breed", "a bird"]


def test_an_anchor_is_a_concept_of_the_set_or_a_plain_phrase_or_the_empty_prompt(pets: ConceptSet) -> None:
    assert [pets.anchor_phrase(concept) for concept in pets.concepts] == ["a dog", "a plain sofa", ""]


def test_the_others_are_retained_and_neighbours_are_not(pets: ConceptSet) -> None:
    assert [concept.name for concept in pets.retained_for(pets.find("Bird"))] == ["Blue Cat", "Dog"]


def test_a_neighbour_as_target_retains_all_concepts(pets: ConceptSet) -> None:
    assert pets.retained_for(pets.find("Fox")) == pets.concepts


def test_retained_concepts_can_be_named(pets: ConceptSet) -> None:
    assert [concept.name for concept in pets.retained_for(pets.find("Dog"))] == ["Blue Cat"]


def test_adjacent_concepts_are_those_listed(pets: ConceptSet) -> None:
    assert pets.adjacent_to(pets.find("Blue Cat")) == (pets.find("Fox"),)


def test_kinds_are_counted_without_neighbours(pets: ConceptSet) -> None:
    assert pets.kinds() == {"animal": 3}


def test_the_hash_is_of_what_the_set_says_and_not_of_its_layout(pets: ConceptSet, tmp_path: Path) -> None:
    laid_out = PETS.replace("phrase: a bird}", "phrase: a bird, question: a bird, aliases: []}  # the same")
    assert load_concept_set(write(tmp_path, laid_out)).sha256 == pets.sha256
    assert load_concept_set(write(tmp_path, PETS.replace("a fox", "a red fox"))).sha256 != pets.sha256
    assert len(pets.sha256) == 64


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("name: Bird", "name: blue_cat", "'blue_cat' is called 'blue_cat', which already means 'Blue Cat'"),
        ("[Bleu Cat]", "[Bird]", "'Bird' is called 'Bird', which already means 'Blue Cat'"),
        ("[Fox]", "[Foxx]", "concept 'Blue Cat', adjacent: 'Foxx' is not in this set, did you mean 'Fox'"),
        ("[Fox]", "[Bleu Cat]", "concept 'Blue Cat', adjacent: 'Bleu Cat' is the concept itself"),
        ("[Fox]", "[Fox, fox]", "concept 'Blue Cat', adjacent: 'fox' is listed twice"),
        ("[blue-cat]", "[Cow]", "concept 'Dog', retained: 'Cow' is not in this set"),
        ("[blue-cat]", "other", "retained"),
        ("anchor: dog", "anchor: BlueCat", "concept 'Blue Cat' is its own anchor"),
        ("anchor: dog", "anchor: bleu_cat", "concept 'Blue Cat' is its own anchor"),
        ("anchor: dog", "anchor: a blue cat", "concept 'Blue Cat' is its own anchor"),
        ("anchor: dog", 'anchor: "A  blue-CAT!"', "concept 'Blue Cat' is its own anchor"),
        ("a plain sofa", "a dog of any breed", "concept 'Dog' is its own anchor"),
        ("phrase: a dog,", "phrase: a blue cat,", "concept 'Blue Cat' is its own anchor"),
        ("anchor: dog", "ancor: dog", "unknown key 'concepts.0.ancor', did you mean 'anchor'"),
        ("kind: animal, phrase: a bird", "kind: pet, phrase: a bird", "concepts.2.kind: input should be 'object'"),
        ("phrase: a bird", "", "key 'concepts.2.phrase' is missing"),
        ("phrase: a bird", "phrase: ' '", "concepts.2.phrase"),
        ("phrase: a bird", "phrase: 7", "concepts.2.phrase: input should be a valid string, not 7"),
        ("name: Bird", "name: '--'", "concepts.2.name: a name needs a letter or a digit"),
        ("name: Bird", 'name: "a\\nb"', "concepts.2.name: a name needs a letter or a digit, and stands on one line"),
        ("version: 1", "version: 0", "version: input should be greater than or equal to 1"),
        ("version: 1", "", "key 'version' is missing"),
    ],
)
def test_a_fault_in_the_file_is_one_sentence(tmp_path: Path, old: str, new: str, sentence: str) -> None:
    path = write(tmp_path, PETS.replace(old, new, 1))
    with pytest.raises(UserError) as caught:
        load_concept_set(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ") and sentence in message and "\n" not in message


def test_a_set_without_concepts_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="concepts"):
        load_concept_set(write(tmp_path, "name: none\nversion: 1\nconcepts: []\n"))


@pytest.mark.parametrize(
    ("name", "sentence"),
    [
        ("genmu-2052", "unknown concept set 'genmu-2052': did you mean 'genmu-2025'"),
        ("no/such/file.yaml", "no/such/file.yaml: no such file, should be a concept set"),
        (".", "unknown concept set '.'"),
        ("x" * 5000, "unknown concept set 'xxx"),
    ],
)
def test_an_unknown_set_is_answered_with_what_was_meant(name: str, sentence: str) -> None:
    with pytest.raises(UserError) as caught:
        load_concept_set(name)
    assert str(caught.value).startswith(sentence)


def test_every_shipped_set_loads_and_bears_its_name() -> None:
    assert "genmu-2025" in concept_set_names()
    for name in concept_set_names():
        assert load_concept_set(name).name == name


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_mutated_file_raises_nothing_but_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    lines = PETS.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(lines) - 1))
        lines[place] = data.draw(st.sampled_from(["", "- ", lines[place] + "}", lines[0], "concepts: 3"]) | st.text())
    path = tmp_path_factory.getbasetemp() / "mutated.yaml"
    path.write_text("\n".join(lines), encoding="utf-8", errors="surrogatepass")
    try:
        concepts = load_concept_set(path)
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert all(isinstance(concepts.find(concept.name), Concept) for concept in concepts.all)


HELD_OUT = """
name: pets
version: 1
concepts:
  - {name: Cat, kind: animal, phrase: a cat, anchor: dog, adjacent: [Fox, Lynx], retained: [Bus, Tram]}
  - {name: Dog, kind: animal, phrase: a dog, adjacent: [Lynx]}
  - {name: Owl, kind: animal, phrase: an owl, aliases: [barn owl], anchor: dog, held_out: true}
neighbours:
  - {name: Fox, kind: animal, phrase: a fox}
  - {name: Lynx, kind: animal, phrase: a lynx, held_out: true}
retained:
  - {name: Bus, kind: object, phrase: a bus}
  - {name: Tram, kind: object, phrase: a tram, held_out: true}
"""


@pytest.fixture
def split(tmp_path: Path) -> ConceptSet:
    return load_concept_set(write(tmp_path, HELD_OUT))


def test_retained_concepts_of_the_set_are_retained_beside_the_others(split: ConceptSet) -> None:
    assert [c.name for c in split.retained_for(split.find("Dog"))] == ["Cat", "Owl", "Bus", "Tram"]
    assert split.find("tram") in split.retained and split.kinds() == {"animal": 3}


def test_what_a_method_may_see_lacks_all_that_is_held_out(split: ConceptSet) -> None:
    shown = split.shown(["Cat"])
    assert [c.name for c in shown.all] == ["Cat", "Dog", "Fox", "Bus"]
    cat, dog = shown.find("cat"), shown.find("dog")
    assert (cat.adjacent, cat.retained, dog.adjacent) == (("Fox",), ("Bus",), ())
    assert [c.name for c in shown.adjacent_to(cat)] == ["Fox"] and shown.anchor_phrase(cat) == "a dog"
    assert [c.name for c in shown.retained_for(dog)] == ["Cat", "Bus"]
    with pytest.raises(UserError, match="unknown concept 'Owl'"):
        shown.find("Owl")
    assert [c.name for c in split.all] == ["Cat", "Dog", "Owl", "Fox", "Lynx", "Bus", "Tram"]


def test_what_is_to_be_forgotten_is_seen_although_it_is_held_out(split: ConceptSet) -> None:
    assert [c.name for c in split.shown(["Owl"]).all] == ["Cat", "Dog", "Owl", "Fox", "Bus"]


def test_a_set_that_holds_nothing_out_is_shown_whole(pets: ConceptSet) -> None:
    assert pets.shown(["Dog"]).model_dump() == pets.model_dump()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a LYNX, high quality", "Lynx"),
        ("two barn owls", None),
        ("a barn  owl", "Owl"),
        ("trams", None),
        ("the tram.", "Tram"),
        ("a cat", None),
    ],
)
def test_a_text_names_what_is_held_out_by_whole_words(split: ConceptSet, text: str, named: str | None) -> None:
    found = split.held_out_in(text)
    assert (found.name if found else None) == named
    assert split.held_out_in(text, ["Lynx", "Owl", "Tram"]) is None


@pytest.mark.parametrize("anchor", ["Owl", "barn owl", "an owl"])
def test_an_anchor_that_is_held_out_is_refused(tmp_path: Path, anchor: str) -> None:
    text = HELD_OUT.replace("phrase: a cat, anchor: dog", f"phrase: a cat, anchor: {anchor}")
    with pytest.raises(UserError, match=f"concept 'Cat' has the anchor '{anchor}', which is held out"):
        load_concept_set(write(tmp_path, text))


def test_the_hash_of_a_set_that_holds_nothing_out_is_as_it_was_before_there_were_such(tmp_path: Path) -> None:
    """By hand: the JSON of the fields that there were, in their order."""
    path = write(tmp_path, "{name: one, version: 3, concepts: [{name: Käfer, kind: object, phrase: a car}]}")
    before = (
        '{"name":"one","version":3,"concepts":[{"name":"Käfer","kind":"object","phrase":"a car","question":"a car",'
        '"aliases":[],"anchor":null,"adjacent":[],"retained":"others"}],"neighbours":[]}'
    )
    assert load_concept_set(path).sha256 == hashlib.sha256(before.encode()).hexdigest()


def test_the_hash_is_also_of_what_is_held_out(split: ConceptSet, tmp_path: Path) -> None:
    shown = load_concept_set(write(tmp_path, HELD_OUT.replace(", held_out: true", "", 1)))
    assert shown.sha256 != split.sha256


# concepts of papers, as their repositories have them


def adjacent(concept_set: str, target: str) -> set[str]:
    found = load_concept_set(concept_set)
    return {other.name for other in found.adjacent_to(found.find(target))}


def test_imagenette_has_its_ten_classes() -> None:
    """README of fastai/imagenette."""
    classes = (
        "tench, English springer, cassette player, chain saw, church, French horn, garbage truck, gas pump, "
        "golf ball, parachute"
    )
    found = load_concept_set("imagenette")
    assert {concept.name for concept in found.concepts} == {found.find(name).name for name in classes.split(", ")}


def test_artists_are_those_of_esd_and_concept_ablation() -> None:
    """data/big_artist_prompts.csv, data/short_niche_art_prompts.csv (erasing); assets/eval.json (concept-ablation)."""
    famous = ["Pablo Picasso", "Van Gogh", "Rembrandt", "Andy Warhol", "Caravaggio"]
    niche = ["Tyler Edlin", "Thomas Kinkade", "Kilian Eng", "Kelly McKernan", "Ajin: Demi Human"]
    ablated = ["van gogh", "monet", "greg rutkowski", "salvador dali"]
    found = load_concept_set("artists")
    assert {c.name for c in found.concepts} == {found.find(name).name for name in famous + niche + ablated}
    everyone = {found.find(name).name for name in [*ablated, "Johannes Vermeer", "Jeremy Mann"]}
    for name in ablated:
        assert adjacent("artists", name) == everyone - {found.find(name).name}


@pytest.mark.parametrize("name", concept_set_names())
def test_every_concept_that_ships_has_three_direct_prompts_or_more(name: str) -> None:
    """Judges are fitted and measured on images of them: with one, on one prompt's alone."""
    found, prompts = load_concept_set(name), load_prompt_set(name, load_concept_set(name))
    lacking = [c.name for c in found.all if c.name not in prompts.rows or len(prompts.rows[c.name].direct) < 3]
    assert lacking == []


def test_characters_are_those_of_concept_ablation() -> None:
    """compvis/scripts/object.sh: target and anchor; assets/eval.json: what is near."""
    found = load_concept_set("characters")
    anchors = {concept.name: concept.anchor for concept in found.concepts}
    assert anchors == {"Grumpy Cat": "a cat", "Snoopy": "a dog", "Nemo": "a fish", "R2D2": "a robot"}
    assert adjacent("characters", "Grumpy Cat") == {
        found.find(name).name for name in ("British Shorthair", "Himalayan Cat", "Scottish Fold", "Persian Cat")
    }
    assert adjacent("characters", "R2D2") == {found.find(name).name for name in ("BB8", "C-3PO", "Wall-E", "Baymax")}
