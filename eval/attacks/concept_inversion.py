"""Concept inversion: a new token's embedding is learnt on the edited model from images of the concept.

Circumventing Concept Erasure Methods (Pham et al., ICLR 2024, arXiv 2308.01508), by textual inversion
(`models/text/textual_inversion.py`) from images that the base made.

What it shows is that the edited model can be taught the concept by 768 numbers; that it had kept it follows only where
the same budget does not teach it to a model that never knew the concept.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from pydantic import Field

from efface.eval.attack import ATTACKS, Attack, AttackConfig, AttackTarget
from efface.eval.attacking.attack_training import NoisyBatch, learn
from efface.eval.oracle import Attempt, Instance, Oracle
from efface.models.adversary import Adversary
from efface.models.text.embedding_space import check_family, embedding_table
from efface.models.text.textual_inversion import frame_before, inversion_loss

FIRST_SEED = 30_000
"""Of the base's images that are learnt from, apart from those of instances."""

WEIGHT_DECAY = 0.01
"""Of AdamW, torch's default, as the authors have it."""

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
        frames = [frame_before(base, 1, template) for template in config.templates]
        adversary = Adversary(
            embedding_table(base).mean(0, keepdim=True), config.learning_rate, WEIGHT_DECAY, rule="adamw"
        )

        def loss_of(batch: NoisyBatch) -> torch.Tensor:
            frame = frames[int(torch.randint(len(frames), (1,), generator=generator))]
            state = (batch.x_t, batch.timesteps, batch.noise)
            return inversion_loss(base, oracle.predict, frame, adversary.value, *state)

        def learnt() -> torch.Tensor:
            return adversary.value.detach().clone()

        self.learnt = learn(oracle, images, adversary.minimize, config, generator, loss_of, learnt)

    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        frame = frame_before(oracle.base, 1)
        for learnt in self.learnt:
            cond = frame.encode(oracle.base, learnt.state)
            yield oracle.attempt(cond, instance.seed, "embedding", steps=learnt.steps)
