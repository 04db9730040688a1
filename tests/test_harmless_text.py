"""Text of strangers where it leaves efface: harmless for a terminal, for JSON on one, and for a spreadsheet."""

import io
import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from efface.errors import JobFailure, Stopped, StorageError, UserError
from efface.text import csv_cell, csv_text, json_text, rich_text, shown

CLEARS_THE_SCREEN = "\x1b[2J"
C1_ESCAPE = "\x9b31m"  # one character that terminals take for ESC [
RIGHT_TO_LEFT = "\u202e"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a cat", "a cat"),
        ("Café 猫 🐦 <b>&amp;</b> [red]", "Café 猫 🐦 <b>&amp;</b> [red]"),
        (CLEARS_THE_SCREEN, "\\x1b[2J"),
        (C1_ESCAPE, "\\x9b31m"),
        ("two\r\nlines\tand more", "two\\r\\nlines\\tand more"),
        (f"txt.{RIGHT_TO_LEFT}exe", "txt.\\u202eexe"),
        ("a\u200bb\u2028c", "a\\u200bb\\u2028c"),
        ("a\udce9b", "a\\udce9b"),
        ("no\u00a0break", "no\u00a0break"),
    ],
)
def test_what_would_act_on_a_terminal_is_written_out_and_letters_stay(text: str, expected: str) -> None:
    assert shown(text) == expected


@given(st.text())
def test_shown_text_stands_on_one_line_and_is_shown_the_same_again(text: str) -> None:
    once = shown(text)
    assert len(once.splitlines()) <= 1 and "\x1b" not in once and shown(once) == once
    once.encode()  # no lone surrogate is left


def test_rich_takes_nothing_in_it_for_markup_or_emoji() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=200)
    text = f"[bold red]x[/] :cat: [link=file:///etc]y[/link] {CLEARS_THE_SCREEN}"
    console.print(rich_text(text))
    assert console.file.getvalue() == f"{shown(text)}\n"  # type: ignore[attr-defined]


@given(
    st.recursive(
        st.text() | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)
    )
)
def test_json_for_a_terminal_is_the_same_value_without_unseen_characters(value: object) -> None:
    text = json_text(value)
    assert json.loads(text) == json.loads(json.dumps(value))
    assert text.replace("\n", "") == shown(text.replace("\n", ""))


def test_json_keeps_letters_readable() -> None:
    assert json_text({"é": "猫\x9b"}) == '{\n  "é": "猫\\u009b"\n}'


@pytest.mark.parametrize("text", ["=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "＝1", '=HYPERLINK("http://x")'])
def test_a_text_that_begins_like_a_formula_has_an_apostrophe_before_it(text: str) -> None:
    assert csv_cell(text) == f"'{text}" and csv_text(f"'{text}") == text


@pytest.mark.parametrize("value", [-0.5, -3, "a - b", "a cat", "'tis", "", None])
def test_numbers_and_other_texts_stay_as_they_are(value: object) -> None:
    assert csv_cell(value) == value


@given(st.text(alphabet="'=-ab") | st.text())
def test_a_cell_reads_back_as_the_text_it_was(text: str) -> None:
    assert csv_text(csv_cell(text)) == text
    assert not csv_cell(text).startswith(("=", "+", "-", "@", "\t", "\r"))


@pytest.mark.parametrize("kind", [UserError, StorageError, JobFailure, Stopped])
def test_the_sentence_of_an_error_is_harmless_wherever_it_is_shown(kind: type[Exception]) -> None:
    error = kind(f"unknown concept '{CLEARS_THE_SCREEN}\n'")
    assert str(error) == "unknown concept '\\x1b[2J\\n'"
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert str(kind()) == ""
