"""Schedulers by name. Always a new one: PNDM and its kin keep state from one trajectory to the next."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
from diffusers import SchedulerMixin

from efface.errors import UserError, did_you_mean

NAMES = {
    "pndm": "PNDMScheduler",
    "ddim": "DDIMScheduler",
    "ddpm": "DDPMScheduler",
    "lms": "LMSDiscreteScheduler",
    "euler": "EulerDiscreteScheduler",
    "euler-a": "EulerAncestralDiscreteScheduler",
    "heun": "HeunDiscreteScheduler",
    "dpm++": "DPMSolverMultistepScheduler",
    "unipc": "UniPCMultistepScheduler",
}
# These draw their noise from a source of their own, so an image would not be a function of its seed.
UNSEEDED_SCHEDULERS = ("DPMSolverSDEScheduler", "CosineDPMSolverMultistepScheduler")


def make_scheduler(name: str, config: dict[str, Any], steps: int) -> SchedulerMixin:
    """A new scheduler of `steps` inference steps, on the noise schedule of `config` (a base's
    `scheduler_config`).

    Raises UserError for a name neither in `NAMES` nor of a diffusers class, a class that cannot be had here, or one
    that does not know what the base predicts.
    """
    class_name = NAMES.get(name, name)
    known = getattr(diffusers, class_name, None) if class_name.endswith("Scheduler") else None
    if known is None or class_name in UNSEEDED_SCHEDULERS:
        raise UserError(f"unknown scheduler '{name}': {did_you_mean(name, NAMES)}")
    predicts = config.get("prediction_type", "epsilon")
    if predicts != "epsilon" and "prediction_type" not in inspect.signature(known.__init__).parameters:
        raise UserError(f"scheduler '{name}': steps by noise, and the base predicts {predicts}; take another scheduler")
    try:
        # Latents have no bounds; DDIM and DDPM would clip them to [-1, 1] where the config is silent.
        scheduler = known.from_config({**config, "clip_sample": False})
    except ImportError as error:
        raise UserError(f"scheduler '{name}': {' '.join(str(error).split())}") from None
    scheduler.set_timesteps(steps)
    return scheduler


def new_scheduler_like(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Another scheduler of the same kind, config and number of steps, at its start."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(scheduler.num_inference_steps)
    return fresh


def check_scheduler(file: Path, config: dict[str, Any]) -> None:
    """Raises UserError where a base's `scheduler_config.json`, in `file`, is of no scheduler that can be had here."""
    name = str(config["_class_name"])
    kind = getattr(diffusers, name, None)
    if kind is None:
        known = [one for one in dir(diffusers) if one.endswith("Scheduler")]
        raise UserError(f"{file}: this diffusers has no '{name}': {did_you_mean(name, known)}")
    try:
        kind.from_config(config)
    except Exception as error:
        raise UserError(f"{file}: does not describe a {name} ({' '.join(str(error).split())[:200]})") from None
