"""The yes/no judge on a tiny LLaVA with random weights, and its reading of answers."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from efface.concepts.concept import ConceptSet
from efface.errors import UserError
from efface.eval.judges.vlm import VlmJudge, first_tokens, read_answer, yes_probability
from efface.eval.judging.judge_spec import load_judge

WORDS = (
    *("Yes", "No", "yes", "no", "YES", "NO", "maybe", "USER", ":", "ASSISTANT", "Is", "there", "a", "cat", "tulip"),
    *("in", "this", "image", "?", "Answer", "or", "."),
)
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), np.uint8)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llava") / "model"
    symbols = ["<pad>", "<s>", "</s>", "<unk>", "<image>", *WORDS]
    words = Tokenizer(models.WordLevel({symbol: i for i, symbol in enumerate(symbols)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1}
    torch.manual_seed(0)
    LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**small, image_size=16, patch_size=8),
            text_config=LlamaConfig(
                **small, vocab_size=len(symbols), pad_token_id=0, bos_token_id=1, eos_token_id=2, num_key_value_heads=1
            ),
            image_token_index=4,
            image_token_id=4,
            image_seq_length=4,
        )
    ).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16})
    LlavaProcessor(
        images, tokenizer, patch_size=8, vision_feature_select_strategy="default", num_additional_image_tokens=1
    ).save_pretrained(folder)
    return folder


@pytest.fixture
def judge(tmp_path: Path, model: Path) -> VlmJudge:
    (tmp_path / "tiny.yaml").write_text(f"kind: vlm\nsource: {model}\ndtype: float32\nbatch_size: 2\n")
    judge = load_judge(tmp_path / "tiny.yaml")
    assert isinstance(judge, VlmJudge)
    return judge


def always_say(judge: VlmJudge, monkeypatch: pytest.MonkeyPatch, words: str) -> None:
    """The model's generator replaced by one that answers `words`, sure of the first."""
    ids = judge.processor.tokenizer(words, add_special_tokens=False).input_ids

    def generate(input_ids: torch.Tensor, **_: Any) -> Any:
        new = torch.tensor([ids]).expand(len(input_ids), -1)
        logits = torch.zeros(len(input_ids), len(WORDS) + 5)
        logits[:, ids[0]] = 9.0
        return type("Output", (), {"sequences": torch.cat([input_ids, new], dim=1), "logits": (logits,)})

    monkeypatch.setattr(judge.model, "generate", generate)


@pytest.mark.parametrize(
    ("answer", "present"),
    [
        ("Yes", True), ("no.", False), (" YES, there is", True), ("No, there is no yes here", False),
        ("There is no cat", False), ("I think yes", True), ("", None), ("maybe", None), ("Nothing", None),
        ("eyes", None), ("either yes or no", None), ("Yesterday", None), ("42", None),
    ],
)  # fmt: skip
def test_an_answer_is_yes_no_or_unread(answer: str, present: bool | None) -> None:
    assert read_answer(answer) is present


def test_the_probability_is_yes_against_no_over_all_their_spellings() -> None:
    # e^1 + e^2 for yes, e^3 for no; the last word is neither.
    logits = torch.tensor([[1.0, 2.0, 3.0, 50.0]])
    expected = (np.e + np.e**2) / (np.e + np.e**2 + np.e**3)
    assert yes_probability(logits, [0, 1], [2]).item() == pytest.approx(expected)


def test_the_tiny_llava_answers_every_image(judge: VlmJudge, world: ConceptSet) -> None:
    asked = [world.find(name) for name in ("Cat", "Tulip", "Van Gogh")]
    verdicts = judge.judge(IMAGES, asked)
    assert len(verdicts) == 3
    answers, scores = judge._answers(IMAGES[:2], asked[:2])
    assert all(0 < score < 1 for score in scores)
    for verdict, answer, score in zip(verdicts, answers, scores, strict=False):
        assert verdict.present is read_answer(answer)
        assert np.isnan(verdict.score) if verdict.present is None else verdict.score == pytest.approx(score)


def test_the_score_comes_from_the_first_token_after_the_question(judge: VlmJudge, world: ConceptSet) -> None:
    cat = world.find("Cat")
    inputs = judge.processor(images=list(IMAGES[:1]), text=[judge.prompt(cat)], return_tensors="pt")
    with torch.no_grad():
        logits = judge.model(**inputs).logits[0, -1].double()
    word = {symbol: judge.processor.tokenizer.convert_tokens_to_ids(symbol) for symbol in WORDS}
    yes = sum(logits[word[w]].exp() for w in ("yes", "Yes", "YES"))
    no = sum(logits[word[w]].exp() for w in ("no", "No", "NO"))
    assert judge._answers(IMAGES[:1], [cat])[1][0] == pytest.approx(float(yes / (yes + no)), rel=1e-4)


def test_a_batch_gives_each_image_what_it_gets_alone(judge: VlmJudge, world: ConceptSet) -> None:
    asked = [world.find("Van Gogh"), world.find("Cat")]  # questions of different length: one is padded
    together = judge._answers(IMAGES[:2], asked)[1]
    alone = [judge._answers(IMAGES[i : i + 1], asked[i : i + 1])[1][0] for i in range(2)]
    assert together == pytest.approx(alone, rel=1e-4)


@pytest.mark.parametrize(("words", "present"), [("Yes", True), ("No .", False), ("maybe", None), ("maybe no", False)])
def test_present_is_the_answer_as_read(
    judge: VlmJudge, world: ConceptSet, monkeypatch: pytest.MonkeyPatch, words: str, present: bool | None
) -> None:
    always_say(judge, monkeypatch, words)
    (verdict,) = judge.judge(IMAGES[:1], [world.find("Cat")])
    assert verdict.present is present
    assert np.isnan(verdict.score) == (present is None)
    if words == "Yes":
        assert verdict.score == pytest.approx((np.e**9 + 2) / (np.e**9 + 5))


def test_the_question_is_put_in_the_models_own_chat_format(judge: VlmJudge, world: ConceptSet) -> None:
    cat = world.find("Cat")
    assert judge.prompt(cat) == "USER: <image>\nIs there a cat in this image? Answer yes or no. ASSISTANT:"
    judge.processor.chat_template = (
        "{% for m in messages %}[{% for c in m.content %}{% if c.type == 'image' %}<image>{% else %}{{ c.text }}"
        "{% endif %}{% endfor %}]{% endfor %}{% if add_generation_prompt %}->{% endif %}"
    )
    assert judge.prompt(cat) == "[<image>Is there a cat in this image? Answer yes or no.]->"


def test_the_version_follows_the_question(tmp_path: Path, model: Path, judge: VlmJudge) -> None:
    text = f"kind: vlm\nsource: {model}\ndtype: float32\nquestion: Is there {{question}}?\n"
    (tmp_path / "other.yaml").write_text(text)
    assert load_judge(tmp_path / "other.yaml").version != judge.version


def test_a_tokenizer_without_yes_is_refused() -> None:
    words = Tokenizer(models.WordLevel({"<unk>": 0, "no": 1}, unk_token="<unk>"))
    with pytest.raises(UserError, match="no single token for 'yes'"):
        first_tokens(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>"), "yes")
