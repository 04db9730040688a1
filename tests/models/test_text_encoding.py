"""Prompts as embeddings: what Stable Diffusion's own pipeline computes, one prompt at a time."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from efface.models.base import Base, load_base
from efface.models.text.text_encoding import encode_ids, encode_prompts, last_subject_token, token_ids

PROMPTS = ["a red cat", "", "a dog, at night", "x" * 200]


def encoded(base: Base, prompts: list[str]) -> torch.Tensor:
    return encode_prompts(base, prompts).encoder_hidden_states


def test_embeddings_are_those_of_diffusers_own_pipeline(tiny_base: Base) -> None:
    pipeline = StableDiffusionPipeline(
        tiny_base.vae, tiny_base.text_encoder, tiny_base.tokenizer, tiny_base.unet, None, None, None, None, False
    )
    theirs = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)[0]
    torch.testing.assert_close(encoded(tiny_base, PROMPTS), theirs, atol=1e-5, rtol=1e-5)


def test_they_are_the_state_after_the_final_norm(tiny_base: Base) -> None:
    embeddings = encoded(tiny_base, PROMPTS)
    assert (embeddings.shape, embeddings.dtype) == ((4, 77, 16), torch.float32)
    norm = tiny_base.text_encoder.final_layer_norm
    plain = (embeddings - norm.bias) / norm.weight
    torch.testing.assert_close(plain.mean(-1), torch.zeros(4, 77), atol=1e-4, rtol=0)


def test_bits_do_not_depend_on_neighbours(tiny_base: Base) -> None:
    together = encoded(tiny_base, PROMPTS)
    assert all(torch.equal(encoded(tiny_base, [p])[0], e) for p, e in zip(PROMPTS, together, strict=True))


def test_the_last_subject_token_stands_before_the_first_end(tiny_base: Base) -> None:
    ids, ends = token_ids(tiny_base, PROMPTS), tiny_base.tokenizer.eos_token_id
    places = last_subject_token(tiny_base, PROMPTS)
    assert places == [int((row == ends).int().argmax()) - 1 for row in ids]
    assert places[1] == 0
    assert places[3] == 75


def test_several_words_end_at_the_last_one(tiny_base: Base) -> None:
    (place,) = last_subject_token(tiny_base, ["van gogh"])
    assert tiny_base.tokenizer.convert_ids_to_tokens(int(token_ids(tiny_base, ["van gogh"])[0, place])) == "h</w>"


def test_gradients_reach_the_text_encoder_where_they_are_wanted(tiny_base: Base) -> None:
    tiny_base.text_encoder.requires_grad_(True)
    encode_ids(tiny_base.text_encoder, token_ids(tiny_base, ["a cat"])).sum().backward()
    assert tiny_base.text_encoder.embeddings.token_embedding.weight.grad is not None
    assert not encoded(tiny_base, ["a cat"]).requires_grad


@pytest.fixture
def learnt(tiny_base_folder: Path, tmp_path: Path) -> tuple[Base, StableDiffusionPipeline]:
    """A base into which diffusers loaded learnt tokens of three vectors and of one, and its own pipeline of that."""
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_base_folder, safety_checker=None, local_files_only=True)
    vectors = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    pipeline.load_textual_inversion(vectors[:3], token="<toy>")
    pipeline.load_textual_inversion(vectors[3:], token="<hat>")
    pipeline.save_pretrained(tmp_path / "learnt")
    return load_base(tmp_path / "learnt"), pipeline


@pytest.mark.parametrize(
    "prompt",
    [
        *("a photo of <toy>", "<toy>, in a <hat>", "a<toy>b and <toy> again", "<toy> " * 40, "<TOY>", "a <hat>"),
        *("a cat", "<toy", "<toy>_1 alone"),
    ],
)
def test_learnt_tokens_give_what_diffusers_own_pipeline_gives(
    learnt: tuple[Base, StableDiffusionPipeline], prompt: str
) -> None:
    base, pipeline = learnt
    theirs = pipeline.encode_prompt(prompt, "cpu", 1, False)[0]
    torch.testing.assert_close(encoded(base, [prompt]), theirs, atol=1e-5, rtol=1e-5)


def test_a_learnt_token_stands_for_all_its_vectors(learnt: tuple[Base, StableDiffusionPipeline]) -> None:
    base, _ = learnt
    begin, *vectors, end = token_ids(base, ["<toy>"])[0, :5].tolist()
    assert base.tokenizer.convert_ids_to_tokens(vectors) == ["<toy>", "<toy>_1", "<toy>_2"]
    assert (begin, end) == (base.tokenizer.bos_token_id, base.tokenizer.eos_token_id)
    assert last_subject_token(base, ["<toy>"]) == [3]


def test_a_base_with_learnt_tokens_is_another_base(
    learnt: tuple[Base, StableDiffusionPipeline], tiny_base: Base
) -> None:
    base, _ = learnt
    assert base.fingerprint != tiny_base.fingerprint
    assert base.text_encoder.config.vocab_size == tiny_base.text_encoder.config.vocab_size + 4
