"""Relearning: a few steps of training on images that have nothing to do with the concept, and then its direct prompt.

Erased concepts come back under fine-tuning that never names them (George et al., arXiv 2505.16174; ResAlign). The
student is a copy of the edited model, with its sampler hook where it has one; its cross-attention learns, by the usual
loss || eps - eps_theta(x_t, c) ||^2, images that the base made of other concepts. The steps after which the concept is
back are the recovery curve.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field
from torch.nn.functional import mse_loss

from efface.errors import UserError
from efface.eval.attack import ATTACKS, Attack, AttackConfig, AttackTarget
from efface.eval.attacks.concept_inversion import FIRST_SEED, LEARNABLE
from efface.eval.oracle import Attempt, BudgetExhausted, Instance, Oracle, checked
from efface.models.conditioning import Conditioning
from efface.models.sampler_hooks import hook_of


class RelearningConfig(AttackConfig):
    images: int = Field(8, ge=1, description="of other concepts, made by the base")
    steps: int = Field(100, ge=1, description="optimiser steps; 50 to 500 in the literature")
    batch_size: int = Field(2, ge=1, description="images of a step")
    learning_rate: float = Field(1e-5, gt=0, description="of AdamW")
    tests: int = Field(4, ge=1, description="models on the way that are tried: the recovery curve")


@ATTACKS.register("relearning")
class Relearning(Attack):
    """Trains the edited model a little on other concepts, and asks for the erased one."""

    Config = RelearningConfig
    config: RelearningConfig
    caveat: ClassVar[str] = LEARNABLE

    @property
    def tests(self) -> int:
        return self.config.tests

    def prepare(self, oracle: Oracle, target: AttackTarget, seed: int) -> None:
        """Trains; a budget that ends on the way leaves the models until then. Raises UserError without others."""
        super().prepare(oracle, target, seed)
        config, generator = self.config, torch.Generator().manual_seed(seed)
        if not target.others:
            raise UserError("relearning: the concept set has no other concept, should have one to train on")
        with oracle.unedited():
            chosen = torch.randperm(len(target.others), generator=generator)[: config.images].tolist()
            conds = Conditioning.cat([oracle.encode(target.others[i]) for i in chosen])
            images = torch.cat([oracle.latents(conds[i], FIRST_SEED + i) for i in range(len(conds))])
        self.student, hook = oracle.base.denoiser.copy(), hook_of(oracle.base)
        named = [(name, weight) for name, weight in self.student.module.named_parameters() if ".attn2." in name]
        self.trained = [weight.requires_grad_() for _, weight in named]
        optimiser = torch.optim.AdamW(self.trained, config.learning_rate)
        self.learnt = []
        last = len(oracle.schedule.timesteps)
        try:
            for step in range(1, config.steps + 1):
                rows = torch.randint(len(images), (config.batch_size,), generator=generator)
                timesteps = torch.randint(last, (config.batch_size,), generator=generator).to(images.device)
                noise = torch.randn((config.batch_size, *images.shape[1:]), generator=generator).to(images)
                x_t, truth = oracle.noised(images[rows], timesteps, noise)
                oracle.budget.spend(2 * config.batch_size)
                with hook.attached(self.student), torch.enable_grad():
                    loss = checked(mse_loss(self.student(x_t, timesteps, conds[rows.tolist()]), truth))
                    optimiser.zero_grad()
                    loss.backward()
                optimiser.step()
                if step * config.tests % config.steps < config.tests:
                    self.learnt.append((step, [weight.detach().clone() for weight in self.trained]))
        except BudgetExhausted:
            if not self.learnt:
                raise

    @torch.no_grad()
    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        for step, weights in self.learnt:
            for weight, value in zip(self.trained, weights, strict=True):
                weight.copy_(value)
            cond = oracle.encode(instance.prompt)
            latents = oracle.latents(cond, instance.seed, instance.prompt, self.student)
            yield oracle.decoded(latents, "weights", steps=step)
