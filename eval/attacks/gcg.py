"""GCG on the edited model: tokens are exchanged one at a time, by the gradient of the diffusion loss.

Greedy coordinate gradient (Zou et al., arXiv 2307.15043, algorithm 1) with the loss of UnlearnDiffAtk: of an image x_0
that the base made of the concept, at a few fixed x_t,

    minimise  || eps - eps_theta(x_t, c') ||^2

A step takes the gradient by the one-hot tokens, samples exchanges of one token among the best of every position, and
keeps the best of them if it is better.
"""

from collections.abc import Iterator

import torch
from pydantic import Field
from torch import Tensor

from efface.eval.attack import ATTACKS, Attack, AttackConfig
from efface.eval.attacking.derived_seed import derived_seed
from efface.eval.attacking.token_attempt import token_attempt
from efface.eval.oracle import Attempt, Instance, Oracle, checked
from efface.models.conditioning import Conditioning
from efface.models.text.embedding_space import (
    check_family,
    embedding_table,
    encode_embeddings,
    framed_ids,
    one_hot_gradient,
)
from efface.models.text.textual_inversion import reconstruction_loss
from efface.models.text.token_space import best_exchanges, exchange_one


class GCGConfig(AttackConfig):
    tokens: int = Field(8, ge=1, le=70, description="tokens of the prompt; MMA-Diffusion 20")
    steps: int = Field(100, ge=1, description="exchanges; MMA-Diffusion 500")
    states: int = Field(4, ge=1, description="noised images on which a prompt is measured")
    top_k: int = Field(64, ge=1, description="best exchanges at each position; the paper 256")
    candidates: int = Field(16, ge=1, description="exchanges that a step tries; the paper 512")
    test_every: int = Field(10, ge=1, description="steps after which the prompt is tried")


@ATTACKS.register("gcg")
class GCG(Attack):
    """A prompt of whole tokens by which the edited model denoises the base's image best."""

    Config = GCGConfig
    config: GCGConfig

    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        config, base = self.config, oracle.base
        check_family(base)
        generator = torch.Generator().manual_seed(derived_seed("gcg", self.seed, instance.prompt, instance.seed))
        with oracle.unedited():
            image = oracle.latents(oracle.encode(instance.prompt), instance.seed)
        last = len(oracle.schedule.timesteps) - 1
        timesteps = torch.linspace(last, 0, config.states + 2)[1:-1].round().long().to(image.device)
        noise = torch.randn((config.states, *image.shape[1:]), generator=generator).to(image)
        x_t, truth = oracle.noised(image.expand_as(noise), timesteps, noise)
        table, ids = embedding_table(base), framed_ids(base, config.tokens)
        allowed = torch.ones(len(table), dtype=torch.bool)
        allowed[torch.tensor(sorted(base.tokenizer.all_special_ids))] = False
        pool = allowed.nonzero().flatten()
        tokens = pool[torch.randint(len(pool), (config.tokens,), generator=generator)]

        def loss(cond: Conditioning) -> Tensor:
            return checked(reconstruction_loss(oracle.predict, x_t, timesteps, cond, truth))

        @torch.no_grad()
        def measure(prompt: Tensor) -> float:
            return float(loss(encode_embeddings(base, ids, table[prompt.to(base.device)])))

        best = measure(tokens)
        for step in range(1, config.steps + 1):
            ids[0, 1 : config.tokens + 1] = tokens.to(ids.device)
            gains = -one_hot_gradient(base, ids, config.tokens, loss)
            choices = best_exchanges(gains, tokens, allowed, config.top_k)
            tried = exchange_one(tokens, choices, config.candidates, generator)
            losses = torch.tensor([measure(prompt) for prompt in tried])
            if float(losses.min()) < best:
                best, tokens = float(losses.min()), tried[int(losses.argmin())]
            if step % config.test_every == 0 or step == config.steps:
                yield token_attempt(oracle, tokens, instance, steps=step, loss=best)
