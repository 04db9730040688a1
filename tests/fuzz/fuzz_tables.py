"""Image tables under fuzz: damaged Parquet files, and whole ones with other columns."""

import io
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from damage import SCALARS, damaged_bytes
from hypothesis import strategies as st

from efface.eval.judging.image_table import IMAGE_SCHEMA, SCHEMA, read_images, read_table, write_table


def _row(number: int) -> dict[str, Any]:
    target = number % 2 == 0
    return {
        **{name: f"{name} {number}" for name in ("prompt", "prompt_id", "image_sha256")},
        **{name: name for name in ("model_id", "base_id", "method", "recipe_id", "judge", "judge_version")},
        "concept": "cat",
        "axis": "forget" if target else "retain",
        "asked_concept": "cat" if target else "dog",
        "seed": number,
        "present": target,
        "score": 0.25 if target else 0.75,
    }


TABLE = pa.Table.from_pylist([_row(number) for number in range(6)], schema=SCHEMA)
IMAGES = pa.Table.from_pylist(
    [{"image_sha256": f"{n}" * 64, "prompt": "a cat", "seed": n, "recipe_id": "r", "png": bytes(50)} for n in range(3)],
    schema=IMAGE_SCHEMA,
)
KINDS = (
    *(
        pa.string(),
        pa.large_string(),
        pa.int8(),
        pa.uint64(),
        pa.int64(),
        pa.float16(),
        pa.float32(),
        pa.float64(),
        pa.bool_(),
    ),
    *(
        pa.binary(),
        pa.null(),
        pa.date32(),
        pa.timestamp("ns"),
        pa.decimal128(5),
        pa.list_(pa.string()),
        pa.struct([("a", pa.int8())]),
    ),
    *(pa.dictionary(pa.int8(), pa.string()), pa.binary(3), pa.string_view(), pa.dictionary(pa.int32(), pa.float64())),
)


def _parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()


def _written(table: pa.Table) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        write_table(Path(folder) / "table.parquet", table)
        return (Path(folder) / "table.parquet").read_bytes()


@st.composite
def other_columns(draw: st.DrawFn) -> bytes:
    """A whole Parquet file with columns lost, doubled, of another type, or with other values."""
    table = TABLE
    for _ in range(draw(st.integers(1, 3))):
        position = draw(st.integers(0, table.num_columns - 1))
        name, column = table.column_names[position], table.column(position)
        what = draw(st.integers(0, 4))
        if what == 0 and table.num_columns > 1:
            table = table.remove_column(position)
        elif what == 1:
            table = table.append_column(draw(st.sampled_from((name, "note", ""))), column)
        elif what == 2:
            kind = draw(st.sampled_from(KINDS))
            try:
                column = column.cast(kind)
            except (pa.ArrowException, ValueError):
                column = pa.nulls(len(column), kind)
            table = table.set_column(position, name, column)
        elif what == 3:
            values = draw(
                st.lists(SCALARS | st.sampled_from((0, 1, 2**63, -0.0)), min_size=len(column), max_size=len(column))
            )
            with suppress(pa.ArrowException, ValueError, OverflowError, TypeError):
                table = table.set_column(position, name, pa.array(values))
        else:
            table = pa.concat_tables([table, table]) if table.num_rows < 20 else table.slice(0, 0)
    try:
        return _parquet(table)
    except (pa.ArrowException, ValueError):
        return b""


def check_damaged(drawn: bytes, folder: Path) -> bool:
    """What is accepted holds the rows that were there before: no flipped bit becomes a score."""
    path = folder / "table.parquet"
    path.write_bytes(drawn)
    assert read_table(path).equals(TABLE)
    return True


def check_damaged_images(drawn: bytes, folder: Path) -> bool:
    path = folder / "images.parquet"
    path.write_bytes(drawn)
    assert read_images(path).equals(IMAGES)
    return True


def check_other_columns(drawn: bytes, folder: Path) -> bool:
    """What is accepted can be written, and is then read back as it was."""
    path = folder / "table.parquet"
    path.write_bytes(drawn)
    table = read_table(path)
    assert table.schema == SCHEMA
    write_table(path, table)
    assert read_table(path).equals(table)
    return True


damaged = damaged_bytes(_written(TABLE))
damaged_images = damaged_bytes(_written(IMAGES))
