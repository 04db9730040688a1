"""The image table: one row per image, judge and question. Every published number is a query
over it.

It is kept as Parquet, checked once on reading. The images themselves lie in a table of their own, found by
their hash.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from efface.concepts.prompts import AXES, TARGET_AXES
from efface.errors import UserError, did_you_mean
from efface.eval.judging.image_errors import IMAGE_ERRORS
from efface.files import as_path, is_remote, write_atomic
from efface.plain_files import check_plain

_TEXT = ("model_id", "base_id", "method", "concept", "axis", "asked_concept", "prompt", "prompt_id")

# `method` is the label a result is published under, "base" for the unedited model. `present` and `score` are
# null together, where the judge's answer could not be read, or the image is no evidence: `image_error` says why.
# `held_out`: whether no method could see the asked concept; null where it is the target itself.
SCHEMA = pa.schema(
    [
        *(pa.field(name, pa.string(), nullable=False) for name in _TEXT),
        pa.field("seed", pa.int64(), nullable=False),
        *(pa.field(name, pa.string(), nullable=False) for name in ("recipe_id", "judge", "judge_version")),
        pa.field("present", pa.bool_()),
        pa.field("score", pa.float64()),
        pa.field("image_sha256", pa.string(), nullable=False),
        pa.field("image_error", pa.string()),
        pa.field("held_out", pa.bool_()),
    ]
)
OPTIONAL = ("image_error", "held_out")
"""Columns that tables of before do not have; they are empty then."""
# image_sha256: over height, width and the uint8 RGB pixels; png: the same pixels, encoded without loss.
IMAGE_SCHEMA = pa.schema(
    [
        pa.field("image_sha256", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("seed", pa.int64(), nullable=False),
        pa.field("recipe_id", pa.string(), nullable=False),
        pa.field("png", pa.binary(), nullable=False),
    ]
)
# No two rows may agree in all of these.
KEY = (
    "model_id",
    "method",
    "concept",
    "axis",
    "asked_concept",
    "prompt_id",
    "seed",
    "recipe_id",
    "judge",
    "judge_version",
)


def read_table(path: str | Path) -> pa.Table:
    """The image table in a Parquet file, or in all Parquet files below a folder, in the order of `SCHEMA`.

    Raises UserError with the file and the error: not Parquet, a missing column, a wrong type, a null, a
    score outside [0, 1], an unknown axis, a duplicate.
    """
    parts = [_read(file, SCHEMA) for file in _files(as_path(path))]
    table = pa.concat_tables(parts).combine_chunks()
    _check(table, str(path))
    return table


def read_images(path: str | Path) -> pa.Table:
    """The images in a Parquet file, or below a folder: `IMAGE_SCHEMA`, each image once."""
    table = pa.concat_tables([_read(file, IMAGE_SCHEMA) for file in _files(as_path(path))])
    first = np.unique(table["image_sha256"].to_numpy(zero_copy_only=False), return_index=True)[1]
    return table.take(np.sort(first))


def write_table(path: str | Path, table: pa.Table) -> None:
    """Write an image table or a table of images to a Parquet file, whole or not at all.

    The bytes are a function of the rows and their order. Raises UserError where the table would not be read
    back.
    """
    schema = IMAGE_SCHEMA if "png" in table.column_names else SCHEMA
    table = _fitted(table, schema, str(path))
    if schema is SCHEMA:
        _check(table, str(path))
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    write_atomic(as_path(path), buffer.getvalue())


def _files(path: Path) -> Sequence[Path]:
    if path.is_dir():
        files = sorted(file for file in path.rglob("*.parquet") if not file.name.startswith("."))
        if not files:
            raise UserError(f"{path}: holds no Parquet file, should be an image table or a folder of them")
        return files
    if not path.is_file():
        raise UserError(f"{path}: no such file or folder, should be an image table (Parquet) or a folder of them")
    return [path]


def _read(path: Path, schema: pa.Schema) -> pa.Table:
    try:
        check_plain(path)
        # ParquetFile reads one file as it is; read_table would look for partitions in its path.
        source = io.BytesIO(path.read_bytes()) if is_remote(path) else path
        with pq.ParquetFile(source, page_checksum_verification=True) as file:
            table = file.read()
            if not _rows_agree(file.metadata):
                raise ValueError("its counts of rows differ")
    except (OSError, pa.ArrowException, ValueError) as error:
        raise UserError(f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})") from None
    return _fitted(table, schema, str(path))


def _rows_agree(metadata: pq.FileMetaData) -> bool:
    """Whether a file says everywhere that it has as many rows: its pages have checksums, and these counts have none."""
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    columns = ((group, group.column(i)) for group in groups for i in range(group.num_columns))
    flat = ((group, column) for group, column in columns if "." not in column.path_in_schema)
    return metadata.num_rows == sum(group.num_rows for group in groups) and all(
        column.num_values == group.num_rows for group, column in flat
    )


def _fitted(table: pa.Table, schema: pa.Schema, where: str) -> pa.Table:
    """`table` with exactly the columns, types and order of `schema`; a further column is left out."""
    columns = []
    for field in schema:
        if field.name in OPTIONAL and field.name not in table.column_names:
            columns.append(pa.chunked_array([pa.nulls(table.num_rows, field.type)]))
            continue
        if table.column_names.count(field.name) != 1:
            hint = did_you_mean(field.name, [" ".join(name.split()) for name in table.column_names])
            raise UserError(f"{where}: column '{field.name}' should be there once, {hint}")
        columns.append(_column(table[field.name], field, where))
    return pa.table(columns, schema=schema)


def _column(column: pa.ChunkedArray, field: pa.Field, where: str) -> pa.ChunkedArray:
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    if not _same_kind(kind, field.type) and not (field.nullable and pa.types.is_null(kind)):
        raise UserError(f"{where}: column '{field.name}' holds {kind}, should be {field.type}")
    try:
        column = column.cast(field.type)
        column.validate(full=True)  # a file may hold bytes that are no UTF-8 under the name of a string
    except (pa.ArrowException, ValueError) as error:
        raise UserError(f"{where}: column '{field.name}' cannot be read ({str(error).splitlines()[0]})") from None
    if column.null_count and not field.nullable:
        raise UserError(f"{where}: column '{field.name}' is empty in {column.null_count} rows, should be filled in all")
    return column


def _same_kind(found: pa.DataType, wanted: pa.DataType) -> bool:
    """Widths may differ (int32 for int64, large_string for string), meanings may not."""
    kinds = (
        lambda t: pa.types.is_string(t) or pa.types.is_large_string(t) or pa.types.is_string_view(t),
        pa.types.is_integer,
        pa.types.is_floating,
        pa.types.is_boolean,
        lambda t: pa.types.is_binary(t) or pa.types.is_large_binary(t),
    )
    return any(kind(found) and kind(wanted) for kind in kinds)


def _check(table: pa.Table, where: str) -> None:
    """What the types do not say. Raises UserError."""
    for axis in table["axis"].unique().to_pylist():
        if axis not in AXES:
            raise UserError(f"{where}: unknown axis {axis!r}, {did_you_mean(axis, AXES)}")
    score, present = table["score"], table["present"]
    wrong = table.filter(pc.invert(pc.fill_null(pc.and_(pc.greater_equal(score, 0), pc.less_equal(score, 1)), True)))
    if wrong.num_rows:
        raise UserError(
            f"{where}: {wrong.num_rows} rows have a score outside [0, 1], the first "
            f"{wrong['score'][0].as_py()} for concept '{wrong['concept'][0]}' on axis {wrong['axis'][0]}"
        )
    lone = pc.sum(pc.cast(pc.not_equal(score.is_null(), present.is_null()), pa.int64())).as_py()
    if lone:
        raise UserError(f"{where}: {lone} rows have only one of 'present' and 'score', should be both or neither")
    for error in table["image_error"].unique().drop_null().to_pylist():
        if error not in IMAGE_ERRORS:
            raise UserError(f"{where}: unknown image_error {error!r}, {did_you_mean(error, IMAGE_ERRORS)}")
    judged = table.filter(pc.and_(pc.is_valid(table["image_error"]), pc.is_valid(present))).num_rows
    if judged:
        raise UserError(f"{where}: {judged} rows have a verdict on an image with an image_error, should have none")
    own = pc.is_in(table["axis"], pa.array(TARGET_AXES))
    wrong = table.filter(pc.not_equal(own, pc.equal(table["concept"], table["asked_concept"])))
    if wrong.num_rows:
        axis, asked_concept, concept = (wrong[name][0] for name in ("axis", "asked_concept", "concept"))
        other = "the target itself" if str(axis) in TARGET_AXES else "another concept than the target"
        raise UserError(
            f"{where}: axis {axis} asks for '{asked_concept}' with target '{concept}', should ask for {other}"
        )
    marked = pc.fill_null(table["held_out"], False)
    wrong = table.filter(pc.and_(own, marked))
    if wrong.num_rows:
        raise UserError(
            f"{where}: axis {wrong['axis'][0]} of '{wrong['concept'][0]}' asks for the target itself and is marked as "
            "held out, should be so on adjacent and retain alone"
        )
    keys = table.select(KEY).group_by(list(KEY)).aggregate([([], "count_all")])
    twice = keys.filter(pc.greater(keys["count_all"], 1))
    if twice.num_rows:
        row = ", ".join(f"{name} {twice[name][0]}" for name in KEY if name not in ("prompt_id", "judge_version"))
        raise UserError(f"{where}: {twice.num_rows} rows are there more than once, the first: {row}")
