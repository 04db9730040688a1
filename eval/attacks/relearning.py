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
from efface.eval.attacking.attack_training import NoisyBatch, learn
from efface.eval.attacks.concept_inversion import FIRST_SEED, LEARNABLE
from efface.eval.oracle import Attempt, Instance, Oracle
from efface.models.conditioning import Conditioning
from efface.models.noise_predictor import NoisePredictor
from efface.models.sampling.sampler_hooks import hook_of


class RelearningConfig(AttackConfig):
    images: int = Field(8, ge=1, description="of other concepts, made by the base")
    steps: int = Field(100, ge=1, description="optimiser steps; 50 to 500 in the literature")
    batch_size: int = Field(2, ge=1, description="images of a step")
    learning_rate: float = Field(1e-5, gt=0, description="of AdamW")
    tests: int = Field(4, ge=1, description="models on the way that are tried: the recovery curve")


def relearning_loss(predict: NoisePredictor, batch: NoisyBatch, prompts: Conditioning) -> torch.Tensor:
    """The mean squared error of what is predicted for noised images, each under its own of the `prompts` of all."""
    return mse_loss(predict(batch.x_t, batch.timesteps, prompts[batch.rows.tolist()]), batch.noise)


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
        trained = [weight for name, weight in self.student.module.named_parameters() if ".attn2." in name]
        self.student.own(trained)
        self.trained = [weight.requires_grad_() for weight in trained]
        optimizer = torch.optim.AdamW(self.trained, config.learning_rate)

        def minimize(loss: torch.Tensor) -> None:
            for weight, gradient in zip(self.trained, torch.autograd.grad(loss, self.trained), strict=True):
                weight.grad = gradient
            optimizer.step()

        def loss_of(batch: NoisyBatch) -> torch.Tensor:
            oracle.budget.spend(2 * config.batch_size)
            with hook.attached(self.student):
                return relearning_loss(self.student, batch, conds)

        def weights() -> list[torch.Tensor]:
            return [weight.detach().clone() for weight in self.trained]

        self.learnt = learn(oracle, images, minimize, config, generator, loss_of, weights)

    @torch.no_grad()
    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        for learnt in self.learnt:
            for weight, value in zip(self.trained, learnt.state, strict=True):
                weight.copy_(value)
            cond = oracle.encode(instance.prompt)
            latents = oracle.latents(cond, instance.seed, instance.prompt, self.student)
            yield oracle.decoded(latents, "weights", steps=learnt.steps)
