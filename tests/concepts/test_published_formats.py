"""Published prompt files in the columns that their repositories have."""

from pathlib import Path

import pytest

from efface.concepts.published_prompts import PublishedPrompt, published_format, read_published
from efface.errors import UserError

FILES = {
    "I2P": (
        "prompt,categories,hard,inappropriate_percentage,nudity_percentage,sd_seed\n"
        '"a, b","violence, shocking",0,50.0,0.0,1794\nc,hate,1,1.0,0.0,42.0\n',
        (PublishedPrompt("a, b", "violence, shocking", 1794), PublishedPrompt("c", "hate", 42)),
        {"violence": 1, "shocking": 1, "hate": 1},
    ),
    "MMA-Diffusion": ("target_prompt,adv_prompt\nx,zq fog\ny,haze\n", ("zq fog", "haze"), {}),
    "Ring-A-Bell": ("prompt,evaluation_seed\nzx,7\n,8\nzx,9\n", (PublishedPrompt("zx", "", 7),), {}),
    "ESD": (
        "case_number,prompt,evaluation_seed,artist\n0,a sky by him,7,Van Gogh\n",
        (PublishedPrompt("a sky by him", "Van Gogh", 7),),
        {"Van Gogh": 1},
    ),
}


@pytest.mark.parametrize("papers", FILES)
def test_the_columns_of_each_benchmark_are_read(papers: str, tmp_path: Path) -> None:
    text, prompts, concepts = FILES[papers]
    file = tmp_path / "prompts.csv"
    file.write_text(text)
    found = read_published(file)
    assert papers in found.format.papers
    assert found.prompts == tuple(PublishedPrompt(p) if isinstance(p, str) else p for p in prompts)
    assert found.concepts == concepts


def test_a_list_of_unlearn_canvas_names_class_and_theme_in_each_line(tmp_path: Path) -> None:
    """As `mu_erase_diff_ediff/data/Cats/prompts.txt` has them, three times each; and the prompts of its CA."""
    file = tmp_path / "prompts.txt"
    file.write_text(
        "A Cats image in Van Gogh style.\n" * 3 + "An Architectures image in On Fire style.\n"
        "A ninja cat stealthily climbing a skyscraper\n"
    )
    read = read_published(file)
    assert read.format is published_format(file) and "UnlearnCanvas" in read.format.papers
    assert read.prompts == (
        PublishedPrompt("A Cats image in Van Gogh style.", "Cats, Van Gogh"),
        PublishedPrompt("An Architectures image in On Fire style.", "Architectures, On Fire"),
        PublishedPrompt("A ninja cat stealthily climbing a skyscraper"),
    )
    assert read.concepts == {"Cats": 1, "Van Gogh": 1, "Architectures": 1, "On Fire": 1} and read.repeated == 2
    (tmp_path / "images.txt").write_text("data/Cats/1.jpg\n")
    with pytest.raises(UserError, match="line 1: names an image"):
        read_published(tmp_path / "images.txt")


def test_a_text_that_stands_twice_has_the_labels_of_both_rows(tmp_path: Path) -> None:
    file = tmp_path / "i2p.csv"
    file.write_text('prompt,categories\nsame,violence\nother,hate\nsame,"nudity, violence"\n')
    read = read_published(file)
    assert read.prompts[0] == PublishedPrompt("same", "violence, nudity") and read.repeated == 1
    assert read.concepts == {"violence": 1, "nudity": 1, "hate": 1}


def test_rows_without_a_prompt_and_columns_that_are_not_read_are_named(tmp_path: Path) -> None:
    (tmp_path / "rab.csv").write_text(FILES["Ring-A-Bell"][0])
    (tmp_path / "i2p.csv").write_text(FILES["I2P"][0])
    assert read_published(tmp_path / "rab.csv").empty == 1
    assert "hard" in read_published(tmp_path / "i2p.csv").ignored


def test_a_prompt_set_of_ours_is_no_published_file(tmp_path: Path) -> None:
    file = tmp_path / "ours.csv"
    file.write_text("concept_name,direct_prompt\ncat,a cat\n")
    assert published_format(file) is None
    with pytest.raises(UserError, match="no column of a published prompt file"):
        read_published(file)


@pytest.mark.parametrize(
    ("text", "said"),
    [("prompt\n\n", "has no prompt"), ("prompt,x\na\n", "row 2: has 1 cells"), ("prompt\n" + "a" * 2001, "2001")],
)
def test_a_file_that_is_wrong_is_refused_with_the_reason(text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "bad.csv").write_text(text)
    with pytest.raises(UserError, match=said):
        read_published(tmp_path / "bad.csv")
