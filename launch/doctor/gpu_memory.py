"""What each GPU of a campaign has to hold at most: a training beside the resident judges, and judging itself.

Estimated, as in train/cost/memory.py, or for a training on one GPU measured, where there is a GPU to measure on. What
a judge's own pass takes is not in it. A worker keeps the base and the judges as long as it lives; processes that train
a job together have no judges.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from efface.config_files import parse
from efface.eval.judging.judge_spec import read_judge
from efface.models.base import Base, load_base
from efface.models.files.folder_identity import FILES
from efface.models.files.model_files import NotCached, locate
from efface.models.parameter_groups import select
from efface.models.recipe import Recipe
from efface.models.shapes import ModelShapes, model_shapes
from efface.train.cost.measured_memory import CudaPeak, PeakCounter, measured_peak
from efface.train.cost.memory import estimate_memory
from efface.train.method import GradientMethod, Method, get_method, parse_config
from efface.train.trainer.options import TrainingOptions

if TYPE_CHECKING:
    from efface.cluster.campaign.plan import Plan
    from efface.cluster.campaign.spec import Campaign

FP32 = 4


@dataclass(frozen=True)
class GpuMemoryEstimate:
    """Bytes on each GPU, `judges` included wherever they are resident."""

    training: dict[str, int]
    """The most that a job of each label takes."""
    judging: int
    """A shard of the model that differs from the base in the most weights."""
    judges: int
    unknown: tuple[str, ...] = ()
    """Judges whose weights are not on this machine, and so not in these numbers."""
    measured: tuple[str, ...] = ()
    """Labels whose training was measured; all else is estimated."""
    out_of_memory: tuple[str, ...] = ()
    """Labels whose training ran out of memory when it was measured."""


def estimate_gpu_memory(campaign: "Campaign", plan: "Plan", counter: PeakCounter | None = None) -> GpuMemoryEstimate:
    """`counter` is of the GPU to measure on; None: everything is estimated.

    Raises NotCached where the base's shapes are on the hub, UserError for an unknown DeepSpeed config.
    """
    shapes, options = model_shapes(plan.base), parse(TrainingOptions, campaign.training, "training")
    known = {trial.judge: judge_bytes(trial.judge) for trial in plan.calibrations}
    judges = sum(found or 0 for found in known.values())
    processes = campaign.resources.processes
    training: dict[str, int] = {}
    measured, out_of_memory = [], []
    base: Base | None = None
    for label, method in methods(plan).items():
        together = processes > 1 and isinstance(method, GradientMethod)
        training[label] = estimate_memory(method, shapes, options, processes).peak + (0 if together else judges)
        if counter is None or together or not isinstance(method, GradientMethod):
            continue
        base = base or load_base(plan.base, counter.device)
        try:
            training[label] = measured_peak(method, base, shapes, options, counter) + judges
            measured.append(label)
        except torch.OutOfMemoryError:
            out_of_memory.append(label)
    return GpuMemoryEstimate(
        training=training,
        judging=judging_bytes(shapes, plan.recipe, list(methods(plan).values())) + judges,
        judges=judges,
        unknown=tuple(judge for judge, found in known.items() if found is None),
        measured=tuple(measured),
        out_of_memory=tuple(out_of_memory),
    )


def gpu_at_hand() -> PeakCounter | None:
    """The GPU of this machine that a step can be measured on; None where there is none."""
    return CudaPeak() if torch.cuda.is_available() else None


def methods(plan: "Plan") -> dict[str, Method]:
    """The method of each label in the plan, with its config."""
    jobs = {model.label: model.job for model in plan.jobs if model.job}
    return {label: get_method(job.method)(parse_config(job.method, job.config)) for label, job in jobs.items()}


def judging_bytes(shapes: ModelShapes, recipe: Recipe, edited_by: Sequence[Method]) -> int:
    """The base, what an edited model keeps of it to put back, and sampling or decoding a batch; without judges."""
    base = FP32 * shapes.parameters
    kept = FP32 * max((_numel(select(shapes.modules, method.group).values()) for method in edited_by), default=0)
    fp32 = recipe.dtype == "float32"
    lowered = 0 if fp32 else getattr(torch, recipe.dtype).itemsize * _numel(shapes.unet.parameters())
    height, width = recipe.height // shapes.pixels_per_latent, recipe.width // shapes.pixels_per_latent
    passes = max((method.image_passes for method in edited_by), default=2)
    rows = recipe.smallest_batch * (passes if recipe.guidance_scale > 1 else 1)
    sampling = shapes.unet_pass(rows, height, width, "fp32" if fp32 else "bf16").peak
    return base + kept + lowered + max(sampling, shapes.decode_pass(recipe.smallest_batch, height, width).peak)


def judge_bytes(judge: str) -> int | None:
    """Bytes of a judge's weights in memory, from the shapes in its files; None where they are not on this machine."""
    weights = read_judge(judge).config.weights
    if weights is None:
        return 0
    try:
        folder = locate(weights.source, FILES, fetch=False)
    except NotCached:
        return None
    whole = folder / "model.safetensors"
    files = [whole] if whole.is_file() else sorted(folder.glob("*.safetensors"))
    return getattr(torch, weights.dtype).itemsize * sum(map(_parameter_count, files)) if files else None


@lru_cache
def _parameter_count(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        shapes = [tensors.get_slice(name).get_shape() for name in tensors.keys()]  # noqa: SIM118
    return sum(torch.Size(shape).numel() for shape in shapes)


def _numel(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(parameter.numel() for parameter in parameters)
