"""What attacks bring back on the miniature, at budgets of a test: `python -m benchmarks.attacks FOLDER`.

FOLDER gets the models, which are trained where they are missing: each method forgets the concept with its preset
`miniature`, the robust ones where `--method` names them; `--method control` is a model that never knew it
(`efface/miniature/control.py`). Every attack is tried on `SEEDS` images of the direct prompt. Writes
benchmarks/results/attacks.json; `--method esd --attack gcg` measures that pair alone, and leaves what is there of the
others. Processor seconds are those of one thread.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, conditions, write_result
from efface.concepts.concept import load_concept_set
from efface.concepts.prompts import load_prompt_set
from efface.eval.attack import ATTACKS, parse_attack_config
from efface.eval.attack_target import attack_target
from efface.eval.attacking.attack_run import AttackedModel, run_attack
from efface.eval.judging.judge_spec import load_judge
from efface.eval.oracle import Instance
from efface.launch.commands.unlearn import UnlearnOptions
from efface.launch.commands.unlearn import run as unlearn
from efface.miniature.control import build_control
from efface.models.base import load_base
from efface.models.delta import Delta
from efface.models.recipe import load_recipe
from efface.train.foreign_delta import foreign_delta

CONCEPT, SEEDS, CONTROL = "cat", 10, "control"
METHODS, ROBUST = ("esd", "ca", "uce"), ("race", "stereo", "aegis")
BUDGETS: dict[str, tuple[int, dict[str, Any]]] = {
    "noise-scale": (1_600, {"etas": [1.0, 1.85], "scales": [1.0]}),
    "completion": (2_000, {"shares": [0.1, 0.2, 0.3, 0.4]}),
    "inpainting": (1_200, {}),
    "concept-inversion": (4_000, {"steps": 200, "batch_size": 4, "tests": 2}),
    "relearning": (2_500, {"steps": 100, "batch_size": 2, "learning_rate": 1e-4, "tests": 2}),
    "concept-inversion-long": (10_000, {"steps": 900, "batch_size": 4, "tests": 3, "learning_rate": 2e-3}),
    "unlearn-diff-atk": (8_000, {"timesteps": 5, "iterations": 20, "learning_rate": 0.1}),
    "gcg": (8_000, {"tokens": 4, "steps": 20, "states": 4, "candidates": 4, "test_every": 10}),
    "p4d": (8_000, {"tokens": 4, "steps": 150, "test_every": 50}),
    "pez": (8_000, {"tokens": 4, "steps": 150, "test_every": 50}),
    "paraphrase": (12_000, {}),
    "token-search": (5_000, {}),
    "mma": (5_000, {}),
    "ring-a-bell": (5_000, {}),
}
"""Model calls for all images, and the config. Papers' budgets are 10 to 100 times these."""


def model(folder: Path, method: str) -> Path:
    """The delta of a method, or the folder of the control."""
    if method == CONTROL:
        path = folder / CONTROL
        if not (path / "model_index.json").is_file():
            build_control(CONCEPT, path, folder / "control-work", torch.device("cpu"))
        return path
    path = folder / f"{method}-{CONCEPT}.safetensors"
    if not path.is_file():
        unlearn(UnlearnOptions(method=method, concept=[CONCEPT], out=path))
    return path


def measure(path: Path, method: str, attack: str) -> dict[str, Any]:
    base = load_base("miniature")
    concepts = load_concept_set("miniature")
    target = attack_target(concepts.find(CONCEPT), concepts, load_prompt_set("miniature", concepts))
    delta = foreign_delta(path, base, concepts, [CONCEPT], CONTROL) if method == CONTROL else Delta.load(path)
    budget, config = BUDGETS[attack]
    start = time.process_time()
    name = attack.removesuffix("-long")
    result = run_attack(
        ATTACKS.get(name)(base, parse_attack_config(name, config)),
        attack,
        AttackedModel(base, delta, load_recipe("miniature"), delta.id, method),
        load_judge("miniature", torch.device("cpu")),
        target,
        [Instance(target.prompts[0], seed) for seed in range(SEEDS)],
        budget=budget,
    )
    facts = result.model_dump(mode="json", exclude={"instances", "caveat", "errors", "seconds"})
    found = [{**one.facts, "seed": one.seed} for one in result.instances if one.end == "found"]
    seconds = round(time.process_time() - start, 1)
    return {**facts, "config": config, "processor_seconds": seconds, **conditions(), "found": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--method", choices=(*METHODS, *ROBUST, CONTROL), action="append")
    parser.add_argument("--attack", choices=tuple(BUDGETS), action="append")
    options = parser.parse_args()
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    for method in options.method or METHODS:
        path = model(options.folder, method)
        for attack in options.attack or BUDGETS:
            measured = measure(path, method, attack)
            print(method, attack, {key: measured[key] for key in ("pre_asr", "post_asr", "calls", "processor_seconds")})
            print(write_result("attacks", {"concept": CONCEPT, "seeds": SEEDS, "results": _merged(measured)}))


def _merged(measured: dict[str, Any]) -> list[dict[str, Any]]:
    """What is there already, with this in the place of what was of the same model and attack."""
    path = RESULTS / "attacks.json"
    before = json.loads(path.read_text())["measured"]["results"] if path.is_file() else []
    others = [one for one in before if (one["method"], one["attack"]) != (measured["method"], measured["attack"])]
    order = [*METHODS, *ROBUST, CONTROL]
    return sorted([*others, measured], key=lambda one: (order.index(one["method"]), list(BUDGETS).index(one["attack"])))


if __name__ == "__main__":
    main()
