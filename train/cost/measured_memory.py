"""The memory of a job's optimiser step, measured on the GPU that it would run on.

The step is the job's own in everything but its data: the student with its adapters, the engine (Accelerate or
DeepSpeed), the precision, the attention, the largest pass without gradient and the one with, on latents and prompts of
noise, and the optimiser. So nothing has to be prepared, and a method is measured in seconds.
"""

import json
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Protocol

import torch

from efface.errors import UserError
from efface.files import content_id, write_json
from efface.models.base import Base
from efface.models.conditioning import Conditioning
from efface.models.fingerprint import cache_folder
from efface.models.shapes import ModelShapes
from efface.models.text.text_encoding import encode_prompts, token_ids
from efface.train.method import GradientMethod
from efface.train.trainer.engine import isolated_accelerate_state
from efface.train.trainer.make_engine import make_accelerator, make_engine
from efface.train.trainer.options import TrainingOptions, apply_training_options


class PeakCounter(Protocol):
    """The most bytes allocated at once on a device."""

    device: str
    device_name: str

    def reset(self) -> None: ...

    def peak(self) -> int: ...


class CudaPeak:
    """`torch.cuda.max_memory_allocated` of the current GPU."""

    device = "cuda"

    def __init__(self) -> None:
        self.device_name = torch.cuda.get_device_name()

    def reset(self) -> None:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()

    def peak(self) -> int:
        torch.cuda.synchronize()
        return int(torch.cuda.max_memory_allocated())


def measured_file(method: GradientMethod, base_id: str, options: TrainingOptions, device_name: str) -> Path:
    """Where a measured peak is kept on this machine."""
    key = {
        "device": device_name,
        "base": base_id,
        "method": method.name,
        "version": method.version,
        "config": method.config.model_dump(mode="json"),
        "options": options.model_dump(mode="json", exclude={"tracker", "tracker_folder"}),
        "torch": torch.__version__,
    }
    return cache_folder() / "memory" / f"{content_id(key)}.json"


def known_peak(file: Path) -> int | None:
    """The bytes in a file of `measured_file`; None where there is none."""
    try:
        return int(json.loads(file.read_text())["peak_bytes"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def measured_peak(
    method: GradientMethod, base: Base, shapes: ModelShapes, options: TrainingOptions, counter: PeakCounter
) -> int:
    """Bytes at most in one optimiser step of a single process, the base and all else on the device included.

    A known answer comes from `$EFFACE_CACHE/memory`. Raises torch.OutOfMemoryError where the step does not fit.
    """
    file = measured_file(method, base.fingerprint, options, counter.device_name)
    found = known_peak(file)
    if found is None:
        counter.reset()
        _step(method, base, shapes, options.model_copy(update={"tracker": None, "tracker_folder": None}))
        found = counter.peak()
        with suppress(UserError):  # a cache that cannot be written costs time only
            write_json(file, {"peak_bytes": found, "method": method.name, "device": counter.device_name})
    return found


def _step(method: GradientMethod, base: Base, shapes: ModelShapes, options: TrainingOptions) -> None:
    """One optimiser step on noise; the base is left as it was."""
    cost, side = method.cost(shapes), max(method.cost(shapes).latent_sizes or (shapes.latent_size,))
    student = base.network(method.network).copy()
    method.add_adapters(student, seed=0)
    trained = method.trained(student)
    student.own(trained.values())
    for value in trained.values():
        value.requires_grad_(True)

    prompt = encode_prompts(base, [""])

    def noise(rows: int) -> tuple[torch.Tensor, torch.Tensor, Conditioning]:
        latents = torch.randn(rows, base.latent_shape[0], side, side, device=base.device)
        return latents, torch.full((rows,), 500, device=base.device), prompt.expand(rows)

    # two batches show what is kept from one to the next
    batches = min(2, method.config.gradient_accumulation_steps)
    config = method.config.model_copy(update={"gradient_accumulation_steps": batches})
    with ExitStack() as stack:
        stack.enter_context(isolated_accelerate_state())
        applied = apply_training_options(options, config.precision, base.denoiser, student, list(trained.values()))
        stack.enter_context(applied)
        accelerator = make_accelerator(base.device, config, options)
        engine = stack.enter_context(closing(make_engine(accelerator, student, trained, config, options)))
        for _ in range(batches):
            if cost.frozen_rows:
                with torch.no_grad(), engine.gather_params():
                    base.denoiser(*noise(cost.frozen_rows))
            with engine.accumulate():
                if method.network == "unet":
                    loss = engine.predict(*noise(cost.trained_rows)).square().mean()
                else:
                    hidden = engine.predict(token_ids(base, [""]).expand(cost.text_rows, -1))
                    loss = hidden.square().mean()
                    if cost.mean_search_rows:
                        latents, timestep, _ = noise(1)
                        loss = loss + base.denoiser(latents, timestep, Conditioning(hidden[:1])).square().mean()
                engine.backward_and_step(loss, method.learning_rate, measure=False)
