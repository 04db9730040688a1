"""What a method is: a strict config, a parameter group, a closed form or a loss with its data, and its cost.

A method is one file that reads like the paper's algorithm. Those of efface are in `train/methods/`, each in a file of
its name; a package of somebody else's adds one through the entry point group `efface.methods`. `@register("name")`
makes it known:

    @register("esd")
    class ESD(GradientMethod):
        Config = ESDConfig
        …

The frozen original is `task.base`, which is also every method's teacher: a method reads it and never writes to it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn

from efface.concepts.concept import Concept, ConceptSet
from efface.config_files import CONFIGS, StrictModel, parse, read_yaml
from efface.errors import UserError, did_you_mean
from efface.files import local_path
from efface.models.base import Base
from efface.models.parameter_groups import select
from efface.models.shapes import ModelShapes
from efface.registry import Registry
from efface.train.method_cost import Cost

if TYPE_CHECKING:
    from efface.train.data.rollout_store import RolloutStore

Strategy = Literal["single", "multi", "continual"]
"""One model per concept; one model for all of them; a chain of requests."""

Policy = Literal["on", "off", "either", "none"]
"""Whose trajectories a method trains on: the edited model's, the frozen one's, by its config, or nobody's."""

DeltaKind = Literal["weights", "adapter", "hook"]


class MethodConfig(StrictModel):
    """The settings of a method. Every field has a description that gives its unit and its source."""

    def models(self) -> dict[str, str]:
        """Models beside the base that are read, by the field that names each: a folder, whose content is part of a
        job's id, or a hub id."""
        return {}


class TrainingConfig(MethodConfig):
    """How a loss is minimised, but for how long and how fast: the part that all gradient methods share.

    One optimiser step takes `gradient_accumulation_steps` batches of `batch_size`, whatever number of
    processes they are spread over, so that a job means the same on one GPU and on eight.
    """

    batch_size: int = Field(1, ge=1, description="samples in one forward pass")
    gradient_accumulation_steps: int = Field(
        1,
        ge=1,
        description="batches whose mean gradient makes one optimiser step; several processes share them",
    )
    optimizer: Literal["adam", "adamw", "sgd"] = Field(
        "adam", description="torch.optim's Adam, AdamW or SGD (no momentum), with their default betas"
    )
    weight_decay: float = Field(0.0, ge=0, description="weight decay, per step and unit of learning rate")
    max_grad_norm: float = Field(0.0, ge=0, description="global L2 norm the gradient is clipped to; 0: no clipping")
    schedule: Literal["constant", "linear", "cosine"] = Field(
        "constant", description="the learning rate after the warm-up: kept, or lowered towards 0 at the end"
    )
    schedule_cycles: int = Field(1, ge=1, description="times that a cosine schedule starts from the full rate")
    warmup_steps: int = Field(0, ge=0, description="optimiser steps in which the learning rate rises linearly from 0")
    warmup_from_zero: bool = Field(
        False, description="the first of these has rate 0, as in the schedules of transformers; false: 1/warmup_steps"
    )
    loss_shape: Literal["plain", "hellinger"] = Field(
        "plain", description="the method's loss as it is, or 1 - exp(-loss / hellinger_scale) (arXiv 2509.21167)"
    )
    hellinger_scale: float = Field(1.0, gt=0, description="the loss at which that is 0.63; of the loss's own unit")
    near_start: Literal["l1", "l2"] = Field(
        "l2", description="mean |change| or mean squared change of the trained weights, as near_start_weight counts it"
    )
    near_start_weight: float = Field(
        0.0,
        ge=0,
        description="what the change since the job's start adds to the loss; CUIG: 50 (l1) or 25000 (l2)",
    )
    select: Literal["all", "gradient", "importance"] = Field(
        "all",
        description="entries of the weights that are trained: all, those of the largest gradient (SalUn's saliency), "
        "or of the largest |weight x gradient| (selective fine-tuning)",
    )
    select_share: float = Field(0.5, gt=0, le=1, description="share of the entries selected; SalUn 0.5, CUIG 0.05")
    select_batches: int = Field(50, ge=1, description="batches whose gradients are summed to select; CUIG about 50")
    protect: Literal["none", "retained"] | tuple[str, ...] = Field(
        "none",
        description="prompts on whose mean token embeddings the change of cross-attention keys and values does not "
        "act: none, those of the retained concepts, or these",
    )
    replay_weight: float = Field(
        0.0, ge=0, description="what the change of predictions for replayed prompts adds to the loss; LACU 25 to 5 to 7"
    )
    replay: Literal["retained"] | tuple[str, ...] = Field(
        "retained", description="prompts to replay: the retained concepts', or these"
    )
    replay_prompts: int = Field(16, ge=1, description="prompts that are replayed, the nearest to what is forgotten")
    replay_images: int = Field(64, ge=1, description="images of them, drawn by the model before the job")
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="of the UNets' forward passes and of the weights that are not trained; the trained ones, the loss "
        "and the optimiser are fp32 in any case",
    )

    @property
    def sees_others(self) -> bool:
        """Whether what is added to the method's loss does."""
        replayed = self.replay_weight > 0 and self.replay == "retained"
        return replayed or self.protect == "retained" or getattr(self, "map_to", "anchor") == "nearest"


