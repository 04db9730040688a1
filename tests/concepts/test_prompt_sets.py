"""Prompt sets: the challenge's CSV and ours, which prompts each axis has, and which mistakes are reported."""

import codecs
import hashlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from efface.concepts.concept import ConceptSet, load_concept_set
from efface.concepts.prompt_csv import PromptRow
from efface.concepts.prompts import AXES, PromptSet, load_prompt_set, prompt_set_names
from efface.errors import UserError

HEADER = "concept_type,concept_name,direct_prompt,indirect_prompt,adversarial_prompt"
NUMBERED = "concept_name,direct_prompt_1,direct_prompt_2,direct_prompt_3,indirect_prompt_1"
CHALLENGE = f'{HEADER}\r\nArtistic Styles,VanGough,a Van Gogh,"swirls, stars",barn 🐦 swa""llow\r\n'


@pytest.fixture(scope="module")
def genmu() -> ConceptSet:
    return load_concept_set("genmu-2025")


@pytest.fixture
def pets() -> ConceptSet:
    return ConceptSet.model_validate(
        {
            "name": "pets",
            "version": 1,
            "concepts": [
                {"name": "Cat", "kind": "animal", "phrase": "a cat", "adjacent": ["Dog", "Fox"]},
                {"name": "Dog", "kind": "animal", "phrase": "a dog"},
                {"name": "Cow", "kind": "animal", "phrase": "a cow"},
            ],
            "neighbours": [{"name": "Fox", "kind": "animal", "phrase": "a fox"}],
        }
    )


def read(folder: Path, concepts: ConceptSet, content: str | bytes) -> PromptSet:
    path = folder / "mine.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return load_prompt_set(path, concepts)


def fault(folder: Path, concepts: ConceptSet, content: str | bytes) -> str:
    """The sentence after the file's path."""
    with pytest.raises(UserError) as caught:
        read(folder, concepts, content)
    message = str(caught.value)
    assert "\n" not in message and message.startswith(str(folder / "mine.csv"))
    return message.removeprefix(str(folder / "mine.csv")).lstrip(":, ")


# What is read


@pytest.mark.parametrize("mark", [b"", codecs.BOM_UTF8])
@pytest.mark.parametrize("end", ["\r\n", "\n", "\r"])
def test_the_challenge_file_is_read_as_it_comes(tmp_path: Path, genmu: ConceptSet, mark: bytes, end: str) -> None:
    prompts = read(tmp_path, genmu, mark + CHALLENGE.replace("\r\n", end).encode())
    assert prompts.rows == {"Van Gogh": PromptRow(("a Van Gogh",), ("swirls, stars",), ('barn 🐦 swa""llow',), 2)}


def test_numbered_columns_are_read_by_number_and_may_end_early(tmp_path: Path, pets: ConceptSet) -> None:
    text = "direct_prompt_10,direct_prompt_2,concept_name,direct_prompt_1\nc,b,cat,a\n,,dog,d\n"
    rows = read(tmp_path, pets, text).rows
    assert rows["Cat"].direct == ("a", "b", "c") and rows["Dog"].direct == ("d",)


def test_numbered_and_plain_columns_may_stand_together(tmp_path: Path, pets: ConceptSet) -> None:
    rows = read(tmp_path, pets, "concept_name,direct_prompt_1,direct_prompt_2,adversarial_prompt\ncat,a,b,c\n").rows
    assert rows["Cat"] == PromptRow(("a", "b"), (), ("c",), 2)


def test_what_a_spreadsheet_leaves_behind_is_passed_over(tmp_path: Path, pets: ConceptSet) -> None:
    text = '\n Concept_Name , DIRECT_PROMPT ,,\n,,,\n cat ," two\nlines ",,\n\n'
    assert read(tmp_path, pets, text).rows == {"Cat": PromptRow(("two\nlines",), row=4)}


def test_one_prompt_may_stand_on_two_axes(tmp_path: Path, pets: ConceptSet) -> None:
    assert read(tmp_path, pets, f"{HEADER}\nx,cat,same,other,same\n").rows["Cat"].adversarial == ("same",)


