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
    "UnlearnCanvas": (
        "prompt,theme,class\na Cats image,Abstractionism,Cats\n",
        (PublishedPrompt("a Cats image", "Abstractionism"),),
        {"Abstractionism": 1},
    ),
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
