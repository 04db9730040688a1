"""Contact sheets: one picture per concept, the base and every method below it on the same prompts and seeds.

A frame shows what the judge saw (blue: the requested concept is there; grey: it is not; none: the answer could
not be read), the number below is its score.
"""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image, ImageDraw, ImageFont

from efface.concepts.prompts import AXES, TARGET_AXES, Axis
from efface.errors import UserError
from efface.eval.scores.scoring import BASE
from efface.files import as_path, file_stem, write_atomic
from efface.text import shown as harmless

SMALL, LARGE = 128, 192  # pixels of a cell; images up to 128 px are enlarged without smoothing
FRAME, GAP, BLOCK_GAP = 3, 8, 24
TITLE, HEAD, CAPTION, FOOT = 34, 58, 18, 26
LABEL_CHARACTERS = 22
TEXT_COLOR, MUTED_COLOR, PRESENT_COLOR, ABSENT_COLOR, BACKGROUND = "#1b1b1b", "#6b6b6b", "#1f6fd6", "#b9b9b9", "#ffffff"

Column = tuple[Axis, str, str, int]  # axis, requested concept, prompt, seed


Finder = Callable[[Sequence[str]], pa.Table]
"""What finds images by their hashes: rows of `IMAGE_SCHEMA`."""


def write_sheets(folder: str | Path, verdicts: pa.Table, images: "pa.Table | Finder", columns: int = 3) -> list[Path]:
    """One PNG for every concept of the image table `verdicts`, in `folder`; `images` holds what they speak
    of.
    """
    paths = []
    for concept in sorted(verdicts["concept"].unique().to_pylist()):
        buffer = io.BytesIO()
        contact_sheet(verdicts, images, concept, columns).save(buffer, format="PNG")
        paths.append(as_path(folder) / f"{file_stem(concept)}.png")
        write_atomic(paths[-1], buffer.getvalue())
    return paths


def contact_sheet(verdicts: pa.Table, images: "pa.Table | Finder", concept: str, columns: int = 3) -> Image.Image:
    """Rows: the base, then the methods by name. Columns: for each axis the first `columns` seeds.

    On the axes of other concepts each column asks for another one where there are enough. Of several judges
    the first by name is shown, of several models of a method the first by id. Raises UserError where the
    concept has no rows.
    """
    rows = verdicts.filter(pc.equal(verdicts["concept"], concept)).to_pylist()
    if not rows:
        raise UserError(f"the image table has no rows for concept '{concept}', so there is no sheet to draw")
    judge = min(row["judge"] for row in rows)
    shown: dict[str, dict[Column, dict[str, Any]]] = {}
    for row in sorted(rows, key=lambda row: (row["method"] != BASE, row["method"], row["model_id"])):
        column = (row["axis"], row["asked_concept"], row["prompt"], row["seed"])
        if row["judge"] == judge:
            shown.setdefault(row["method"], {}).setdefault(column, row)
    blocks = [block for axis in AXES if (block := _pick(axis, shown, columns))]
    used = {
        cell["image_sha256"] for cells in shown.values() for block in blocks for c in block if (cell := cells.get(c))
    }
    found = images if isinstance(images, pa.Table) else images(sorted(used))
    wanted = found.filter(pc.is_in(found["image_sha256"], pa.array(sorted(used), pa.string())))
    pictures = {
        sha: Image.open(io.BytesIO(data)).convert("RGB")
        for sha, data in zip(wanted["image_sha256"].to_pylist(), wanted["png"].to_pylist(), strict=True)
    }
    return _draw(concept, judge, shown, blocks, pictures)


def _pick(axis: Axis, shown: dict[str, dict[Column, dict[str, Any]]], count: int) -> list[Column]:
    """The columns of one axis: the first seeds, each with the next prompt in turn."""
    known = {column for cells in shown.values() for column in cells if column[0] == axis}
    by_concept: dict[str, list[str]] = {}
    for asked_concept, prompt in sorted({(asked_concept, prompt) for _, asked_concept, prompt, _ in known}):
        by_concept.setdefault(asked_concept, []).append(prompt)
    # One prompt of every requested concept comes before the second of any.
    turns = [
        (turn, asked_concept, prompt)
        for asked_concept, texts in by_concept.items()
        for turn, prompt in enumerate(texts)
    ]
    prompts = [(asked_concept, prompt) for _, asked_concept, prompt in sorted(turns)]
    seeds = sorted({seed for *_, seed in known})[:count]
    return [(axis, *prompts[i % len(prompts)], seed) for i, seed in enumerate(seeds)]


