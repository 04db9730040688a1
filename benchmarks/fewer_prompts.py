"""What an interval loses where fewer prompts ask for what should stay; `python -m benchmarks.fewer_prompts [60]`.

Images of 20 models with known truth (`simulated_answers.py`) are scored as the campaigns `genmu-…` ask them: five
prompts of a target on each of its axes, ten that ask for two held-out neighbours, and so many for each of ten held-out
concepts to retain, four images each. Printed are the mean widths of the 95 % intervals of `err_mean` and of `retain`.
"""

import sys
from collections import defaultdict
from dataclasses import fields

import numpy as np

from benchmarks.coverage import WORLDS
from benchmarks.record import write_result
from benchmarks.simulated_answers import RETAIN, Design, simulate
from efface.concepts.prompts import AXES
from efface.eval.scores.axis_cells import ScoredImages
from efface.eval.scores.jackknife import estimate

REPETITIONS = 60
CONCEPTS, IMAGES, RETAINED = 20, 4, 10
PROMPTS = {"forget": 5, "indirect": 5, "adversarial": 5, "adjacent": 10}
OF_RETAINED = (1, 2, 3, 5)
"""Prompts of each retained concept."""


def asked(answers: ScoredImages, most: int, retain: int) -> ScoredImages:
    """Of `most` prompts on every axis those that are asked, `retain` on the axis of that name."""
    limits = np.array([PROMPTS.get(axis, retain) for axis in AXES])
    kept = answers.prompt % most < limits[answers.axis]
    return ScoredImages(**{field.name: getattr(answers, field.name)[kept] for field in fields(answers)})


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS
    most = RETAINED * max(OF_RETAINED)
    widths: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for world, rates in WORLDS.items():
        rng = np.random.default_rng(0)
        for _ in range(repetitions):
            answers = simulate(np.array(rates), Design(CONCEPTS, most, IMAGES), rng)[0].answers
            for prompts in OF_RETAINED:
                overall = estimate(asked(answers, most, RETAINED * prompts)).overall
                width = overall.high - overall.low
                widths[world, prompts].append((float(width[len(AXES)]), float(width[RETAIN])))
    rows = []
    for (world, prompts), found in widths.items():
        whole, retain = np.mean(found, axis=0)
        rows.append({"rates": world, "prompts": prompts, "err_mean": round(whole, 4), "retain": round(retain, 4)})
        print(f"{world}, {prompts} prompts of each retained concept: err_mean {whole:.4f}, retain {retain:.4f}")
    print(write_result("fewer-prompts", {"repetitions": repetitions, "widths": rows}, rates=WORLDS))


if __name__ == "__main__":
    main()
