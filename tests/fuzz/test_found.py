"""What fuzzing found, each as a test of its own."""

import contextlib
from pathlib import Path

import pyarrow as pa
import pytest
from fuzz_tables import IMAGES, TABLE
from fuzz_texts import CAMPAIGN, dumped

from efface.cluster.campaign.spec import read_campaign
from efface.errors import UserError
from efface.eval.judging.image_table import read_images, read_table, write_table

GROWING = "a: &a [x, x, x, x]\n" + "".join(
    f"{key}: &{key} [*{before}, *{before}, *{before}, *{before}]\n"
    for before, key in zip("abcdefgh", "bcdefghi", strict=True)
)


def refusal(folder: Path, text: str, overrides: list[str] | None = None) -> str:
    path = folder / "campaign.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_campaign(path, overrides)
    return str(caught.value).removeprefix(f"{path}: ")


@pytest.mark.parametrize("text", ["'true'", "'1'", "1"])
def test_a_file_that_is_one_word_holds_no_mapping(tmp_path: Path, text: str) -> None:
    assert "mapping" in refusal(tmp_path, text)


@pytest.mark.parametrize("text", ["[" * 1500, "{a: " * 1500, "- " * 1500])
def test_a_file_may_not_be_nested_without_end(tmp_path: Path, text: str) -> None:
    assert "not valid YAML" in refusal(tmp_path, text)


def test_an_override_may_not_be_nested_without_end(tmp_path: Path) -> None:
    assert refusal(tmp_path, dumped(CAMPAIGN), ["seeds=" + "[" * 1500]).startswith("--set")


def test_aliases_that_grow_into_millions_of_values_are_refused(tmp_path: Path) -> None:
    assert "not valid YAML" in refusal(tmp_path, GROWING)


def test_an_unknown_key_with_a_bracket_is_named(tmp_path: Path) -> None:
    message = refusal(tmp_path, dumped(CAMPAIGN | {"se[eds": [0]}))
    assert message.startswith("unknown key 'se[eds', did you mean 'seeds'?")


def test_a_key_or_an_override_of_several_lines_is_reported_in_one(tmp_path: Path) -> None:
    assert "\n" not in refusal(tmp_path, dumped(CAMPAIGN | {"a\nb": 0}))
    assert "\n" not in refusal(tmp_path, dumped(CAMPAIGN), ["=\n\tx=1"])


def test_of_a_long_value_the_beginning_is_shown(tmp_path: Path) -> None:
    assert len(refusal(tmp_path, dumped(CAMPAIGN | {"seeds": "9" * 5000}))) < 200


@pytest.mark.parametrize(("table", "read"), [(TABLE, read_table), (IMAGES, read_images)], ids=["verdicts", "images"])
def test_no_flipped_bit_of_a_table_becomes_another_value(tmp_path: Path, table: pa.Table, read: object) -> None:
    """The lowest bit of every seventh byte of the file in turn."""
    assert callable(read)
    path = tmp_path / "table.parquet"
    write_table(path, table)
    whole = path.read_bytes()
    refused = 0
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            assert read(path).equals(table)
        except UserError:
            refused += 1
    assert refused > len(whole) // 7 // 2


def test_no_flipped_bit_of_a_file_takes_rows_away(tmp_path: Path) -> None:
    """The second lowest bit of every byte behind the pages, where a count of rows among them says 3."""
    path = tmp_path / "images.parquet"
    write_table(path, IMAGES)
    whole = path.read_bytes()
    for position in range(len(whole) - 8 - int.from_bytes(whole[-8:-4], "little"), len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 2
        path.write_bytes(damaged)
        with contextlib.suppress(UserError):
            assert len(read_images(path)) == len(IMAGES)
