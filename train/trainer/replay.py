"""Replay: concepts that stay are shown while others are forgotten, and predicted as before (LACU, arXiv 2512.02657).

    + w || eps_theta(y_t, r) - eps*(y_t, r) ||^2

for noised images y_t of a prompt r, drawn by the model before the job, which is eps* too: the base, in a chain the
model of the request before. r are the retained concepts that are nearest to what is forgotten (`score_distance.py`).
"""

from collections.abc import Sequence

import torch
from diffusers import DDPMScheduler
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.errors import UserError
from efface.models.noise_predictor import NoisePredictor
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.latents import image_posterior, noised
from efface.train.data.score_distance import drawing_recipe, score_distances
from efface.train.method import TrainingConfig, UnlearningTask
from efface.train.seeds import generator, shuffled


class Replay:
    """Of one job."""

    def __init__(self, task: UnlearningTask, config: TrainingConfig, retained: Sequence[str]) -> None:
        """retained: prompts to choose from."""
        base, self.seed, self.rows = task.base, task.seed, config.batch_size
        self.prompts = nearest_prompts(task, retained, config.replay_prompts)
        self.conditions = encode_prompts(base, self.prompts)
        count = max(config.replay_images, len(self.prompts))
        prompts = [self.prompts[number % len(self.prompts)] for number in range(count)]
        self.images = image_posterior(base, drawing_recipe(base.spec.image_size), prompts, task.cache)
        self.scheduler = DDPMScheduler.from_config(base.scheduler_config)
        self.teacher = base.denoiser

    def loss(self, student: NoisePredictor, index: int) -> Tensor:
        """Of batch 0, 1, …; every image is shown once in a round."""
        count = len(self.images.mean)
        chosen = [shuffled(count, index * self.rows + row, self.seed, "replay") for row in range(self.rows)]
        with torch.no_grad():
            sample = noised(self.images, chosen, self.scheduler, generator(self.seed, "replay", index))
            conditioning = self.conditions[[image % len(self.prompts) for image in chosen]]
            before = self.teacher(sample.latents, sample.timesteps, conditioning)
        return mse_loss(student(sample.latents, sample.timesteps, conditioning), before)


def nearest_prompts(task: UnlearningTask, prompts: Sequence[str], count: int) -> list[str]:
    """The prompts that are nearest to any concept to forget, at most `count`. Raises UserError where there are none."""
    if not prompts:
        raise UserError("replay_weight: no retained concept is there to be replayed, replay should list prompts")
    if len(prompts) <= count:
        return list(prompts)
    distances = torch.stack([score_distances(task, concept.phrase, prompts) for concept in task.concepts]).amin(dim=0)
    return [prompts[number] for number in distances.argsort(stable=True)[:count].tolist()]
