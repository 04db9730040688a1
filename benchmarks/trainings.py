"""What the benchmarks of training share: jobs, and ESD as its script has it, one job and one roll-out at a time."""

import copy
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor
from torch.nn.functional import mse_loss

from efface.concepts.concept import ConceptSet, load_concept_set
from efface.models.base import Base
from efface.models.delta import Delta
from efface.models.parameter_groups import select
from efface.models.shapes import model_shapes
from efface.models.text.text_encoding import encode_prompts
from efface.train.cost.flops import step_flops
from efface.train.job import Job, make_job
from efface.train.job_packs import most_jobs, run_packed
from efface.train.method import get_method, parse_config
from efface.train.run_job import run_job
from efface.train.trainer.options import TrainingOptions

SETS = {"cpu": "miniature", "cuda": "genmu-2025"}
"""Whose concepts are forgotten."""

AUTHORS: dict[str, dict[str, Any]] = {
    "esd": {"steps": 1000},
    "ca": {"samples_seen": 800, "anchor_images": 16},
    "fade": {"sizes": None},
    "spm": {"sizes": None},
}
"""Configs that differ from a method's defaults: one size for all, and few images before the first step."""


def make_jobs(base: Base, concepts: ConceptSet, method: str, count: int, **config: Any) -> list[Job]:
    """So many jobs, each of another concept and seed."""
    names = [concept.name for concept in concepts.concepts if not concept.held_out]
    own = {**AUTHORS.get(method, {}), **config}
    return [
        make_job(base.spec.name, base.fingerprint, method, concepts, [names[i % len(names)]], config=own, seed=i)
        for i in range(count)
    ]


def concepts_for(device: str) -> ConceptSet:
    return load_concept_set(SETS[device])


def one_by_one(jobs: Sequence[Job], base: Base, concepts: ConceptSet, cache: Path | None = None) -> list[Delta]:
    """Each job alone."""
    return [run_job(job, base, concepts, cache=cache)[0] for job in jobs]


def in_packs(jobs: Sequence[Job], base: Base, concepts: ConceptSet, cache: Path | None = None) -> list[Delta]:
    """All of them side by side, as many as fit."""
    options, deltas = TrainingOptions(), list[Delta]()
    most = most_jobs(jobs, base, options)
    for start in range(0, len(jobs), most):
        part = jobs[start : start + most]
        works = [
            lambda member, job=job: run_job(job, member.base, concepts, cache=cache, training_options=options)[0]
            for job in part
        ]
        deltas += run_packed(part, works, base, options)
    return deltas


def esd_as_scripted(base: Base, phrase: str, config: dict[str, Any], steps: int, seed: int) -> dict[str, Tensor]:
    """ESD-x on-policy, as a script has it: a copy of the UNet, guidance in one pass of two, one job at a time."""
    student = copy.deepcopy(base.unet)
    trained = select({"unet": student}, "xattn")
    for value in trained.values():
        value.requires_grad_(True)
    optimizer = torch.optim.Adam(trained.values(), lr=config["learning_rate"])
    scheduler = DDIMScheduler.from_config({**base.scheduler_config, "clip_sample": False})
    scheduler.set_timesteps(config["rollout_steps"])
    cond, uncond = (encode_prompts(base, [text]).encoder_hidden_states for text in (phrase, ""))
    rows, generator = config["batch_size"], torch.Generator().manual_seed(seed)
    both, cond = torch.cat([uncond.expand(rows, -1, -1), cond.expand(rows, -1, -1)]), cond.expand(rows, -1, -1)
    for _ in range(steps):
        stop = int(torch.randint(config["rollout_steps"], (1,), generator=generator))
        latents = torch.randn(rows, *base.latent_shape, generator=generator).to(base.device)
        with torch.no_grad():
            for timestep in scheduler.timesteps[:stop]:
                eps_uncond, eps_cond = student(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
                guided = eps_uncond + config["guidance_scale"] * (eps_cond - eps_uncond)
                latents = scheduler.step(guided, timestep, latents).prev_sample
            timestep = scheduler.timesteps[stop]
            eps_uncond, eps_cond = base.unet(torch.cat([latents, latents]), timestep, both).sample.chunk(2)
        loss = mse_loss(student(latents, timestep, cond).sample, eps_uncond - config["eta"] * (eps_cond - eps_uncond))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return {name: value.detach() for name, value in trained.items()}


def largest_difference(some: Sequence[Delta], others: Sequence[Delta], base: Base) -> float:
    """The largest relative difference of two deltas of one job, by the L2 norm of the change."""
    originals, found = base.originals(), []
    for one, other in zip(some, others, strict=True):
        edited, again = one.edited(base), other.edited(base)
        difference = sum(float((edited[name] - again[name]).double().square().sum()) for name in edited)
        change = sum(float((edited[name] - originals[name]).double().square().sum()) for name in edited)
        found.append((difference / change) ** 0.5)
    return max(found)


def timed(work: Callable[[], Any], device: torch.device) -> tuple[float, Any]:
    """Seconds of the processor, or on a GPU of the clock, and what `work` returns."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start, result = clock(), work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock() - start, result


def step_tflop(job: Job, base: Base) -> float:
    """10^12 operations of an optimiser step of a job, with its roll-outs and teachers, on average."""
    return step_flops(get_method(job.method)(parse_config(job.method, job.config)), model_shapes(base.spec)) / 1e12
