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
STEPS = 20
"""That every base must be able to take; those of DDIM in most recipes."""
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
        scheduler.set_timesteps(steps)
    except ImportError as error:
        raise UserError(f"scheduler '{name}': {_one_line(error)}") from None
    except Exception as error:  # whatever a class stumbles over in a base's config
        raise UserError(f"scheduler '{name}': cannot take {steps} steps with this base ({_one_line(error)})") from None
    return scheduler


def new_scheduler_like(scheduler: SchedulerMixin) -> SchedulerMixin:
    """Another scheduler of the same kind, config and number of steps, at its start."""
    fresh = type(scheduler).from_config(scheduler.config)
    fresh.set_timesteps(scheduler.num_inference_steps)
    return fresh


def check_scheduler(file: Path, config: dict[str, Any]) -> None:
    """Raises UserError where a base's `scheduler_config.json`, in `file`, is of no scheduler that can be had here, or
    of one that makes no steps or no noise schedule."""
    name = str(config["_class_name"])
    kind = getattr(diffusers, name, None)
    if kind is None:
        known = [one for one in dir(diffusers) if one.endswith("Scheduler")]
        raise UserError(f"{file}: this diffusers has no '{name}': {did_you_mean(name, known)}")
    try:
        for one in (kind, diffusers.DDIMScheduler):
            scheduler = one.from_config(config)
            scheduler.set_timesteps(STEPS)
            _check_schedule(scheduler, config)
    except Exception as error:
        raise UserError(f"{file}: does not describe a {name} ({_one_line(error)})") from None


def _check_schedule(scheduler: Any, config: dict[str, Any]) -> None:
    """Raises ValueError where the share of the image that is left, by timestep, is none, or steps lie outside of it."""
    alphas, timesteps = scheduler.alphas_cumprod, scheduler.timesteps
    count = scheduler.config.num_train_timesteps
    # A schedule that ends in pure noise is one of models that do not predict the noise.
    least = alphas[:-1] if config.get("prediction_type") == "v_prediction" else alphas
    if len(alphas) != count:
        raise ValueError(f"{len(alphas)} betas for {count} timesteps")
    if not bool(((alphas >= 0) & (alphas <= 1)).all() and (least > 0).all()):  # not a number is neither
        raise ValueError("its alphas are not between 0 and 1")
    if not bool(((timesteps >= 0) & (timesteps < count)).all()):
        raise ValueError(f"its steps are outside of the {count} timesteps")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
