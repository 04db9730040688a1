"""An attempt by tokens that an attack found: a prompt for others only where its text reads back as these tokens."""

from typing import Any

import torch
from torch import Tensor

from efface.eval.oracle import Attempt, Instance, Oracle
from efface.models.embedding_space import embedding_table, encode_embeddings, framed_ids
from efface.models.text_encoding import token_ids


def token_attempt(oracle: Oracle, tokens: Tensor, instance: Instance, behind: str = "", **facts: Any) -> Attempt:
    """The image of tokens (n,) with the text `behind` them, at the seed of the instance."""
    base, ids = oracle.base, framed_ids(oracle.base, len(tokens), behind)
    ids[0, 1 : len(tokens) + 1] = tokens.to(ids.device)
    found = base.tokenizer.decode(tokens.tolist(), clean_up_tokenization_spaces=False).strip()
    text = f"{found} {behind}" if behind else found
    latents = oracle.latents(
        encode_embeddings(base, ids, embedding_table(base)[ids[0, 1 : len(tokens) + 1]]), instance.seed, text
    )
    if torch.equal(token_ids(base, [text]), ids):
        return oracle.decoded(latents, "prompt", text, **facts)
    return oracle.decoded(latents, "embedding", read_as=text, **facts)
