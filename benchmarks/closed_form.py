"""How long a closed form takes at Stable Diffusion v1.4's size; `python -m benchmarks.closed_form [METHOD …]`.

Random weights, which cost what trained ones do. Each method forgets one concept, and a hundred at once (`--many`),
with ten retained; encoding the prompts is counted, loading the base and the second moments of captions, which are
made once a base, are not. Of MACE these are its two solves, with 30 sentences a concept and its adapters as they
start; what they learn in between is a training. On a busy machine `--threads 1` and the seconds of processors say
most. With `--json` the result is printed as JSON instead of text.
"""

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from benchmarks.record import write_result
from efface.concepts.concept import Concept, ConceptSet
from efface.models.base import Base, load_base, read_base
from efface.train.data.captions import everyday_captions
from efface.train.data.concept_keys import second_moment
from efface.train.data.latents import Posterior
from efface.train.method import UnlearningTask, get_method, parse_config
from efface.train.methods import mace

METHODS = ("uce", "rece", "speed", "double-projections", "oce", "mace")


def concept_set(targets: int, retained: int) -> ConceptSet:
    """Numbered concepts: the first `targets` are to go, the others stay."""
    concepts = tuple(
        Concept(name=f"thing {number}", kind="object", phrase=f"a thing of kind {number}", anchor="a stone")
        for number in range(targets + retained)
    )
    return ConceptSet(name="things", version=1, concepts=concepts)


def seconds(base: Base, method: str, targets: int, cache: Path) -> dict[str, float]:
    """Of one solve, by the clock and of processors."""
    things = concept_set(targets, retained=10)
    task = UnlearningTask(base, things.concepts[:targets], things, seed=0, cache=cache)
    clock, processors = time.perf_counter(), time.process_time()
    if method == "mace":
        mace_solves(task)
    else:
        get_method(method)(parse_config(method, {})).solve(task)  # type: ignore[attr-defined]
    return {
        "seconds": round(time.perf_counter() - clock, 2),
        "processor_seconds": round(time.process_time() - processors, 2),
    }


def mace_solves(task: UnlearningTask) -> None:
    """Refinement and fusion, on images and masks that are not read in between."""
    method: Any = get_method("mace")(parse_config("mace", {"masks": "none"}))
    side = task.base.latent_shape[-1]
    blank = Posterior(*torch.zeros(2, method.config.images, *task.base.latent_shape), 1.0)
    with (
        mock.patch.object(mace, "image_posterior", lambda *given: blank),
        mock.patch.object(mace, "concept_masks", lambda *given: torch.ones(method.config.images, side, side).bool()),
    ):
        student = task.base.denoiser.copy()
        method.prepare(task, student)
    method.saved(student)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split(";")[0])
    parser.add_argument("methods", nargs="*", default=METHODS)
    parser.add_argument("--threads", type=int, default=2, help="of torch (default: 2)")
    parser.add_argument("--many", type=int, default=100, help="concepts at once (default: 100)")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    base = load_base(read_base("sd-v1-4-random"))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        cache = Path(folder)
        if "oce" in arguments.methods:
            second_moment(base, everyday_captions(), cache)
        if "mace" in arguments.methods:
            second_moment(base, everyday_captions(), cache, padding=True)
        seconds(base, "uce", 1, cache)  # what is done once in a process
        for method in arguments.methods:
            for targets in (1, arguments.many):
                found.append({"method": method, "concepts": targets, **seconds(base, method, targets, cache)})
                if not arguments.json:
                    line = "{method}, {concepts} concept(s): {seconds} s, {processor_seconds} s of processors"
                    print(line.format(**found[-1]), flush=True)
    path = write_result("closed_form", {"solves": found}, threads=arguments.threads)
    print(json.dumps(json.loads(path.read_text())) if arguments.json else path)


if __name__ == "__main__":
    main()
