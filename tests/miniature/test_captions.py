"""Captions and prompts: every family is said, nothing false is said, and every text has a spelling in tokens."""

import csv
import io
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer

from efface.concepts.concept import load_concept_set
from efface.miniature import MODEL, prompts
from efface.miniature.captions import HELD_OUT_TEMPLATES, caption, style_alone
from efface.miniature.tokenizer import build_tokenizer
from efface.miniature.vocabulary import BY_NAME, CONCEPTS, OBJECTS, STYLES
from efface.miniature.world import draw_scene


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> CLIPTokenizer:
    return build_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def said() -> list[tuple[str, str, str]]:
    """(thing, style, caption) of many scenes."""
    rng = np.random.default_rng(0)
    scenes = [draw_scene(8, index) for index in range(6000)]
    return [(str(scene.thing), scene.style, caption(scene, rng)) for scene in scenes]


def test_one_caption_in_ten_is_empty(said: list[tuple[str, str, str]]) -> None:
    assert np.mean([text == "" for _, _, text in said]) == pytest.approx(0.1, abs=0.02)


def test_names_aliases_and_descriptions_all_get_a_real_share(said: list[tuple[str, str, str]]) -> None:
    plain = [(BY_NAME[thing], text) for thing, style, text in said if style == "plain" and text]
    shares = {
        "name": np.mean([bool(re.search(rf"\b{w.name}\b", text)) for w, text in plain]),
        "alias": np.mean([any(re.search(rf"\b{a}\b", text) for a in w.aliases) for w, text in plain]),
        "description": np.mean([any(d in text for d in w.descriptions) for w, text in plain]),
    }
    assert shares["name"] > 0.4 and shares["alias"] > 0.15 and shares["description"] > 0.25


def test_a_caption_never_names_a_thing_or_style_that_is_not_shown(said: list[tuple[str, str, str]]) -> None:
    for thing, style, text in said:
        wrong = [w.name for w in CONCEPTS if w.name not in (thing, style) and re.search(rf"\b{w.name}\b", text)]
        assert not wrong, text


def test_held_out_templates_never_occur_in_captions(said: list[tuple[str, str, str]]) -> None:
    starts = tuple(template.split("{")[0] for template in HELD_OUT_TEMPLATES)
    assert not [text for _, _, text in said if text.startswith(starts)]


def test_every_caption_survives_the_tokenizer(said: list[tuple[str, str, str]], tokenizer: CLIPTokenizer) -> None:
    for _, _, text in said[:1000]:
        ids = tokenizer(text).input_ids
        assert len(ids) <= 40
        assert _letters(tokenizer.decode(ids, skip_special_tokens=True)) == _letters(text)


@settings(max_examples=60, deadline=None)
@given(text=st.text(max_size=30))
def test_any_string_tokenizes_without_an_unknown(text: str, tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer(text, add_special_tokens=False).input_ids
    if "<|" not in text:
        assert tokenizer.unk_token_id not in ids


def test_an_emoji_and_chinese_keep_their_bytes(tokenizer: CLIPTokenizer) -> None:
    ids = tokenizer("🦊 世界").input_ids
    assert _letters(tokenizer.decode(ids, skip_special_tokens=True)) == "🦊世界"


def test_the_vocabulary_is_ordered_as_clips(tokenizer: CLIPTokenizer) -> None:
    vocabulary = tokenizer.get_vocab()
    ordered = sorted(vocabulary, key=vocabulary.__getitem__)
    assert all(len(symbol) == 1 for symbol in ordered[:256])
    assert ordered[256:512] == [symbol + "</w>" for symbol in ordered[:256]]
    assert ordered[-2:] == ["<|startoftext|>", "<|endoftext|>"]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == len(ordered) - 1
    assert tokenizer.model_max_length == 77


def test_learning_the_tokenizer_again_gives_the_shipped_one(tokenizer: CLIPTokenizer) -> None:
    assert CLIPTokenizer.from_pretrained(MODEL / "tokenizer").get_vocab() == tokenizer.get_vocab()


def test_indirect_prompts_never_hold_the_name_or_an_alias_and_direct_ones_hold_the_name() -> None:
    for words in CONCEPTS:
        names = "|".join((words.name, *words.aliases))
        assert all(re.search(rf"\b{words.name}\b", prompt) for prompt in prompts.direct_prompts(words))
        hidden = prompts.indirect_prompts(words)
        assert not [prompt for prompt in hidden if re.search(rf"\b({names})(e?s)?\b", prompt)]


def test_prompts_are_five_a_concept_and_axis_and_none_is_asked_twice() -> None:
    for make in (prompts.direct_prompts, prompts.indirect_prompts):
        every = [prompt for words in CONCEPTS for prompt in make(words)]
        assert len(every) == len(set(every)) == 5 * len(CONCEPTS)


def test_the_shipped_concept_files_are_what_the_vocabulary_says() -> None:
    data = Path(__file__).resolve().parents[2] / "concepts" / "data"
    shipped = load_concept_set("miniature")
    assert [concept.name for concept in shipped.concepts] == [words.name for words in CONCEPTS]
    text = (data / "miniature.csv").read_text(encoding="utf-8")
    kept = {row["concept_name"]: row for row in csv.DictReader(io.StringIO(text))}
    assert prompts.prompt_table(kept) == text


def test_style_captions_without_a_thing_speak_of_the_style_alone() -> None:
    rng = np.random.default_rng(1)
    for style in STYLES:
        for _ in range(50):
            text = style_alone(style.name, rng)
            assert not [words.name for words in OBJECTS if re.search(rf"\b{words.name}\b", text)]


def _letters(text: str) -> str:
    return re.sub(r"\s", "", text)
