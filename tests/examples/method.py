"""A method in a package of its own: what the frozen model predicts for the anchor, the student learns for the concept.

    L = || eps_theta(x_t, concept) - eps*(x_t, anchor) ||^2

eps* is the frozen model; x_t is a step of its own denoising under the concept's prompt.
"""

from pydantic import Field
from torch.nn.functional import mse_loss

from efface.models.noise_predictor import partial_denoise
from efface.models.noise_scheduler import make_scheduler
from efface.models.text.text_encoding import encode_prompts
from efface.train.method import GradientConfig, GradientMethod, register
from efface.train.method_cost import Cost
from efface.train.seeds import generator, integer, normal


class AnchorDistillationConfig(GradientConfig):
    rollout_steps: int = Field(20, ge=1, description="DDIM steps of a whole trajectory")


@register("anchor-distillation")
class AnchorDistillation(GradientMethod):
    """Gives a concept's prompt the noise predictions of its anchor's."""

    Config = AnchorDistillationConfig
    group = "kv-xattn"
    policy = "off"

    def cost(self, shapes):
        rows, rollout = self.config.batch_size, (self.config.rollout_steps - 1) / 2
        return Cost(trained_rows=rows, frozen_rows=rows, mean_frozen_rows=rows * (rollout + 1))

    def prepare(self, task, student):
        self.seed, (concept,) = task.seed, task.concepts
        self.teacher = task.base.denoiser
        self.concept, self.anchor = (
            encode_prompts(task.base, [text]) for text in (concept.phrase, task.concept_set.anchor_phrase(concept))
        )
        self.scheduler = make_scheduler("ddim", task.base.scheduler_config, self.config.rollout_steps)
        self.shape = (self.config.batch_size, *task.base.latent_shape)

    def batch(self, index):
        rng = generator(self.seed, "anchor-distillation", index)
        stop = integer(self.config.rollout_steps, rng)
        noise = normal(self.shape, rng, self.concept.device)
        latents, timestep = partial_denoise(self.teacher, self.scheduler, self.concept, self.concept, noise, 1.0, stop)
        return latents, timestep, self.teacher(latents, timestep, self.anchor.expand(len(latents)))

    def loss(self, student, batch):
        latents, timestep, target = batch
        return mse_loss(student(latents, timestep, self.concept.expand(len(latents))), target)
