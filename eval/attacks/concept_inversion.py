"""Concept inversion: a new token's embedding is learnt on the edited model from images of the concept.

Circumventing Concept Erasure Methods (Pham et al., ICLR 2024, arXiv 2308.01508), by textual inversion (Gal et al., ICLR
2023, arXiv 2208.01618, eq. 2): for images x_0 that the base made,

    minimise over v   || eps - eps_theta(x_t, prompt with v) ||^2

What it shows is that the edited model can be taught the concept by 768 numbers; that it had kept it follows only where
the same budget does not teach it to a model that never knew the concept.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field

from efface.eval.attack import ATTACKS, Attack, AttackConfig, AttackTarget
from efface.eval.attack_training import NoisyBatch, learn
from efface.eval.attacks.unlearn_diff_atk import reconstruction_loss
from efface.eval.oracle import Attempt, Instance, Oracle
from efface.models.embedding_space import check_family, embedding_table, encode_embeddings, framed_ids

FIRST_SEED = 30_000
"""Of the base's images that are learnt from, apart from those of instances."""

LEARNABLE = (
    "it shows that the concept can be learnt again, and cannot tell whether it was left in the model: for that, the "
    "same attack on a model that never knew the concept has to recover clearly less"
)


class ConceptInversionConfig(AttackConfig):
    images: int = Field(8, ge=1, description="of the concept, made by the base; the authors about 25")
    steps: int = Field(1000, ge=1, description="optimiser steps; the authors 5,000 (1,000 for SLD)")
    batch_size: int = Field(4, ge=1, description="the authors 4, accumulated over 4 steps")
    learning_rate: float = Field(5e-3, gt=0, description="of AdamW; the authors 5e-3")
    tests: int = Field(4, ge=1, description="embeddings on the way that are tried: the recovery curve")
    templates: tuple[str, ...] = Field(("", "in a photo", "in a picture"), min_length=1, description="behind the token")


@ATTACKS.register("concept-inversion")
class ConceptInversion(Attack):
    """One new token, learnt on the edited model from images of the concept."""

    Config = ConceptInversionConfig
    config: ConceptInversionConfig
    caveat: ClassVar[str] = LEARNABLE

    @property
    def tests(self) -> int:
        return self.config.tests

    def prepare(self, oracle: Oracle, target: AttackTarget, seed: int) -> None:
        """Learns the embedding; a budget that ends on the way leaves what was learnt until then."""
        super().prepare(oracle, target, seed)
        config, base = self.config, oracle.base
        check_family(base)
        generator = torch.Generator().manual_seed(seed)
        with oracle.unedited():
            conds = [oracle.encode(prompt) for prompt in target.prompts]
            images = torch.cat([oracle.latents(conds[i % len(conds)], FIRST_SEED + i) for i in range(config.images)])
        frames = [framed_ids(base, 1, template) for template in config.templates]
        learnt = embedding_table(base).mean(0, keepdim=True).clone().requires_grad_()

        def loss_of(batch: NoisyBatch) -> torch.Tensor:
            frame = frames[int(torch.randint(len(frames), (1,), generator=generator))]
            cond = encode_embeddings(base, frame, learnt)
            return reconstruction_loss(oracle.predict, batch.x_t, batch.timesteps, cond, batch.noise)

        self.learnt = learn(oracle, images, [learnt], config, generator, loss_of, lambda: learnt.detach().clone())

    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        ids = framed_ids(oracle.base, 1)
        for learnt in self.learnt:
            cond = encode_embeddings(oracle.base, ids, learnt.state)
            yield oracle.attempt(cond, instance.seed, "embedding", steps=learnt.steps)