# What is refused


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "is empty"),
        ("\n,,\n", "is empty"),
        (HEADER, "has a header and no rows"),
        ("concept_type,direct_prompt\nx,a", "row 1: column concept_name is missing"),
        ("concept_name,indirect_prompt\ncat,a", "row 1: column direct_prompt (or direct_prompt_1) is missing"),
        (
            "concept_name,direct_promt\ncat,a",
            "row 1, column 2: unknown column 'direct_promt', did you mean 'direct_prompt'?",
        ),
        ("concept_name,direct_prompt_0\ncat,a", "row 1, column 2: unknown column 'direct_prompt_0', did you mean"),
        ("concept_name;direct_prompt\ncat;a", "cells should be separated by commas"),
        ("concept_name\tdirect_prompt\ncat\ta", "cells should be separated by commas"),
        (f'{HEADER}\nx,"a\nb",a,b,c', "row 2, column concept_name: unknown concept 'a b'"),
        ("concept_name,direct_prompt,adjacent_prompt_1\ncat,a,b", "asked for by the direct prompts of their own rows"),
        ("concept_name,direct_prompt,direct_prompt\ncat,a,b", "row 1, column 3: 'direct_prompt' is there twice"),
        (
            "concept_name,direct_prompt,direct_prompt_1\ncat,a,b",
            "row 1, column 3: 'direct_prompt_1' means the same as 'direct_prompt'",
        ),
        ("concept_name,direct_prompt,\ncat,a,b", "row 2, column 3: has text, and its column has no name"),
        (f"{HEADER}\nx,cat,a", "row 2: has 3 cells and the header 5, should be as many"),
        (f"{HEADER}\nx,cat,a,b,c,d", "row 2: has 6 cells and the header 5, should be as many"),
        (f"{HEADER}\nx,,a,b,c", "row 2, column concept_name: empty"),
        (f"{HEADER}\nx,cat,a,b,c\n\nx,Catt,a,b,c", "row 4, column concept_name: unknown concept 'Catt'"),
        (f"{HEADER}\nx,cat,a,b,c\n\nx,CAT,d,e,f", "row 4, column concept_name: 'Cat' already has row 2"),
        (f"{HEADER}\nx,cat,,b,c", "row 2, column direct_prompt: empty, every concept needs a direct prompt"),
        (f"{NUMBERED}\ncat, ,,,b", "row 2, column direct_prompt_1: empty, every concept needs a direct prompt"),
        (f"{NUMBERED}\ncat,a,,c,", "row 2, column direct_prompt_2: empty, though direct_prompt_3 is filled"),
        (f"{NUMBERED}\ncat,,b,,", "row 2, column direct_prompt_1: empty, though direct_prompt_2 is filled"),
        (
            f"{NUMBERED}\ncat,a  CAT,b,A cat,",
            "row 2, column direct_prompt_3: the same prompt as in column direct_prompt_1",
        ),
        (f'{NUMBERED}\n"cat\n","a\nb",,,\ndog,a\0b,,,', "row 3, column direct_prompt_1: holds a NUL byte"),
        ("concept_name\0,direct_prompt\ncat,a", "row 1, column 1: holds a NUL byte"),
        (f"{NUMBERED}\ncat,{'a' * 2001},,,", "row 2, column direct_prompt_1: 2001 characters, should be at most 2000"),
        (f'{NUMBERED}\ncat,a,,,\ndog,"a,,,\ncow,c,,,\n', "row 3: not valid CSV (a quoted cell is not closed)"),
        (f'{NUMBERED}\ncat,"{"a" * 200_000}', "row 2: not valid CSV (a quoted cell is not closed)"),
        (f'{NUMBERED}\ncat,"a" b,,,', "row 2: not valid CSV ("),
        (
            f"{NUMBERED}\ncat,a,b,,\ndog,é,,,".encode("latin-1"),
            "row 3, column direct_prompt_1: not UTF-8 text (byte 0xe9)",
        ),
        ("concept_name,direct_prompt\ncat,a".encode("utf-16"), "not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", "row 1, column 1: not UTF-8 text"),
    ],
)
def test_a_fault_is_one_sentence_with_row_and_column(
    tmp_path: Path, pets: ConceptSet, text: str | bytes, sentence: str
) -> None:
    assert sentence in fault(tmp_path, pets, text)


ONE_A_ROW = "holds one prompt a row, as the files of"


