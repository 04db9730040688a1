"""Prompts as embeddings: what Stable Diffusion's own pipeline computes, one prompt at a time."""

import torch
from diffusers import StableDiffusionPipeline

from efface.models.base import Base
from efface.models.text_encoding import encode_ids, encode_prompts, last_subject_token, token_ids

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
