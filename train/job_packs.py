"""Which jobs can be trained in one pack, and running them so."""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from efface.files import content_id
from efface.models.base import Base
from efface.models.shapes import model_shapes
from efface.train.cost.memory import RESERVED_BYTES, estimate_memory
from efface.train.job import Job
from efface.train.method import METHODS, GradientMethod, TrainingConfig, get_method, parse_config
from efface.train.trainer.options import TrainingOptions
from efface.train.trainer.pack import Member, Pack

Result = TypeVar("Result")

SHARED_FIELDS = ("batch_size", "gradient_accumulation_steps", "precision", "size", "sizes")
"""Of a config: what decides the shape of a pass."""


def pack_key(job: Job) -> str | None:
    """Jobs with the same key can be packed: method, group, resolution, precision and length are the same.

    They may differ in concept, seed, learning rate, strength, rank and all else. None: the job is trained alone.
    """
    if job.method not in METHODS.names() or job.parent is not None:
        return None
    method = get_method(job.method)
    if not issubclass(method, GradientMethod) or not vars(method).get("packs") or job.method_version != method.version:
        return None
    config = parse_config(job.method, job.config)
    made = method(config)
    if made.network != "unet" or made.config.select != "all":  # entries are selected by gradients before the loop
        return None
    if made.config.replay_weight > 0:  # a loss of two passes
        return None
    shared = {name: value for name, value in config.model_dump(mode="json").items() if name in SHARED_FIELDS}
    return content_id([job.base_id, job.method, made.version, made.group, made.steps, shared])


def most_jobs(jobs: Sequence[Job], base: Base, options: TrainingOptions) -> int:
    """How many of these jobs, of one `pack_key`, fit into a pack on the base's device; 1: each is to be run alone."""
    if options.deepspeed is not None or options.gradient_checkpointing:  # which are for jobs that fill a device alone
        return 1
    if options.compiled:  # a pack exchanges the weights and the code of the layers that it stacks, in each pass
        return 1
    if base.device.type != "cuda":
        return len(jobs)
    shapes = model_shapes(base.spec)
    memory = [estimate_memory(get_method(job.method)(parse_config(job.method, job.config)), shapes) for job in jobs]
    # of each job values, gradients and moments, and the first two again as its share of the stack
    each = max(one.activations + 2 * one.states for one in memory)
    free, _ = torch.cuda.mem_get_info(base.device)
    cached = torch.cuda.memory_reserved(base.device) - torch.cuda.memory_allocated(base.device)
    return max(1, int((free + cached - RESERVED_BYTES - memory[0].models) // each))


def run_packed(
    jobs: Sequence[Job], works: Sequence[Callable[[Member], Result]], base: Base, options: TrainingOptions
) -> list[Result]:
    """What each of `works` returns, which trains the job of its place on `member.base`; all have one `pack_key`."""
    first = parse_config(jobs[0].method, jobs[0].config)
    assert isinstance(first, TrainingConfig)
    return Pack[Result](base, options, first.precision).run(works)