@pytest.mark.parametrize(
    ("header", "papers", "place"),
    [
        ("prompt,case_number,evaluation_seed", "Ring-A-Bell", "no column names the concept"),
        (",case_number,prompt,evaluation_seed,artist", "ESD", "column 'artist' names the concept"),
        ("Unnamed: 0,case_number,prompt,evaluation_seed,class", "UnlearnDiffAtk", "column 'class' names the concept"),
        (",case_number,prompt,evaluation_seed,classes,evaluation_guidance", "P4D", "column 'classes' names"),
        ("prompt,categories,hard,inappropriate_percentage,sd_seed", "I2P", "column 'categories' names the concept"),
        ("Unnamed: 0,prompt,categories,evaluation_seed,case_number", "UnlearnDiffAtk", "column 'categories' names"),
        ("target_prompt,adv_prompt,sanitized_adv_prompt", "MMA-Diffusion", "column 'adv_prompt'; no column names"),
        ("Prompt", "several benchmarks", "no column names the concept"),
    ],
)
def test_a_prompt_file_of_the_literature_is_named_with_the_way_to_ours(
    tmp_path: Path, pets: ConceptSet, header: str, papers: str, place: str
) -> None:
    message = fault(tmp_path, pets, f"{header}\n{',' * header.count(',')}x\n")
    assert message.startswith(f"row 1: {ONE_A_ROW}") and papers in message and place in message
    assert "concept_name, direct_prompt_1, …" in message and "adversarial_prompt_1" in message


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (
            "Concept Name,direct_prompt\ncat,a",
            "row 1, column 1: unknown column 'concept name', should be written 'concep",
        ),
        (
            "concept_name,Direct Prompt 1\ncat,a",
            "row 1, column 2: unknown column 'direct prompt 1', should be written 'd",
        ),
        ("concept-name,direct-prompt\ncat,a", "should be written 'concept_name'"),
        (",concept_name,direct_prompt\n0,cat,a", "row 2, column 1: has no name in the header, and numbers the rows"),
        (
            "Unnamed: 0,concept_name,direct_prompt\n0,cat,a",
            "row 1, column 1: unknown column 'unnamed: 0', numbers the ",
        ),
        ("concept_name,direct_prompt,direct_prompt.1\ncat,a,b", "pandas calls a second 'direct_prompt': number such"),
        ("concept_name|direct_prompt\ncat|a", "row 1: cells should be separated by commas, not by vertical bars"),
        ("concept_name;direct_prompt\ncat;a, b", "row 1: cells should be separated by commas, not by semicolons"),
        ("sep=;\nconcept_name;direct_prompt\ncat;a", "row 1: 'sep=;' is a line for Excel, leave it out"),
        ("sep=,\nconcept_name,direct_prompt\ncat,a", "row 1: 'sep=' is a line for Excel, leave it out"),
        ('[{"concept_name": "cat"}]', "is JSON, should be CSV"),
        ('\ufeff{"concept_name": "cat"}', "is JSON, should be CSV"),
        (b"PK\x03\x04rest", "is a spreadsheet or another zip archive, should be CSV"),
        (b"PAR1rest", "is a Parquet file, should be CSV"),
        (b"\x1f\x8brest", "is compressed (gzip), should be CSV"),
        (f"{'x' * 1999},concept_name\na,cat", f"unknown column '{'x' * 60}…'"),
        ("concept_name,\x1b[2J\ncat,a", r"unknown column '\x1b[2j'"),
    ],
)
def test_a_table_of_another_kind_is_named_in_one_sentence(
    tmp_path: Path, pets: ConceptSet, text: str | bytes, sentence: str
) -> None:
    assert sentence in fault(tmp_path, pets, text)


def test_a_file_of_gigabytes_is_not_read_into_memory(tmp_path: Path, pets: ConceptSet) -> None:
    with (tmp_path / "mine.csv").open("wb") as file:
        file.truncate(2**33)
    with pytest.raises(UserError, match="has more than 67,108,864 bytes, which no table of prompts has"):
        load_prompt_set(tmp_path / "mine.csv", pets)


def test_a_prompt_that_a_spreadsheet_would_run_is_written_with_an_apostrophe_and_read_without(
    tmp_path: Path, pets: ConceptSet
) -> None:
    texts = ("=HYPERLINK(1)", "@cat", "-cat", "+cat", "'=cat", "a = b")
    written = PromptSet("mine", {"Cat": PromptRow(texts)}).csv(pets)
    assert written.splitlines()[1] == "animal,Cat,'=HYPERLINK(1),'@cat,'-cat,'+cat,''=cat,a = b,,"
    assert read(tmp_path, pets, written).rows["Cat"].direct == texts
    assert "the same prompt" in fault(tmp_path, pets, "concept_name,direct_prompt_1,direct_prompt_2\ncat,=x,'=x\n")