class GradientConfig(TrainingConfig):
    """The settings of a gradient method that takes its length as optimiser steps, and a learning rate."""

    steps: int = Field(ge=1, description="optimiser steps")
    learning_rate: float = Field(gt=0, description="learning rate of the optimiser, never scaled by anything")


def _names_nothing(text: str) -> bool:
    return False


@dataclass(frozen=True)
class UnlearningTask:
    """What a method is to do."""

    base: Base
    """The frozen original (in a chain, with the delta of the request before in place), which is the teacher."""
    concepts: tuple[Concept, ...]
    """The concepts to forget, in the order requested; one for `single`; of a chain the newest, or all where equations
    are solved anew."""
    concept_set: ConceptSet
    """Where the concepts' anchors, adjacent and retained concepts are found: without those that are held out."""
    seed: int
    cache: Path | None = None
    """A folder for costly data that is a function of its key (anchor images, say); None: nothing is kept."""
    erased: tuple[Concept, ...] = ()
    """What earlier requests of a chain erased, oldest first, or other edits of a merge: nothing to hold still, or to
    map a concept to."""
    rollouts: "RolloutStore | None" = None
    """Where trajectories of the frozen model are kept; None: nowhere."""
    names_held_out: Callable[[str], bool] = _names_nothing
    """Whether a text names a concept that is held out."""

    def retained(self, *concepts: Concept) -> list[Concept]:
        """What must stay where `concepts` go, by default all of the task: each once, without what is to be forgotten or
        is gone."""
        gone = {concept.name for concept in (*self.concepts, *self.erased)}
        kept = {
            other.name: other for each in concepts or self.concepts for other in self.concept_set.retained_for(each)
        }
        return [other for name, other in kept.items() if name not in gone]

    def may_see(self, texts: Iterable[str]) -> list[str]:
        """Of words and captions that come from elsewhere than the set those that name nothing that is held out."""
        return [text for text in texts if not self.names_held_out(text)]


class Method(ABC):
    """A config applied to a task."""

    name: ClassVar[str]
    version: ClassVar[int] = 1
    """Goes up when the same config would give other weights; part of every job's id."""
    Config: ClassVar[type[MethodConfig]]
    strategies: ClassVar[frozenset[Strategy]] = frozenset({"single"})
    policy: ClassVar[Policy] = "none"
    delta_kind: DeltaKind = "weights"
    draws: ClassVar[bool] = True
    """Whether another seed gives other weights."""
    anew: ClassVar[bool] = False
    """Whether a request of a chain starts anew from the unedited base, for everything asked so far."""

    def __init__(self, config: MethodConfig) -> None:
        self.config: Any = config
        self.findings: dict[str, Any] = {}
        """What a job has found beside the weights, as JSON; part of the delta's provenance."""

    @property
    def sees_others(self) -> bool:
        """Whether the weights may depend on other concepts of the set than those to forget and their anchors."""
        return True

    @property
    def image_passes(self) -> int:
        """Rows that a guided step of the edited model takes of the denoiser for an image."""
        return 2

    @property
    @abstractmethod
    def group(self) -> str:
        """The parameter group (`models/parameter_groups.py`) that this config changes; nothing else is touched."""

    def hook_config(self, task: UnlearningTask) -> StrictModel:
        """Of a method whose delta is a `hook`: the config of its hook (`models/sampling/sampler_hooks.py`)."""
        raise NotImplementedError


class ClosedFormMethod(Method):
    """A method whose new weights are the solution of equations."""

    draws: ClassVar[bool] = False
    anew: ClassVar[bool] = True

    @abstractmethod
    def solve(self, task: UnlearningTask) -> dict[str, Tensor]:
        """New values, fp32, of the changed parameters by full name."""