def _draw(
    concept: str,
    judge: str,
    shown: dict[str, dict[Column, dict[str, Any]]],
    blocks: Sequence[Sequence[Column]],
    pictures: dict[str, Image.Image],
) -> Image.Image:
    side = SMALL if max((max(p.size) for p in pictures.values()), default=SMALL) <= SMALL else LARGE
    step, row_height = side + GAP, side + CAPTION + GAP
    fonts = {size: ImageFont.load_default(size) for size in (12, 14, 20)}
    labels = {method: _cut(harmless(method), LABEL_CHARACTERS) for method in shown}
    left = GAP + max(int(fonts[14].getlength(label)) for label in labels.values()) + 2 * GAP
    width = left + sum(len(block) * step for block in blocks) + (len(blocks) - 1) * BLOCK_GAP + GAP
    sheet = Image.new("RGB", (width, TITLE + HEAD + len(shown) * row_height + FOOT), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    draw.text((GAP, 8), harmless(concept), TEXT_COLOR, fonts[20])
    for r, method in enumerate(shown):
        draw.text((GAP, TITLE + HEAD + r * row_height + side // 2 - 8), labels[method], TEXT_COLOR, fonts[14])
    x = left
    for block in blocks:
        axis = block[0][0]
        draw.text((x, TITLE), axis, TEXT_COLOR, fonts[14])
        room = len(block) * step - GAP
        if axis in TARGET_AXES:
            draw.text((x, TITLE + 18), _fit(f"“{harmless(block[0][2])}”", fonts[12], room), MUTED_COLOR, fonts[12])
        for column in block:
            _, asked_concept, _, seed = column
            if axis not in TARGET_AXES:
                draw.text((x, TITLE + 18), _fit(harmless(asked_concept), fonts[12], side), MUTED_COLOR, fonts[12])
            draw.text((x, TITLE + 36), f"seed {seed}", MUTED_COLOR, fonts[12])
            for r, cells in enumerate(shown.values()):
                y = TITLE + HEAD + r * row_height
                _draw_cell(sheet, draw, (x, y), side, cells.get(column), pictures, fonts[12])
            x += step
        x += BLOCK_GAP
    foot = f"judge {harmless(judge)}; blue frame: the requested concept is there, grey: it is not; number: its score"
    draw.text((GAP, sheet.height - FOOT + 4), _fit(foot, fonts[12], width - 2 * GAP), MUTED_COLOR, fonts[12])
    return sheet


def _draw_cell(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    side: int,
    row: dict[str, Any] | None,
    pictures: dict[str, Image.Image],
    font: Any,
) -> None:
    """One image with its frame and score; nothing where the model has no such row, or the image was not kept."""
    x, y = corner
    if row is None:
        return
    if row["image_sha256"] in pictures:
        picture = pictures[row["image_sha256"]]
        smooth = Image.Resampling.NEAREST if max(picture.size) <= side else Image.Resampling.LANCZOS
        sheet.paste(picture.resize((side, side), smooth), corner)
    if row["present"] is not None:
        box = (x - FRAME, y - FRAME, x + side + FRAME - 1, y + side + FRAME - 1)
        draw.rectangle(box, outline=PRESENT_COLOR if row["present"] else ABSENT_COLOR, width=FRAME)
    text = row["image_error"] or ("unreadable" if row["score"] is None else f"{row['score']:.2f}")
    draw.text((x, y + side + FRAME), text, PRESENT_COLOR if row["present"] else MUTED_COLOR, font)


def _cut(text: str, characters: int) -> str:
    return text if len(text) <= characters else text[: characters - 1] + "…"


def _fit(text: str, font: Any, width: int) -> str:
    """`text` cut to `width` pixels."""
    while font.getlength(text) > width and len(text) > 1:
        text = text.rstrip("…")[:-1] + "…"
    return text
