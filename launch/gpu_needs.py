"""What each GPU of a campaign has to hold at most: a training beside the resident judges, and judging itself.

By arithmetic, as in train/cost/memory.py, and of tensors alone; what a judge's own pass takes is not in it. A worker
keeps the base and the judges as long as it lives; a gang that trains a job together has no judges.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from efface.config_files import find_config, parse, read_yaml
from efface.eval.judge_identity import FILES
from efface.eval.judges.vlm import VlmSpec
from efface.models.activations import pass_cost
from efface.models.model_files import NotCached, locate
from efface.models.parameter_groups import select
from efface.models.recipe import Recipe
from efface.train.cost.memory import memory, memory_options
from efface.train.cost.passes import ModelShapes, cached_unet_pass_cost, model_shapes
from efface.train.method import ClosedFormMethod, Method, get_method, parse_config
from efface.train.trainer.options import TrainingOptions

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.campaign.spec import Campaign

FP32 = 4


@dataclass(frozen=True)
class GpuMemoryEstimate:
    """Bytes on each GPU, `judges` included wherever they are there."""

    training: dict[str, int]
    """The most that a job of each label takes."""
    judging: int
    """A shard of the model that differs from the base in the most weights."""
    judges: int
    unknown: tuple[str, ...] = ()
    """Judges whose weights are not on this machine, and so not in these numbers."""


def estimate_gpu_memory(campaign: "Campaign", plan: "Plan") -> GpuMemoryEstimate:
    """Raises NotFetched where the base's shapes are on the hub, UserError for a method that is not known."""
    size, options = model_shapes(plan.base), memory_options(parse(TrainingOptions, campaign.training, "training"))
    known = {trial.judge: judge_bytes(trial.judge) for trial in plan.calibrations}
    judges = sum(found or 0 for found in known.values())
    processes = campaign.resources.processes
    training = {}
    for label, method in methods(plan).items():
        alone = memory(method, size, processes=processes, **options).peak
        in_a_gang = processes > 1 and not isinstance(method, ClosedFormMethod)
        training[label] = alone if in_a_gang else alone + judges
    return GpuMemoryEstimate(
        training=training,
        judging=judging_bytes(size, plan.recipe, list(methods(plan).values())) + judges,
        judges=judges,
        unknown=tuple(judge for judge, found in known.items() if found is None),
    )


def methods(plan: "Plan") -> dict[str, Method]:
    """The method of each label in the plan, with its config."""
    jobs = {model.label: model.job for model in plan.jobs if model.job}
    return {label: get_method(job.method)(parse_config(job.method, job.config)) for label, job in jobs.items()}


def judging_bytes(size: ModelShapes, recipe: Recipe, edited_by: Sequence[Method]) -> int:
    """The base, what an edited model keeps of it to put back, and sampling or decoding a batch; without judges."""
    modules = {"unet": size.unet, "vae": size.vae, "text_encoder": size.text_encoder}
    base = FP32 * sum(_numel(module.parameters()) for module in modules.values())
    kept = FP32 * max((_numel(select(modules, method.group).values()) for method in edited_by), default=0)
    fp32 = recipe.dtype == "float32"
    lowered = 0 if fp32 else getattr(torch, recipe.dtype).itemsize * _numel(size.unet.parameters())
    height, width = recipe.height // size.pixels_per_latent, recipe.width // size.pixels_per_latent
    rows = recipe.batch_size * (2 if recipe.guidance_scale > 1 else 1)
    sampling = cached_unet_pass_cost(size.unet, (), rows, height, width, "fp32" if fp32 else "bf16").peak
    with torch.device("meta"):
        latents = torch.zeros(recipe.batch_size, size.vae.config.latent_channels, height, width)
    decoding = pass_cost(size.vae, lambda: size.vae.decode(latents).sample, False).peak
    return base + kept + lowered + max(sampling, decoding)


def judge_bytes(judge: str) -> int | None:
    """Bytes of a judge's weights in memory, from the shapes in its files; None where they are not on this machine."""
    data = read_yaml(find_config("judges", judge))
    dtype = parse(VlmSpec, data, judge).dtype if data.get("kind") == "vlm" else "float32"
    try:
        folder = locate(str(data.get("source", "")), FILES, fetch=False)
    except NotCached:
        return None
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    return getattr(torch, dtype).itemsize * sum(map(_parameter_count, files)) if files else None


@lru_cache
def _parameter_count(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    return sum(torch.Size(shape).numel() for shape in shapes)


def _numel(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