class GradientMethod(Method):
    """A method that minimises a loss by gradient steps, in the loop of `train/trainer/loop.py`.

    `add_adapters` and `prepare` are called once, then `batch` and `loss` in turns. Everything random in a batch is a
    function of the task's seed and the batch's index (`train/seeds.py`), so that a run can be stopped and resumed at
    any step. A method that learns something beside the weights does so in `before_step` and `after_step`, as a function
    of seed, step and `state`.

    The student shares the base's values but for what `trained` names. A method that writes to others, in `prepare`, has
    them copied first, by `student.own`.
    """

    network: ClassVar[Literal["unet", "text_encoder"]] = "unet"
    """Which network is trained: the student is a `Denoiser`, or a `TextEncoder`."""
    packs: ClassVar[bool] = False
    """Whether several jobs may be trained in one pack (`train/trainer/pack.py`): the method calls its networks whole,
    leaves gradients to the loop, and puts hooks on the student only that are the same for every job. Not inherited."""
    saves_what_it_trains: ClassVar[bool] = True
    """Whether the delta is the trained tensors, or an average of them, so that what bounds these bounds the delta. If
    not, they may be unknown until `prepare`, which then makes them."""

    @abstractmethod
    def cost(self, shapes: ModelShapes) -> Cost:
        """What a batch takes and what comes before the first one; memory and hours are estimated from it."""

    def add_adapters(self, student: Any, seed: int) -> None:
        """Add the trained modules of an adapter method to the student; other methods have none."""

    @abstractmethod
    def prepare(self, task: UnlearningTask, student: Any) -> None:
        """Encode prompts, make data, and register hooks on the student."""

    @abstractmethod
    def batch(self, index: int) -> Any:
        """The data of batch `index` (0, 1, …), made without gradient: roll-outs, teacher predictions."""

    @abstractmethod
    def loss(self, student: Any, batch: Any) -> Tensor:
        """The scalar to be minimised, fp32: a pure function of the student's predictions and the batch."""

    def trained(self, student: Any) -> dict[str, nn.Parameter]:
        """The trained tensors by full name, known after `add_adapters`; an adapter method's are its adapters'."""
        return select(student.modules, self.group)

    def saved(self, student: Any) -> dict[str, Tensor]:
        """The tensors of the delta, asked for once after the last step."""
        return {name: value.detach() for name, value in self.trained(student).items()}

    def selection_loss(self, student: Any, index: int) -> Tensor:
        """The loss by whose gradient `select` picks entries, of batch 0, 1, …; a method may have one of its own."""
        with torch.no_grad():
            batch = self.batch(index)
        return self.loss(student, batch)

    def before_step(self, step: int) -> None:
        """Change the method's own state (an adversary, say) before optimiser step 0, 1, …; in every process alike."""

    def after_step(self, step: int) -> None:
        """The same, once the weights have been changed (an average of them, say)."""

    def state(self) -> dict[str, Tensor]:
        """What `before_step` and `after_step` keep, fp32; part of a checkpoint."""
        return {}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from the `state` of a checkpoint."""

    @property
    def steps(self) -> int:
        """Optimiser steps."""
        return int(self.config.steps)

    @property
    def learning_rate(self) -> float:
        """Learning rate of the optimiser after the warm-up."""
        return float(self.config.learning_rate)


METHODS: Registry[type[Method]] = Registry("method", "efface.methods", package="efface.train.methods")

AnyMethod = TypeVar("AnyMethod", bound=type[Method])


def register(name: str) -> Callable[[AnyMethod], AnyMethod]:
    """Class decorator that makes a method known by `name`; in `train/methods/` that is the file's name."""

    def decorate(method: AnyMethod) -> AnyMethod:
        method.name = name
        return METHODS.register(name)(method)

    return decorate


def method_names() -> list[str]:
    """Every known method, sorted. Imports none."""
    return METHODS.names()


def get_method(name: str) -> type[Method]:
    """The method called `name`. Raises UserError where there is none."""
    return METHODS.get(name)


def parse_config(method_name: str, config: dict[str, Any], preset: str | None = None) -> MethodConfig:
    """The method's defaults, overridden by a preset (a shipped name or a YAML file), overridden by `config`.

    Raises UserError for an unknown method, preset or field, and for a value out of range.
    """
    method = get_method(method_name)
    settings = {**read_yaml(_preset_file(method_name, preset)), **config} if preset else config
    return parse(method.Config, settings, f"config of method '{method_name}'")


def preset_names(method_name: str) -> list[str]:
    """Presets shipped for a method in `configs/methods/<method>/`, sorted."""
    return sorted(path.stem for path in (CONFIGS / "methods" / method_name).glob("*.yaml"))


def _preset_file(method_name: str, preset: str) -> Path:
    if preset in preset_names(method_name):
        return CONFIGS / "methods" / method_name / f"{preset}.yaml"
    if local_path(preset).is_file():
        return local_path(preset)
    known = did_you_mean(preset, preset_names(method_name))
    raise UserError(f"unknown preset '{preset}' of method '{method_name}': {known}")
