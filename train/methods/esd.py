"""ESD: Erasing Concepts from Diffusion Models (Gandikota et al., ICCV 2023, arXiv 2303.07345).

    L = || eps_theta(x_t, c) - [ eps*(x_t, 0) - eta (eps*(x_t, c) - eps*(x_t, 0)) ] ||^2        (eq. 7)

theta* is the frozen original. x_t comes from a partial denoising of noise under c, guidance 3, stopped
before a uniformly drawn step; by the model being edited (the paper, `on_policy=True`) or by theta* (the
authors' newer script). x_t is the state *before* step i and t = timesteps[i]; the paper's code mixes up two
neighbouring steps. The newer script's checkpoint brings PNDM, whose 51 timesteps have one twice; it stops before one
of the first 50.

Erasing from a wider prompt f (the newer script's `erase_from`) keeps the edit local to f: trajectory and
student are conditioned on f, and the target is eps*(x_t, f) - eta (eps*(x_t, c) - eps*(x_t, 0)).

Several concepts, or prompts of one: one prompt, drawn uniformly, for each batch. In a chain theta* is the model of the
request before.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from pydantic import Field, field_validator
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.errors import UserError
from efface.models.conditioning import Conditioning
from efface.models.denoiser import Denoiser
from efface.models.noise_predictor import NoisePredictor
from efface.models.shapes import ModelShapes
from efface.models.text.text_encoding import encode_prompts
from efface.train.data.captions import has_one_place
from efface.train.data.conditions import ConditionConfig, templated
from efface.train.data.rollout_store import FrozenRollouts
from efface.train.data.rollouts import RolloutConfig, Rollouts, Start, State, predictions, rollout_rows
from efface.train.data.shared_rollouts import SharedRolloutConfig, SharedRollouts
from efface.train.data.timesteps import selected_stops
from efface.train.method import GradientMethod, Policy, Strategy, UnlearningTask, register
from efface.train.method_cost import Cost
from efface.train.negative_guidance import esd_target
from efface.train.seeds import generator, integer

GROUPS = {
    **{name: name for name in ("selfattn", "full", "notime", "xlayer", "selflayer", "esd-u", "esd-all")},
    "x": "xattn",
    "u": "noxattn",
    "x-strict": "kv-xattn",
}


class ESDConfig(RolloutConfig, SharedRolloutConfig, ConditionConfig):
    """ESD as in the paper: 1000 steps of Adam, on-policy."""

    variant: Literal["x", "u", "x-strict", "selfattn", "full", "notime", "xlayer", "selflayer", "esd-u", "esd-all"] = (
        Field(
            "x",
            description="what is trained: all of the cross-attention (x; paper: styles), all but it, the time "
            "embedding and the output (u; paper: objects, nudity), the cross-attention's keys and values "
            "(x-strict), the self-attention, or everything; of the older code also all but time embedding and output "
            "(notime) and single blocks (xlayer, selflayer); of the newer script its u and all: linear layers and "
            "convolutions, without the cross-attention (esd-u) or with it (esd-all)",
        )
    )
    prompts: tuple[str, ...] = Field(
        ("{}",),
        min_length=1,
        description="prompts that ask for a concept, one drawn for each batch: '{}' is its phrase, '{name}' its bare "
        "name (authors), any other text stands as it is",
    )
    steps: int = Field(1000, ge=1, description="optimiser steps; paper 1000, the authors' newer script 200")
    learning_rate: float = Field(1e-5, gt=0, description="of Adam; paper 1e-5, the authors' newer script 5e-5")
    eta: float = Field(
        1.0,
        ge=0,
        description="strength of the negative guidance, in the paper's sign convention: paper 1, which is "
        "the newer script's 2 (with erase_from both count alike); 0 distils the empty prompt, or erase_from",
    )
    erase_from: str | None = Field(
        None,
        min_length=1,
        description="a wider prompt to erase the concept from, for instance 'a painting'; none: itself",
    )
    on_policy: bool = Field(
        True,
        description="roll-outs by the model being edited (paper), or by the frozen original (newer script)",
    )
    scheduler: str = Field("ddim", description="scheduler of the roll-outs; paper ddim, the newer script pndm")
    size: int | None = Field(
        None, ge=64, multiple_of=64, description="pixels, the roll-outs' side; null: the base's own; newer script 1024"
    )

    @field_validator("prompts")
    @classmethod
    def _has_a_place_at_most(cls, prompts: tuple[str, ...]) -> tuple[str, ...]:
        if not all(has_one_place(prompt) or "{" not in prompt for prompt in prompts):
            raise ValueError("a prompt should hold '{}' or '{name}' once, the place of the concept, or no brace")
        return prompts


@dataclass(frozen=True)
class Rollout:
    """A stopped trajectory, what it was conditioned on, and what the frozen original says there. fp32."""

    latents: Tensor  # (B, 4, h, w)
    timestep: Tensor  # scalar, int64
    conditioning: Conditioning  # of the concept, or of erase_from; B rows
    target: Tensor  # (B, 4, h, w)


@register("esd")
class ESD(GradientMethod):
    """Erased Stable Diffusion: steers a concept's noise prediction away from the concept."""

    Config = ESDConfig
    config: ESDConfig
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single", "multi", "continual"})
    policy: ClassVar[Policy] = "either"
    packs: ClassVar[bool] = True

    @property
    def sees_others(self) -> bool:
        return self.config.sees_others

    @property
    def group(self) -> str:
        return GROUPS[self.config.variant]

    def cost(self, shapes: ModelShapes) -> Cost:
        config, (largest, mean) = self.config, rollout_rows(self.config)
        teacher_rows = config.batch_size * (3 if config.erase_from else 2)
        return Cost(
            trained_rows=config.batch_size,
            frozen_rows=max(largest, teacher_rows),
            mean_frozen_rows=mean + teacher_rows,
            latent_sizes=(config.size // shapes.pixels_per_latent,) if config.size else (),
            images=config.selection_images(shapes),
        )

    def prepare(self, task: UnlearningTask, student: Denoiser) -> None:
        base, config = task.base, self.config
        self.seed = task.seed
        self.teacher = base.denoiser
        self.sampler: NoisePredictor = student if config.on_policy else self.teacher
        prompts = [templated(concept, config, config.prompts) for concept in task.concepts]
        self.texts, self.owners = zip(*((text, i) for i, texts in enumerate(prompts) for text in texts), strict=True)
        self.prompts = encode_prompts(base, self.texts)
        self.origin = encode_prompts(base, [config.erase_from]) if config.erase_from else None
        stops = selected_stops(task, config, config.rollout_steps, scheduler=config.scheduler)
        self.rollouts = Rollouts(base, config, stops, [config.size] if config.size else None, config.scheduler)
        if config.steps_per_rollout > 1 and type(self).batch is not ESD.batch:
            raise UserError(
                f"method '{self.name}': steps_per_rollout should be 1, as its batches are of its own making"
            )
        self.shared = SharedRollouts(config, task.seed)
        self.frozen = FrozenRollouts(base, self.rollouts, config.precision, task.rollouts)

    def draw(self, index: int) -> tuple[int, Start]:
        """What is random in a batch: which of the prompts, and where the trajectory starts and first stops."""
        rng = generator(self.seed, "esd", self.shared.source(index))
        number = integer(len(self.prompts), rng)
        return number, self.rollouts.start(rng, self.owners[number])

    def batch(self, index: int) -> Rollout:
        number, start = self.draw(index)
        concept = self.prompts[number]
        conditioning = concept if self.origin is None else self.origin
        if self.config.on_policy:
            state, _ = self.rollouts.shared(self.shared, index, self.sampler, start, conditioning)
            target = self.target(state, concept)
        else:
            at, stops = self.shared.state_index(index), self.shared.stops(index, start.stop, start.stops)
            frozen = self.frozen.states(self.sampler, start, conditioning, stops)
            state = State.of(frozen, at)
            target = self.known_target(state, concept, frozen.cond[at], frozen.uncond[at])
        return Rollout(state.latents, state.timestep, conditioning.expand(len(state.latents)), target)

    def target(self, state: State, concept: Conditioning) -> Tensor:
        """(B, 4, h, w): away from what the frozen original predicts for `concept`, one row."""
        conditions = [concept, self.rollouts.uncond, *([] if self.origin is None else [self.origin])]
        eps_concept, eps_uncond, *eps_origin = predictions(self.teacher, state, conditions)
        return esd_target(eps_origin[0] if eps_origin else eps_uncond, eps_concept, eps_uncond, self.config.eta)

    def known_target(self, state: State, concept: Conditioning, eps_cond: Tensor, eps_uncond: Tensor) -> Tensor:
        """The same, where the frozen original's predictions for the trajectory's prompt and the empty one are known."""
        if self.origin is None:
            return esd_target(eps_uncond, eps_cond, eps_uncond, self.config.eta)
        (eps_concept,) = predictions(self.teacher, state, [concept])
        return esd_target(eps_cond, eps_concept, eps_uncond, self.config.eta)

    def state(self) -> dict[str, Tensor]:
        return self.shared.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        self.shared.restore(state, self.prompts.device)

    def loss(self, student: NoisePredictor, rollout: Rollout) -> Tensor:
        return mse_loss(student(rollout.latents, rollout.timestep, rollout.conditioning), rollout.target)
