"""Prompts by embeddings: the tokens' own give the prompt's encoding, and gradients are those of finite differences."""

import pytest
import torch

from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.embedding_space import (
    embedding_table,
    encode_embeddings,
    framed_ids,
    one_hot_gradient,
)
from efface.models.text.text_encoding import encode_prompts, token_ids


def test_a_frame_leaves_places_before_the_prompt(tiny_base: Base) -> None:
    whole = token_ids(tiny_base, ["ab cd"])[0].tolist()
    framed = framed_ids(tiny_base, 3, "ab cd")[0].tolist()
    end = whole.index(tiny_base.tokenizer.eos_token_id)
    assert len(framed) == 77 and framed[0] == whole[0]
    assert framed[4 : 4 + end] == whole[1 : end + 1]
    assert set(framed[4 + end :]) == {tiny_base.tokenizer.eos_token_id}
    long = framed_ids(tiny_base, 3, "a " * 90)[0].tolist()
    assert len(long) == 77 and long[-1] == tiny_base.tokenizer.eos_token_id and long[4:-1].count(long[-1]) == 0


def test_the_tokens_own_embeddings_give_the_prompts_own_encoding(tiny_base: Base) -> None:
    ids = token_ids(tiny_base, ["ab cd"])
    found = encode_embeddings(tiny_base, ids, embedding_table(tiny_base)[ids[0, 1:4]])
    expected = encode_prompts(tiny_base, ["ab cd"])
    assert torch.allclose(found.encoder_hidden_states, expected.encoder_hidden_states, atol=1e-6)


def test_the_gradient_by_one_hot_tokens_is_that_of_a_step_towards_another_token(tiny_base: Base) -> None:
    ids, table = framed_ids(tiny_base, 2), embedding_table(tiny_base)
    ids[0, 1:3] = torch.tensor([300, 310])

    def loss(cond: Conditioning) -> torch.Tensor:
        return cond.encoder_hidden_states[0, 3, 5]

    found = one_hot_gradient(tiny_base, ids, 2, loss)[1, 333]
    h, start = 1e-1, table[ids[0, 1:3]]
    moved = [start.clone(), start.clone()]
    moved[0][1] += h * table[333]
    moved[1][1] -= h * table[333]
    up, down = (float(loss(encode_embeddings(tiny_base, ids, embeddings))) for embeddings in moved)
    assert float(found) == pytest.approx((up - down) / (2 * h), rel=0.05)
