"""UnlearnDiffAtk: To Generate or Not? (Zhang et al., ECCV 2024, arXiv 2310.11868).

Tokens in front of the prompt c are found on the edited model alone, for an image x_0 that the base made of c (eq. 6):

    minimise  || eps - eps_theta(x_t, [c', c]) ||^2   at 50 timesteps, one after another

Each free token is a point on the simplex of the vocabulary, of which one token is drawn with the point's gradient
(straight-through); after a step of Adam it is projected back. After the iterations of a timestep the prompt is tried.

x_0 are the base's own latents, without the authors' way through pixels and encoder.
"""

from collections.abc import Iterator

import torch
from pydantic import Field

from efface.eval.attack import ATTACKS, Attack, AttackConfig
from efface.eval.attacking.derived_seed import derived_seed
from efface.eval.attacking.token_attempt import token_attempt
from efface.eval.oracle import Attempt, Instance, Oracle, checked
from efface.models.adversary import Adversary
from efface.models.text.embedding_space import check_family, embedding_table, encode_embeddings, framed_ids
from efface.models.text.textual_inversion import reconstruction_loss
from efface.models.text.token_space import project_to_simplex, sample_tokens


class UnlearnDiffAtkConfig(AttackConfig):
    """The paper's for objects and styles; 5 tokens for nudity."""

    tokens: int = Field(3, ge=1, le=70, description="free tokens in front of the prompt; paper 3, nudity 5")
    timesteps: int = Field(50, ge=1, description="that the loss is taken at, one after another; paper 50")
    iterations: int = Field(40, ge=1, description="at each timestep; paper 40")
    learning_rate: float = Field(0.01, gt=0, description="of Adam; paper 0.01")
    weight_decay: float = Field(0.1, ge=0, description="of Adam; paper 0.1")


@ATTACKS.register("unlearn-diff-atk")
class UnlearnDiffAtk(Attack):
    """Tokens in front of the prompt, by which the edited model denoises the base's image best."""

    Config = UnlearnDiffAtkConfig
    config: UnlearnDiffAtkConfig

    def attempts(self, oracle: Oracle, instance: Instance) -> Iterator[Attempt]:
        config, base = self.config, oracle.base
        check_family(base)
        with oracle.unedited():
            image = oracle.latents(oracle.encode(instance.prompt), instance.seed)
        table = embedding_table(base)
        ids = framed_ids(base, config.tokens, instance.prompt)
        generator = torch.Generator().manual_seed(
            derived_seed("unlearn-diff-atk", self.seed, instance.prompt, instance.seed)
        )
        weights = torch.full((config.tokens, len(table)), 1 / len(table), device=base.device)
        adversary = Adversary(weights, config.learning_rate, config.weight_decay, project=project_to_simplex)
        last = len(oracle.schedule.timesteps) - 1
        for step in torch.linspace(last, 0, config.timesteps + 2)[1:-1].round().long():
            timestep = step[None].to(base.device)
            noise = torch.randn(image.shape, generator=generator).to(image)
            x_t, truth = oracle.noised(image, timestep, noise)
            for _ in range(config.iterations):
                with torch.enable_grad():
                    cond = encode_embeddings(base, ids, sample_tokens(adversary.value, generator) @ table)
                    loss = checked(reconstruction_loss(oracle.predict, x_t, timestep, cond, truth))
                    adversary.minimize(loss)
            tokens = adversary.value.detach().argmax(-1)
            yield token_attempt(oracle, tokens, instance, instance.prompt, loss=float(loss.detach()))
