"""A campaign: jobs × evaluations in one YAML file, read strictly.

    name: demo
    base: miniature
    strategy: single
    concepts: {targets: [cat, bus]}
    methods:
      - {method: uce, preset: miniature}
      - {method: esd, preset: miniature, label: esd-x, config: {learning_rate: [1.0e-4, 3.0e-4]}}
    seeds: [0]
    evaluation: {images_per_prompt: 4}

A config field given as a list is a sweep axis (of a field that is itself a list, a list of lists). Where the
campaign says nothing of concepts, prompts, recipe or judge, the base's own YAML decides.
"""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from efface.concepts.prompts import AXES, Axis
from efface.config_files import StrictModel, find_config, read_config

Strategy = Literal["single", "multi", "continual"]


class MethodChoice(StrictModel):
    """A method with its settings, and the combinations of a sweep that are left out."""

    method: str = Field(description="by name, of `efface methods`")
    preset: str | None = Field(None, description="a shipped preset of the method, or a YAML file")
    label: str | None = Field(None, description="the name in tables; default: the method's name")
    config: dict[str, Any] = Field({}, description="fields that override the preset; a list is a sweep axis")
    exclude: tuple[dict[str, Any], ...] = Field((), description="combinations of swept fields to leave out")
    strategies: tuple[Strategy, ...] = Field(
        (), description="of this method, each with models of its own; default: the campaign's"
    )
    targets: tuple[str, ...] = Field((), description="what this method is to forget; default: the campaign's targets")

    @model_validator(mode="before")
    @classmethod
    def _compose_is_a_method(cls, data: Any) -> Any:
        """`compose: [...]` is short for the method of that name with these edits."""
        if isinstance(data, dict) and "compose" in data and "method" not in data:
            rest = {key: value for key, value in data.items() if key != "compose"}
            return {**rest, "method": "compose", "config": {**rest.get("config", {}), "edits": data["compose"]}}
        return data


class ConceptChoice(StrictModel):
    """What is to be forgotten."""

    set: str | None = Field(None, description="concept set by name or file; default: the base's own")
    targets: Literal["all"] | tuple[str, ...] = Field("all", description="concepts or aliases of the set")


class PromptSearchChoice(StrictModel):
    """How adversarial prompts are found, where the prompt set has none."""

    attack: str = Field("token-search", description="an attack of `efface attacks`")
    config: dict[str, Any] = Field({}, description="fields of the attack's config")
    seed: int = Field(0, ge=0, description="of the search")


class Evaluation(StrictModel):
    """How each model, and the base, is judged."""

    prompts: str | None = Field(None, description="prompt set by name or file; default: the base's own")
    recipe: str | None = Field(None, description="recipe by name or file; default: the base's own")
    judges: tuple[str, ...] = Field(
        (), description="judges by name or file, the first for the headline; default: the base's own"
    )
    metrics: tuple[str, ...] = Field((), description="metrics of each whole model, by name; default: none")
    images_per_prompt: int = Field(4, ge=1, le=1000, description="images of each prompt, with seeds 0, 1, …")
    prompts_per_concept: dict[Axis, int] = Field(
        {},
        description="at most so many prompts of each asked concept on an axis, 0: the axis is left out; default: all",
    )
    prompt_search: PromptSearchChoice = PromptSearchChoice()
    shard_size: int = Field(64, ge=1, le=1024, description="images in one task")

    @field_validator("prompts_per_concept")
    @classmethod
    def _not_negative(cls, limits: dict[Axis, int]) -> dict[Axis, int]:
        if any(limit < 0 for limit in limits.values()):
            raise ValueError("should be 0 or more on every axis")
        if all(limits.get(axis) == 0 for axis in AXES):
            raise ValueError("leaves every axis out, should leave one in")
        return limits


