"""An attempt by tokens that an attack found: a prompt for others only where its text reads back as these tokens."""

from typing import Any

import torch
from torch import Tensor

from efface.eval.oracle import Attempt, Instance, Oracle
from efface.models.conditioning import Conditioning
from efface.models.text.embedding_space import with_tokens
from efface.models.text.text_encoding import encode_ids, token_ids


@torch.no_grad()
def token_attempt(oracle: Oracle, tokens: Tensor, instance: Instance, behind: str = "", **facts: Any) -> Attempt:
    """The image of tokens (n,) with the text `behind` them, at the seed of the instance."""
    base, ids = oracle.base, with_tokens(oracle.base, tokens[None], behind)
    found = base.tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False).strip()
    text = f"{found} {behind}" if behind else found
    latents = oracle.latents(Conditioning(encode_ids(base.text_encoder, ids)), instance.seed, text)
    if torch.equal(token_ids(base, [text]), ids):
        return oracle.decoded(latents, "prompt", text, **facts)
    return oracle.decoded(latents, "embedding", read_as=text, **facts)
