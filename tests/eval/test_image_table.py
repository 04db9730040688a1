"""The image table on disk: what is written is read back, and every fault in a file is one sentence."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from efface.concepts.prompts import AXES
from efface.errors import UserError
from efface.eval.judging.image_table import IMAGE_SCHEMA, SCHEMA, read_images, read_table, write_table

Row = Callable[..., dict[str, Any]]
MakeTable = Callable[..., pa.Table]


def save(path: Path, rows: list[dict[str, Any]], schema: pa.Schema | None = None) -> Path:
    """Parquet written behind the back of `write_table`."""
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def test_the_columns_are_those_of_the_design() -> None:
    assert SCHEMA.names == [
        *("model_id", "base_id", "method", "concept", "axis", "asked_concept", "prompt", "prompt_id", "seed"),
        *("recipe_id", "judge", "judge_version", "present", "score", "image_sha256", "image_error"),
        "held_out",
    ]


def test_a_table_reads_back_as_written(row: Row, table: MakeTable, tmp_path: Path) -> None:
    rows = table([row("forget", True, score=0.7), row("forget", None, seed=1), row("retain", False)])
    write_table(tmp_path / "t.parquet", rows)
    assert read_table(tmp_path / "t.parquet").equals(rows)


def test_the_same_rows_give_the_same_bytes(row: Row, table: MakeTable, tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_table(tmp_path / name, table([row("forget", True)]))
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_folder_is_read_as_one_table(row: Row, table: MakeTable, tmp_path: Path) -> None:
    write_table(tmp_path / "x" / "1.parquet", table([row("forget", True)]))
    write_table(tmp_path / "y" / "0.parquet", table([row("forget", True, seed=1)]))
    assert read_table(tmp_path)["seed"].to_pylist() == [0, 1]


def test_a_row_in_two_files_is_a_duplicate(row: Row, table: MakeTable, tmp_path: Path) -> None:
    for name in ("1.parquet", "2.parquet"):
        write_table(tmp_path / name, table([row("forget", True, concept="Van Gogh")]))
    with pytest.raises(UserError, match=r"more than once, the first: .*concept Van Gogh"):
        read_table(tmp_path)


def test_narrower_types_and_further_columns_are_taken(row: Row, tmp_path: Path) -> None:
    rows = pa.Table.from_pylist([row("forget", True) | {"note": "x"}])
    for name, kind in (
        ("seed", pa.int32()),
        ("score", pa.float32()),
        ("method", pa.dictionary(pa.int8(), pa.string())),
    ):
        rows = rows.set_column(rows.column_names.index(name), name, rows[name].cast(kind))
    pq.write_table(rows, tmp_path / "t.parquet")
    assert read_table(tmp_path / "t.parquet").schema == SCHEMA


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"axis": "forgot"}, "unknown axis 'forgot', did you mean 'forget'"),
        ({"score": 1.5}, r"1 rows have a score outside \[0, 1\], the first 1.5"),
        ({"score": float("nan")}, r"outside \[0, 1\], the first nan"),
        ({"score": -0.1}, r"outside \[0, 1\]"),
        ({"score": None}, "only one of 'present' and 'score'"),
        ({"present": None}, "only one of 'present' and 'score'"),
        ({"asked_concept": "Dog"}, "axis forget asks for 'Dog' with target 'Cat', should ask for the target itself"),
        ({"axis": "retain"}, "axis retain asks for 'Cat' with target 'Cat', should ask for another concept"),
        ({"seed": "0"}, "column 'seed' holds string, should be int64"),
        ({"score": "high"}, "column 'score' holds string, should be double"),
        ({"present": 1}, "column 'present' holds int64, should be bool"),
        ({"judge": None}, "column 'judge' holds null, should be string"),
        (
            {"image_error": "black", "present": None, "score": None},
            "unknown image_error 'black', did you mean 'blanked'",
        ),
        ({"held_out": True}, "axis forget of 'Cat' asks for the target itself and is marked as held out"),
        ({"image_error": "blanked"}, "1 rows have a verdict on an image with an image_error, should have none"),
    ],
)
def test_an_error_is_described_in_one_sentence(row: Row, tmp_path: Path, change: dict[str, Any], sentence: str) -> None:
    path = save(tmp_path / "t.parquet", [row("forget", True) | change])
    with pytest.raises(UserError, match=sentence) as error:
        read_table(path)
    assert str(path) in str(error.value)


def test_an_empty_cell_is_counted(row: Row, tmp_path: Path) -> None:
    path = save(tmp_path / "t.parquet", [row("forget", True), row("forget", True, seed=1, judge=None)])
    with pytest.raises(UserError, match="column 'judge' is empty in 1 rows"):
        read_table(path)


@pytest.mark.parametrize("name", [name for name in SCHEMA.names if name not in ("image_error", "held_out")])
def test_every_column_must_be_there(row: Row, tmp_path: Path, name: str) -> None:
    cells = row("forget", True)
    del cells[name]
    with pytest.raises(UserError, match=f"column '{name}' should be there once"):
        read_table(save(tmp_path / "t.parquet", [cells]))


def test_a_table_from_before_images_were_looked_at_has_no_errors(row: Row, tmp_path: Path) -> None:
    cells = row("forget", True)
    del cells["image_error"]
    table = read_table(save(tmp_path / "t.parquet", [cells]))
    assert table.schema == SCHEMA and table["image_error"].to_pylist() == [None]


def test_a_table_from_before_concepts_were_held_out_does_not_say_which_were(row: Row, tmp_path: Path) -> None:
    cells = row("retain", True)
    del cells["held_out"]
    assert read_table(save(tmp_path / "t.parquet", [cells]))["held_out"].to_pylist() == [None]


def test_missing_files_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file or folder"):
        read_table(tmp_path / "nowhere.parquet")
    with pytest.raises(UserError, match="holds no Parquet file"):
        read_table(tmp_path)


def test_a_wrong_table_is_not_written(row: Row, table: MakeTable, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="outside"):
        write_table(tmp_path / "t.parquet", table([row("forget", True, score=2.0)]))
    assert not (tmp_path / "t.parquet").exists()


def test_images_read_back_each_once(tmp_path: Path) -> None:
    image = {"image_sha256": "a", "prompt": "p", "seed": 1, "recipe_id": "r", "png": b"\x89PNG"}
    images = pa.Table.from_pylist([image, image | {"image_sha256": "b"}, image], schema=IMAGE_SCHEMA)
    write_table(tmp_path / "i.parquet", images)
    assert read_images(tmp_path / "i.parquet").equals(images.slice(0, 2))


cells = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**63 - 1), st.floats(), st.text(max_size=4), st.sampled_from(AXES)
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_table_is_read_whole_or_refused_in_one_sentence(data: st.DataObject, row: Row, tmp_path: Path) -> None:
    rows = [row("forget", True, seed=seed) for seed in range(data.draw(st.integers(0, 3)))]
    for cell in data.draw(st.lists(st.tuples(st.sampled_from(SCHEMA.names), cells), max_size=3)):
        if rows:
            data.draw(st.sampled_from(rows))[cell[0]] = cell[1]
    names = data.draw(st.permutations(SCHEMA.names))[: data.draw(st.integers(14, 17))]
    try:
        made = pa.table({name: [r[name] for r in rows] for name in names})
    except pa.ArrowException:
        return  # a column of mixed types is no Parquet column
    pq.write_table(made, tmp_path / "t.parquet")
    try:
        back = read_table(tmp_path / "t.parquet")
    except UserError as error:
        assert "\n" not in str(error)
    else:
        assert back.schema == SCHEMA
        assert back.num_rows == len(rows)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_is_read_or_refused_in_one_sentence(data: st.DataObject, row: Row, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist([row("forget", True), row("retain", None)], schema=SCHEMA), buffer)
    damaged = bytearray(buffer.getvalue())
    for place, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(damaged) - 1), st.integers(0, 255)), max_size=4)
    ):
        damaged[place] = byte
    damaged = damaged[: data.draw(st.integers(0, len(damaged)))] if data.draw(st.booleans()) else damaged
    (tmp_path / "t.parquet").write_bytes(bytes(damaged))
    try:
        read_table(tmp_path / "t.parquet")
    except UserError as error:
        assert "\n" not in str(error)
