"""Contact sheets: the right image in the right place."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image

from efface.concepts.prompts import AXES
from efface.errors import UserError
from efface.eval.judging.image_table import IMAGE_SCHEMA
from efface.eval.report import contact_sheet as sheet
from efface.eval.report.contact_sheet import contact_sheet, write_sheets

Row = Callable[..., dict[str, Any]]
MakeTable = Callable[..., pa.Table]
COLORS = {"base": (200, 0, 0), "esd": (0, 200, 0)}


def picture(color: tuple[int, int, int], size: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (size, size), color).save(buffer, format="PNG")
    return buffer.getvalue()


def tables(row: Row, table: MakeTable, size: int = 64, seeds: int = 3) -> tuple[pa.Table, pa.Table]:
    rows = [
        row(axis, method == "base", seed=seed, method=method, model_id=method, image_sha256=method)
        for method in ("esd", "base")
        for axis in AXES
        for seed in range(seeds)
    ]
    images = [
        {"image_sha256": method, "prompt": "p", "seed": 0, "recipe_id": "r", "png": picture(color, size)}
        for method, color in COLORS.items()
    ]
    return table(rows), pa.Table.from_pylist(images, schema=IMAGE_SCHEMA)


def pixels(image: Image.Image, color: tuple[int, int, int]) -> int:
    return sum(count for count, found in image.getcolors(1 << 24) or [] if found == color)


def test_small_images_are_doubled_and_the_base_is_on_top(row: Row, table: MakeTable) -> None:
    drawn = contact_sheet(*tables(row, table), "Cat")
    for color in COLORS.values():
        assert pixels(drawn, color) == 5 * 3 * 128 * 128
    middle = drawn.height // 2
    assert pixels(drawn.crop((0, 0, drawn.width, middle)), COLORS["esd"]) < pixels(
        drawn.crop((0, middle, drawn.width, drawn.height)), COLORS["esd"]
    )


def test_a_prompt_of_several_lines_and_an_image_that_is_no_evidence_are_drawn(row: Row, table: MakeTable) -> None:
    verdicts, images = tables(row, table)

    def drawn(prompt: str, **first: Any) -> Image.Image:
        rows = [r | {"prompt": prompt} for r in verdicts.to_pylist()]
        return contact_sheet(table([rows[0] | first, *rows[1:]]), images, "Cat")

    assert drawn("a\ncat\x1b[2J").tobytes() == drawn("a\\ncat\\x1b[2J").tobytes()
    broken = {"present": None, "score": None, "image_error": "blanked"}
    assert drawn("a cat", **broken).tobytes() != drawn("a cat", **broken | {"image_error": None}).tobytes()


def test_large_images_are_made_smaller(row: Row, table: MakeTable) -> None:
    drawn = contact_sheet(*tables(row, table, size=512), "Cat")
    assert pixels(drawn, COLORS["esd"]) == 5 * 3 * 192 * 192


def test_the_frame_says_what_the_judge_saw(row: Row, table: MakeTable) -> None:
    drawn = contact_sheet(*tables(row, table), "Cat")
    present, absent = ((31, 111, 214), (185, 185, 185))
    frame = 134 * 134 - 128 * 128
    # Edges of letters may have a frame's colour too.
    assert pixels(drawn, present) >= 15 * frame
    assert 15 * frame <= pixels(drawn, absent) < 15.5 * frame


def test_columns_take_the_first_seeds_and_other_concepts_in_turn(row: Row) -> None:
    def column(asked: str, prompt: str, seed: int) -> tuple[tuple[str, str, str, int], dict[str, Any]]:
        return ("retain", asked, prompt, seed), {}

    cells = dict(column(*c) for c in [("Dog", p, s) for p in "ab" for s in (5, 7, 9)] + [("Rose", "c", 5)])
    chosen = sheet._pick("retain", {"esd": cells}, 3)
    assert [(asked, prompt, seed) for _, asked, prompt, seed in chosen] == [
        ("Dog", "a", 5),
        ("Rose", "c", 7),
        ("Dog", "b", 9),
    ]


def test_there_is_one_file_per_concept(row: Row, table: MakeTable, tmp_path: Path) -> None:
    verdicts, images = tables(row, table)
    more = table([row("forget", False, concept="Van Gogh", image_sha256="esd")])
    paths = write_sheets(tmp_path, pa.concat_tables([verdicts, more]), images)
    assert [path.name for path in paths] == ["cat.png", "van-gogh.png"]
    for path in paths:
        Image.open(path).verify()


def test_concepts_whose_names_look_alike_have_a_file_each(row: Row, table: MakeTable, tmp_path: Path) -> None:
    names = ["猫", "犬", "C++", "C#", "C"]
    verdicts = table([row("forget", False, concept=name, image_sha256="esd") for name in names])
    paths = write_sheets(tmp_path, verdicts, tables(row, table)[1])
    assert len(paths) == len(set(paths)) == len(list(tmp_path.iterdir())) == len(names)
    assert tmp_path / "c.png" in paths


def test_an_unreadable_verdict_and_a_lost_image_are_no_fault(row: Row, table: MakeTable) -> None:
    verdicts = table([row("forget", None, image_sha256="gone"), row("retain", True, image_sha256="esd")])
    contact_sheet(verdicts, tables(row, table)[1], "Cat")


def test_a_concept_without_rows_is_refused(row: Row, table: MakeTable) -> None:
    with pytest.raises(UserError, match="no rows for concept 'Dog'"):
        contact_sheet(*tables(row, table), "Dog")