class AttackChoice(StrictModel):
    """An attack on every model, for every concept that it was made to forget."""

    attack: str = Field(description="by name, of `efface attacks`")
    config: dict[str, Any] = Field({}, description="fields of the attack's config")
    budget: int = Field(20_000, ge=1, description="model calls for each model and concept, all instances together")
    prompts: int = Field(1, ge=1, description="direct prompts of the concept, each tried by every seed")
    seeds: tuple[int, ...] = Field((0, 1, 2, 3), min_length=1, description="image seeds")
    seed: int = Field(0, ge=0, description="of the attack's own random numbers")
    control: str | None = Field(
        None,
        description="a delta (file or hub id) that makes of the base a model that never knew the concepts: the same "
        "attack is tried on it, which tells residue from relearning",
    )


class Resources(StrictModel):
    """What one worker holds of the cluster."""

    cpus: int = Field(1, ge=1, description="CPU cores, and torch threads, of a worker")
    gpus: float = Field(0, ge=0, description="GPUs of a worker, 1 or a fraction; 0: it computes on the CPU")
    processes: int = Field(1, ge=1, description="processes that train one job together, each with a worker's resources")
    pack: int = Field(
        16, ge=1, description="jobs that a worker trains together, where they allow it and fit; 1: each job alone"
    )
    launcher: Literal["actors", "ray-train"] = Field(
        "actors", description="who starts these processes: efface's own actors, or Ray Train's TorchTrainer"
    )

    @field_validator("gpus")
    @classmethod
    def _one_at_most(cls, gpus: float) -> float:
        if gpus > 1:
            raise ValueError(f"a worker has one GPU at most, not {gpus:g}; for more to a job say processes: {gpus:.0f}")
        return gpus

    @model_validator(mode="after")
    def _whole_gpus_for_a_process_group(self) -> "Resources":
        if self.processes > 1 and self.gpus not in (0, 1):
            raise ValueError(f"processes that train together need a GPU each, not {self.gpus:g}: give gpus 1, or 0")
        return self


class Limits(StrictModel):
    """When a task is interrupted, and how much of it an error can cost."""

    job_seconds: float | None = Field(None, gt=0, description="time limit of one training; default: none")
    shard_seconds: float | None = Field(None, gt=0, description="time limit of one shard of images; default: none")
    checkpoint_steps: int = Field(50, ge=1, description="optimiser steps between two checkpoints of a training")


class Campaign(StrictModel):
    """One YAML file."""

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$", description="of the run folder, if no other is given"
    )
    base: str = Field(description="a base of `efface bases`, a diffusers folder, a checkpoint or a hub id")
    strategy: Strategy = Field(
        "single", description="a model per concept, one for all, or a chain of requests in the order of the targets"
    )
    concepts: ConceptChoice = ConceptChoice()
    methods: tuple[MethodChoice, ...] = Field(min_length=1)
    seeds: tuple[int, ...] = Field((0,), min_length=1, description="training seeds: a model for each")
    evaluation: Evaluation = Evaluation()
    attacks: tuple[AttackChoice, ...] = Field((), description="on every model; default: none")
    resources: Resources = Resources()
    limits: Limits = Limits()
    training: dict[str, Any] = Field(
        {}, description="how jobs are run: fields of `TrainingOptions` in train/trainer/options.py"
    )

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, seeds: tuple[int, ...]) -> tuple[int, ...]:
        duplicate = next((seed for seed in seeds if seeds.count(seed) > 1), None)
        if duplicate is not None:
            raise ValueError(f"names {duplicate} twice, should name each seed once")
        return seeds


class DeltaEvaluation(StrictModel):
    """A request to judge deltas that exist already."""

    base: str = Field(description="the base that they were made from")
    concepts: str | None = Field(None, description="concept set by name or file; default: the base's own")
    evaluation: Evaluation = Evaluation()
    resources: Resources = Resources()
    limits: Limits = Limits()


MUTABLE_KEYS = ("resources", "limits", "training")
"""Keys that say how the work is done and not what it is: they may change from one start of a run to the next."""


def read_campaign(name_or_path: str | Path, overrides: list[str] | None = None) -> Campaign:
    """A campaign file, or a shipped one by name, with `key=value` overrides. Raises UserError."""
    return read_config(Campaign, find_config("campaigns", name_or_path), overrides)
