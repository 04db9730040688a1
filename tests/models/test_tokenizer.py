"""The window of a base's text encoder, read from its tokenizer alone."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from efface.errors import UserError
from efface.models.base import BaseSpec, load_base, read_base
from efface.models.text.text_encoding import last_subject_token
from efface.models.text.tokenizer import text_window


def test_clip_reads_75_tokens_and_the_shipped_tokenizer_says_so_without_weights() -> None:
    window = text_window(read_base("sd-v1-4"))
    assert window is not None and (window.base, window.size) == ("sd-v1-4", 75)
    whole, cut = window.read(["very " * 74 + "cat", "very " * 75 + "cat"])
    assert (whole.length, cut.length) == (75, 76)
    assert "cat" in whole.kept and "cat" not in cut.kept and cut.kept.count("very") == 75
    # The numbers of CLIP's vocabulary, as in the paper's release: a, photo, of, a, cat.
    assert window.read(["A Photo of  a cat"])[0].tokens == (320, 1125, 539, 320, 2368)


def test_a_text_of_spaces_or_special_tokens_says_nothing() -> None:
    window = text_window(read_base("miniature"))
    assert window is not None
    assert [reading.tokens for reading in window.read([" \n", "<|endoftext|>", "<|startoftext|> <|endoftext|>"])] == [
        ()
    ] * 3


def test_the_window_is_the_one_the_base_reads_by(tiny_base_folder: Path) -> None:
    spec = read_base(tiny_base_folder)
    window, base = text_window(spec), load_base(spec)
    assert window is not None
    for text in ("cat", "c" * 74, "c" * 75, "c" * 76, "c" * 90):
        read = last_subject_token(base, [text])[0]  # the last position before the end: 75 where it was cut
        assert read == min(window.read([text])[0].length, window.size)


def test_characters_that_a_vocabulary_lacks_say_nothing(
    tmp_path: Path, tiny_base_folder: Path, write_tokenizer: Callable[[Path], int]
) -> None:
    shutil.copytree(tiny_base_folder, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer"))
    write_tokenizer(tmp_path / "model" / "tokenizer")
    file = tmp_path / "model" / "tokenizer" / "vocab.json"
    vocabulary = json.loads(file.read_text())
    file.write_text(json.dumps({symbol: i for symbol, i in vocabulary.items() if symbol[0] not in "xyz"}))
    window = text_window(read_base(tmp_path / "model"))
    assert window is not None
    assert window.read(["xyz"])[0].tokens == () and len(window.read(["xyz cat"])[0].tokens) == 3


def test_an_encoder_with_fewer_positions_than_its_tokenizer_says_reads_so_many(
    tmp_path: Path, tiny_base_folder: Path
) -> None:
    shutil.copytree(tiny_base_folder, tmp_path / "model")
    file = tmp_path / "model" / "text_encoder" / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "max_position_embeddings": 20}))
    window = text_window(read_base(tmp_path / "model"))
    assert window is not None and window.size == 18


def test_a_base_that_is_not_fetched_has_the_window_of_its_architecture_or_none_yet() -> None:
    known = BaseSpec(name="mine", source="nobody/mine", architecture="sd-v1-4")
    window = text_window(known)
    assert window is not None and (window.base, window.size) == ("mine", 75)
    assert text_window(BaseSpec(name="mine", source="nobody/mine")) is None


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path, tiny_base_folder: Path) -> None:
    shutil.copytree(tiny_base_folder, tmp_path / "model", ignore=shutil.ignore_patterns("tokenizer"))
    with pytest.raises(UserError, match="tokenizer: cannot be loaded as a CLIPTokenizer"):
        text_window(read_base(tmp_path / "model"))
