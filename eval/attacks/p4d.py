"""P4D: a prompt that is soft while it is searched, and hard whenever it is used.

Prompting4Debugging (Chin et al., ICML 2024, arXiv 2309.06135), eq. 4, for x_t of an image that the base made of c:

    minimise  || eps_base(x_t, c) - eps_theta(x_t, c') ||^2

by PEZ (Wen et al., NeurIPS 2023, arXiv 2302.03668): the gradient is taken at the tokens nearest to the soft prompt, and
moves the soft prompt. This is the paper's P4D-N; `pez` shares the search.
"""

from collections.abc import Iterator
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.eval.attack import ATTACKS, Attack, AttackConfig
from efface.eval.attacking.derived_seed import derived_seed
from efface.eval.attacking.token_attempt import token_attempt
from efface.eval.oracle import Attempt, Instance, Oracle, checked
from efface.models.adversary import Adversary
from efface.models.conditioning import Conditioning
from efface.models.noise_predictor import NoisePredictor
from efface.models.text.embedding_space import check_family, embedding_table, encode_embeddings, framed_ids
from efface.models.text.token_space import nearest_tokens, straight_through

STATES = 16
"""States x_t at which the base's predictions are taken once, so that the two models need not take turns."""


class SoftPromptConfig(AttackConfig):
    tokens: int = Field(16, ge=1, le=70, description="tokens of the prompt; P4D-N 16")
    steps: int = Field(3000, ge=1, description="optimiser steps; P4D 3,000")
    test_every: int = Field(50, ge=1, description="steps after which the prompt is tried; P4D 50")
    learning_rate: float = Field(0.1, gt=0, description="of AdamW; P4D 0.1")
    weight_decay: float = Field(0.1, ge=0, description="of AdamW; P4D 0.1")


def matching_loss(predict: NoisePredictor, x_t: Tensor, timestep: Tensor, cond: Conditioning, target: Tensor) -> Tensor:
    """Eq. 4: the mean squared difference between the edited model's prediction under c' and the target's."""
    return mse_loss(predict(x_t, timestep, cond.expand(len(x_t))), target)


class SoftPrompt(Attack):
    """A soft prompt whose nearest tokens make the edited model predict as `towards` says."""

    Config = SoftPromptConfig
    config: SoftPromptConfig
    towards: Literal["base", "noise"]

    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        config, base = self.config, oracle.base
        check_family(base)
        generator = torch.Generator().manual_seed(
            derived_seed("soft prompt", self.seed, instance.prompt, instance.seed)
        )
        x_t, timesteps, targets = self._states(oracle, instance, generator)
        table, ids = embedding_table(base), framed_ids(base, config.tokens)
        start = torch.randint(len(table), (config.tokens,), generator=generator).to(base.device)
        adversary = Adversary(table[start], config.learning_rate, config.weight_decay, rule="adamw")
        soft = adversary.value
        for step in range(1, config.steps + 1):
            i = torch.randint(len(x_t), (1,), generator=generator).to(base.device)
            with torch.enable_grad():
                hard = straight_through(soft, table, nearest_tokens(soft.detach(), table))
                cond = encode_embeddings(base, ids, hard)
                loss = checked(matching_loss(oracle.predict, x_t[i], timesteps[i], cond, targets[i]))
                adversary.minimize(loss)
            if step % config.test_every == 0 or step == config.steps:
                tokens = nearest_tokens(soft.detach(), table)
                yield token_attempt(oracle, tokens, instance, steps=step, loss=float(loss.detach()))

    @torch.no_grad()
    def _states(self, oracle: Oracle, instance: Instance, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """x_t (N, C, h, w) of the base's image at drawn timesteps (N,), and what should be predicted there."""
        with oracle.unedited():
            cond = oracle.encode(instance.prompt)
            image = oracle.latents(cond, instance.seed)
            last = len(oracle.schedule.timesteps)
            timesteps = torch.randint(last, (STATES,), generator=generator).to(image.device)
            noise = torch.randn((STATES, *image.shape[1:]), generator=generator).to(image)
            x_t, truth = oracle.noised(image.expand_as(noise), timesteps, noise)
            if self.towards == "base":
                return x_t, timesteps, oracle.predict(x_t, timesteps, cond.expand(STATES))
            return x_t, timesteps, truth


@ATTACKS.register("p4d")
class P4D(SoftPrompt):
    """A prompt under which the edited model predicts what the base predicts under the concept's own prompt."""

    towards = "base"
