"""Prompts by the embeddings of their tokens, with gradient: what inversion and searches for prompts change."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from efface.errors import UserError
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.text.text_encoding import encode_ids, token_ids


def check_family(base: Base) -> None:
    """Raises UserError for a family whose prompts are not the output of one text encoder."""
    if base.spec.family != "sd1":
        raise UserError(
            f"base '{base.spec.name}' is of family '{base.spec.family}', should be sd1 to change embeddings"
        )


def embedding_table(base: Base) -> Tensor:
    """(V, D), detached."""
    table: Tensor = base.text_encoder.get_input_embeddings().weight
    return table.detach()


def framed_ids(base: Base, count: int, prompt: str = "") -> Tensor:
    """Ids (1, 77) of a prompt behind `count` places for free tokens, which begin at position 1; its end may be cut."""
    ids = token_ids(base, [prompt])[0]
    end = int((ids == base.tokenizer.eos_token_id).nonzero()[0, 0])
    body, eos, padding = ids[1:end], ids[end : end + 1], ids[end + 1 :]
    free = torch.zeros(count, dtype=ids.dtype, device=ids.device)
    kept = body[: len(ids) - 2 - count]
    framed = torch.cat([ids[:1], free, kept, eos, padding])
    if len(framed) < len(ids):
        framed = torch.cat([framed, eos.expand(len(ids) - len(framed))])
    return framed[None, : len(ids)]


def with_tokens(base: Base, tokens: Tensor, prompt: str = "") -> Tensor:
    """Ids (B, 77) of prompts that begin with tokens (B, n), followed by `prompt`, whose end may be cut."""
    ids = framed_ids(base, tokens.shape[1], prompt).repeat(len(tokens), 1)
    ids[:, 1 : tokens.shape[1] + 1] = tokens.to(ids.device)
    return ids


def encode_embeddings(base: Base, ids: Tensor, embeddings: Tensor, position: int = 1) -> Conditioning:
    """The encoding of ids (1, 77) with `embeddings` (n, D) in place of the tokens from `position` on, with gradient."""

    def put(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        before, after = output[:, :position], output[:, position + len(embeddings) :]
        return torch.cat([before, embeddings[None].to(output.dtype), after], dim=1)

    with _hook(base.text_encoder.get_input_embeddings(), put):
        return Conditioning(encode_ids(base.text_encoder, ids))


def one_hot_gradient(base: Base, ids: Tensor, count: int, loss: Callable[[Conditioning], Tensor]) -> Tensor:
    """The derivative of a loss by the one-hot tokens at positions 1 to `count` of ids (1, 77): (count, V), CPU."""
    table = embedding_table(base)
    embeddings = table[ids[0, 1 : count + 1]].clone().requires_grad_()
    with torch.enable_grad():
        (gradient,) = torch.autograd.grad(loss(encode_embeddings(base, ids, embeddings)), embeddings)
    return (gradient.float() @ table.float().T).cpu()


@contextmanager
def _hook(module: nn.Module, put: Callable[..., Tensor]) -> Iterator[None]:
    handle = module.register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()
