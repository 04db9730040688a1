"""Which timesteps are trained on: those where a concept shows, by SDErasure's selection (ICLR 2026, eq. 5), or MACE's.

    S_t = exp(-L_t(c) / s) / ( exp(-L_t(c) / s) + exp(-L_t(a) / s) ),    L_t(c) = E mean (eps - eps*(x_t, c))^2

for images x_0 of the concept c: how sure the frozen base is, as a diffusion classifier, that they show c and not the
anchor a. Only steps with S_t above a threshold are trained on. Where x_t is nearly noise, or nearly the image, both
predict alike and S_t is one half: what these steps decide, a layout, a texture, is left alone.

In the paper L_t is summed over all numbers of a latent, as a classifier's likelihood has it, without an s: so summed
it is large, and S_t is 0 or 1. Here it is their mean, which depends on no size, and s is ours.
"""

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from pydantic import Field
from torch import Tensor

from efface.concepts.concept import Concept
from efface.errors import UserError
from efface.models.noise_predictor import truth
from efface.models.noise_scheduler import make_scheduler
from efface.models.shapes import ModelShapes
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.latents import ImageConfig, image_posterior
from efface.train.method import UnlearningTask
from efface.train.method_cost import BaseImages
from efface.train.seeds import generator, normal


class TimestepConfig(ImageConfig):
    """The settings of the selection."""

    timestep_threshold: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="roll-outs stop where S_t of the concept is above; SDErasure 0.5 to 0.8",
    )
    timestep_scale: float = Field(
        0.01, gt=0, description="s, what mean squared errors are divided by; SDErasure sums them and has none"
    )
    timestep_images: int = Field(8, ge=1, description="images of a concept, made by the base, that S_t is measured on")

    def selection_images(self, shapes: ModelShapes) -> BaseImages | None:
        """What has to be made first, for `Cost`."""
        if self.timestep_threshold == 0:
            return None
        recipe = self.image_recipe(shapes.image_size)
        return BaseImages(recipe, per_concept=self.timestep_images, encoded=True)


def selected_stops(
    task: UnlearningTask, config: TimestepConfig, steps: int, first: int = 0, scheduler: str = "ddim"
) -> list[list[int]]:
    """For each concept, of a scheduler's `steps` from `first` on, those in which it shows; without a threshold all.

    Raises UserError where one has none, or no anchor.
    """
    stops = list(range(first, steps))
    if config.timestep_threshold == 0:
        return [stops] * len(task.concepts)
    found = []
    for concept in task.concepts:
        scores = step_scores(task, concept, config, steps, scheduler)[first:]
        found.append([stop for stop in stops if float(scores[stop - first]) > config.timestep_threshold])
        if not found[-1]:
            raise UserError(
                f"timestep_threshold: no step has a score above {config.timestep_threshold} for '{concept.name}', the "
                f"highest is {float(scores.max()):.3f}: should be lower"
            )
    return found


@torch.no_grad()
def step_scores(
    task: UnlearningTask, concept: Concept, config: TimestepConfig, steps: int, scheduler: str = "ddim"
) -> Tensor:
    """S_t of one concept at each of the roll-outs' timesteps, the noisiest first; (steps,) fp64, on the CPU."""
    base, anchor = task.base, task.concept_set.anchor_phrase(concept)
    if not anchor:
        raise UserError(f"timestep_threshold: concept '{concept.name}' has no anchor to tell it from, should have one")
    count = config.timestep_images
    recipe = config.image_recipe(base.spec.image_size)
    posterior = image_posterior(base, recipe, [concept.phrase] * count, task.cache)
    forward = DDPMScheduler.from_config(base.scheduler_config)
    rng = generator(task.seed, "timesteps", concept.name)
    shape, device = (count, *base.latent_shape), base.device
    clean = posterior.latents(torch.arange(count), normal(shape, rng, device))
    noise = normal(shape, rng, device)  # the same for all steps and both prompts
    losses = []
    for timestep in make_scheduler(scheduler, base.scheduler_config, steps).timesteps.tolist()[:steps]:
        at = torch.full((count,), timestep, device=device)
        noised, true = forward.add_noise(clean, noise, at), truth(forward, clean, noise, at)
        prompts = encode_prompts(base, [concept.phrase, anchor])
        errors = [base.denoiser(noised, at, prompt.expand(count)) - true for prompt in prompts]
        losses.append([error.double().square().mean() for error in errors])
    return concept_scores(torch.tensor(losses, dtype=torch.float64), config.timestep_scale)


def concept_scores(losses: Tensor | Sequence[Sequence[float]], scale: float) -> Tensor:
    """S_t, (T,), of the losses (T, 2) for the concept and for its anchor."""
    return (-torch.as_tensor(losses, dtype=torch.float64) / scale).softmax(dim=1)[:, 0]


def importance(timesteps: int) -> Tensor:
    """How likely MACE (Lu et al., CVPR 2024) draws each of `timesteps`: (T,), not normalised; T = 1000 in the paper."""
    t = torch.arange(timesteps) * (1000 / timesteps)
    return torch.sigmoid(0.05 * (t - 200)) - torch.sigmoid(0.05 * (t - 400))