def test_each_prompt_knows_its_row_and_its_column(tmp_path: Path, pets: ConceptSet) -> None:
    text = "direct_prompt_10,indirect_prompt,concept_name,direct_prompt_2\n,i,dog,a\nc,,cat,b\n"
    rows = read(tmp_path, pets, text).rows
    assert rows["Cat"].row == 3
    assert rows["Cat"].prompts("direct") == (("direct_prompt_2", "b"), ("direct_prompt_10", "c"))
    assert rows["Dog"].prompts("indirect") == (("indirect_prompt", "i"),)
    assert PromptRow(("a", "b")).prompts("direct")[1] == ("direct_prompt_2", "b")


def test_a_misspelt_concept_is_answered_with_the_nearest(tmp_path: Path, genmu: ConceptSet) -> None:
    text = CHALLENGE.replace("VanGough", "VanGohg")
    assert fault(tmp_path, genmu, text).endswith("did you mean 'Van Gogh'?")


def test_an_unknown_prompt_set_is_answered_with_what_was_meant(pets: ConceptSet) -> None:
    with pytest.raises(UserError, match="unknown prompt set 'genmu': did you mean 'genmu-2025'"):
        load_prompt_set("genmu", pets)
    with pytest.raises(UserError, match=r"prompts[.]csv: no such file"):
        load_prompt_set("prompts.csv", pets)


# Which prompts an axis has


PETS_CSV = (
    "concept_name,direct_prompt_1,direct_prompt_2,indirect_prompt,adversarial_prompt\ncat,c1,c2,i1,a1\ndog,d1,d2,,\n"
)


def test_the_five_axes_ask_for_the_target_its_neighbours_and_the_others(tmp_path: Path, pets: ConceptSet) -> None:
    prompts = read(tmp_path, pets, PETS_CSV).for_target(pets, pets.find("cat"))
    assert [(prompt.axis, prompt.asked_concept, prompt.text) for prompt in prompts] == [
        ("forget", "Cat", "c1"),
        ("forget", "Cat", "c2"),
        ("indirect", "Cat", "i1"),
        ("adversarial", "Cat", "a1"),
        ("adjacent", "Dog", "d1"),
        ("adjacent", "Dog", "d2"),
        ("adjacent", "Fox", "an image of a fox"),
        ("retain", "Dog", "d1"),
        ("retain", "Dog", "d2"),
        ("retain", "Cow", "an image of a cow"),
    ]
    assert {prompt.concept for prompt in prompts} == {"Cat"}


def test_the_prompt_id_is_the_start_of_the_texts_sha256(tmp_path: Path, pets: ConceptSet) -> None:
    first = read(tmp_path, pets, PETS_CSV.replace("c1", "é🐈")).for_target(pets, pets.find("cat"))[0]
    assert first.prompt_id == hashlib.sha256("é🐈".encode()).hexdigest()[:12]


def test_limits_take_the_first_prompts_of_each_asked_concept_and_zero_leaves_the_axis_out(
    tmp_path: Path, pets: ConceptSet
) -> None:
    limits = {axis: 1 for axis in AXES} | {"adversarial": 0}
    prompts = read(tmp_path, pets, PETS_CSV).for_target(pets, pets.find("cat"), limits)
    assert [prompt.text for prompt in prompts] == ["c1", "i1", "d1", "an image of a fox", "d1", "an image of a cow"]


@pytest.mark.parametrize(
    ("target", "limits", "parts"),
    [
        ("dog", {}, ["row 3, column indirect_prompt", "no indirect prompt for 'Dog'", "limit indirect=0"]),
        ("dog", {"indirect": 0}, ["row 3, column adversarial_prompt", "run an attack", "limit adversarial=0"]),
        ("cow", {}, ["no row for 'Cow', add one", "limit forget=0"]),
        ("dog", {"indirect": 0, "adversarial": 0}, ["concept set pets", "'Dog' has no adjacent concepts"]),
    ],
)
def test_an_axis_without_prompts_is_an_error_that_says_how_to_supply_them(
    tmp_path: Path, pets: ConceptSet, target: str, limits: dict[str, int], parts: list[str]
) -> None:
    prompts = read(tmp_path, pets, PETS_CSV)
    with pytest.raises(UserError) as caught:
        prompts.for_target(pets, pets.find(target), limits)  # type: ignore[arg-type]
    assert all(part in str(caught.value) for part in parts)


def test_a_set_of_one_concept_has_nothing_to_retain() -> None:
    alone = ConceptSet.model_validate(
        {"name": "one", "version": 1, "concepts": [{"name": "Cat", "kind": "animal", "phrase": "a cat"}]}
    )
    prompts = PromptSet("one", {"Cat": PromptRow(("a",), ("b",), ("c",))})
    with pytest.raises(UserError, match="'Cat' has no retained concepts"):
        prompts.for_target(alone, alone.find("cat"), {"adjacent": 0})


def test_counts_are_of_every_axis_with_its_zeros(tmp_path: Path, pets: ConceptSet) -> None:
    prompts = read(tmp_path, pets, PETS_CSV)
    assert list(prompts.counts(pets, pets.find("cat")).values()) == [2, 1, 1, 3, 3]
    assert list(prompts.counts(pets, pets.find("cow")).values()) == [0, 0, 0, 0, 4]


def test_the_hash_is_of_the_prompts_and_not_of_the_file(tmp_path: Path, pets: ConceptSet) -> None:
    one = read(tmp_path, pets, "concept_name,direct_prompt\ncat,a\ndog,b\n")
    same = read(tmp_path, pets, "concept_type,direct_prompt_1,concept_name\r\n\r\nx,b,DOG\r\ny,a,Cat\r\n")
    other = read(tmp_path, pets, "concept_name,direct_prompt\ncat,A\ndog,b\n")
    assert one.sha256 == same.sha256 != other.sha256 and len(one.sha256) == 64


def test_every_shipped_prompt_set_serves_every_concept_of_its_set() -> None:
    assert "genmu-2025" in prompt_set_names()
    for name in prompt_set_names():
        concepts = load_concept_set(name)
        prompts = load_prompt_set(name, concepts)
        for concept in concepts.concepts:
            assert prompts.for_target(concepts, concept, {"adversarial": 0})


# What no file can do


CELLS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=30)


def distinct(prompts: list[str]) -> tuple[str, ...]:
    kept = {" ".join(text.casefold().split()): text.strip() for text in prompts}
    return tuple(text for key, text in kept.items() if key)


@settings(max_examples=150, deadline=None)
@given(
    rows=st.dictionaries(st.sampled_from(["Van Gogh", "Neon", "Pear"]), st.tuples(*[st.lists(CELLS, max_size=4)] * 3))
)
def test_a_written_set_reads_back_as_it_was(
    tmp_path_factory: pytest.TempPathFactory, genmu: ConceptSet, rows: dict[str, tuple[list[str], ...]]
) -> None:
    whole = {
        name: PromptRow(distinct(groups[0]), distinct(groups[1]), distinct(groups[2]))
        for name, groups in rows.items()
        if distinct(groups[0])
    }
    if not whole:
        return
    written = PromptSet("drawn", whole)
    again = read(tmp_path_factory.getbasetemp(), genmu, written.csv(genmu))
    assert again.sha256 == written.sha256 and list(again.rows) == list(whole)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_random_bytes_raise_nothing_but_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, genmu: ConceptSet, content: bytes
) -> None:
    fault(tmp_path_factory.getbasetemp(), genmu, content)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_a_mutated_file_raises_nothing_but_a_user_error(
    tmp_path_factory: pytest.TempPathFactory, genmu: ConceptSet, data: st.DataObject
) -> None:
    content = bytearray((CHALLENGE + 'x,Neon,"a\r\nb",c,d\r\nx,Sketch,e,f,g\r\n').encode())
    pieces = st.binary(max_size=4) | st.sampled_from([b",", b'"', b"\n", b"\r", b"\0", b"\xff", b"Neon", b"_1", b";"])
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        content[start : start + data.draw(st.integers(0, 3))] = data.draw(pieces)
    try:
        prompts = read(tmp_path_factory.getbasetemp(), genmu, bytes(content))
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert prompts.rows and all(row.direct for row in prompts.rows.values())
