"""How often 95 % intervals of scores hold the truth: `python -m benchmarks.coverage` writes results/coverage.json.

Answers with known truth (`simulated_answers.py`) are scored by the code that scores real ones. Coverage is the share of
intervals that hold the truth, over all repetitions: 0.95 if they are what they say. `python -m benchmarks.coverage 100`
repeats each design 100 times, one of more than 5000 images a quarter as often. Each design is saved when it is done;
with `--seconds` it stops after so long, and the same command goes on from there. Designs that were repeated as often or
more are kept. The bootstrap's intervals (`bootstrap.py`) are compared on a few designs. `--table` prints the table of
docs/scores.md from the file, and every design with a score that is held by less than 0.92 or more than 0.98.
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from benchmarks.bootstrap import bootstrap_intervals
from benchmarks.record import RESULTS, write_result
from benchmarks.simulated_answers import Design, Simulated, simulate
from efface.concepts.prompts import AXES
from efface.eval.scores.jackknife import Estimates, difference, estimate
from efface.eval.scores.statistics import Array, err_mean, err_of_means, harmonic_mean

WORLDS = {
    "even": (0.8, 0.7, 0.6, 0.85, 0.9),
    "strong": (0.98, 0.95, 0.9, 0.95, 0.97),
    "weak": (0.5, 0.3, 0.2, 0.9, 0.95),
}
"""Rates of the axes, of a concept and prompt in the middle."""
REPETITIONS, COMPARED_REPETITIONS = 1000, 40
COMPARED = (Design(1, 5, 4), Design(5, 5, 4), Design(20, 5, 4), Design(20, 15, 20), Design(20, 5, 4, shared=True))
SEEDED = tuple(Design(concepts, 5, 4, shared, 3) for concepts, shared in ((1, False), (20, False), (20, True)))

KINDS: dict[str, Callable[[Design], bool]] = {
    "one prompt": lambda design: design.prompts == 1,
    "5 prompts": lambda design: design.prompts == 5 and design.training_seeds == 1,
    "15 prompts": lambda design: design.prompts == 15,
    "1 concept": lambda design: design.concepts == 1,
    "20 concepts": lambda design: design.concepts == 20,
    "shared images": lambda design: design.shared,
    "3 training seeds": lambda design: design.training_seeds == 3,
    "all": lambda design: True,
}
OVER_CONCEPTS = "axis, over concepts"
COLUMNS = (
    *("axis of a concept", "ERR of a concept", OVER_CONCEPTS, "err_mean", "err_of_means"),
    *("difference of axes", "difference of err_mean", "difference of err_of_means"),
)
LOWEST, HIGHEST = 0.92, 0.98


def designs() -> Iterator[Design]:
    for concepts, prompts, images in itertools.product((1, 5, 20), (1, 5, 15), (4, 20)):
        yield Design(concepts, prompts, images)
        if concepts > 1:
            yield Design(concepts, prompts, images, shared=True)


def coverage(world: str, design: Design, repetitions: int, compare: bool) -> dict[str, float]:
    """By score, the share of intervals that hold the truth, and the mean width of that of err_mean."""
    hits: dict[str, list[float]] = defaultdict(list)
    rates = np.array(WORLDS[world])
    rng = np.random.default_rng([*(int(number) for number in vars(design).values()), [*WORLDS].index(world)])
    for repetition in range(repetitions):
        one, other = simulate(rates, design, rng)
        found, found_other = estimate(one.answers), estimate(other.answers)
        for name, held in _held(found, found_other, one, other).items():
            hits[name].append(float(held.mean()))
        hits["width"].append(float(found.overall.high[5] - found.overall.low[5]))
        if compare and repetition < COMPARED_REPETITIONS:
            for name, (low, high) in bootstrap_intervals(one.answers, design, rng).items():
                hits[name].append(float(low <= err_mean(one.truth) <= high))
                hits[f"width {name}"].append(high - low)
    return {name: round(float(np.mean(values)), 4) for name, values in hits.items()}


def _held(found: Estimates, found_other: Estimates, one: Simulated, other: Simulated) -> dict[str, Array]:
    """By score, whether each of its intervals holds the truth."""
    of_concepts = found.concepts
    truth = np.column_stack([one.truth, harmonic_mean(one.truth)])
    held = (of_concepts.low <= truth) & (truth <= of_concepts.high)
    truths = [
        np.array([*each.truth.mean(axis=0), err_mean(each.truth), err_of_means(each.truth)]) for each in (one, other)
    ]
    overall = found.overall
    held_overall = (overall.low <= truths[0]) & (truths[0] <= overall.high)
    between = difference(found, found_other)
    apart = truths[0] - truths[1]
    held_between = (between.low <= apart) & (apart <= between.high)
    return {
        "axis of a concept": held[:, :5],
        "ERR of a concept": held[:, 5],
        **{f"axis {axis}": held_overall[index] for index, axis in enumerate(AXES)},
        "err_mean": held_overall[5],
        "err_of_means": held_overall[6],
        "difference of axes": held_between[:5],
        "difference of err_mean": held_between[5],
        "difference of err_of_means": held_between[6],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repetitions", type=int, nargs="?", default=REPETITIONS)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of processor time, then stop")
    parser.add_argument("--table", action="store_true", help="print what was measured, and measure nothing")
    options = parser.parse_args()
    if options.table:
        return print_table()
    measured = _measured_before(options.repetitions)
    for world in WORLDS:
        for design in (*designs(), *SEEDED):
            key = (world, *vars(design).values())
            if key in measured or time.process_time() > options.seconds:
                continue
            repetitions = options.repetitions // _fewer(design)
            found = coverage(world, design, repetitions, design in COMPARED)
            measured[key] = {"rates": world, **vars(design), "repetitions": repetitions, "coverage": found}
            write_result("coverage", {"designs": list(measured.values())}, rates=WORLDS)
            print(world, design, found, flush=True)


def _fewer(design: Design) -> int:
    """By how much less often a large design is repeated."""
    return 4 if design.concepts * design.prompts * design.images * 5 > 5000 else 1


def print_table() -> None:
    """Means over the levels of rates, each table counting once: of kinds of designs, and of designs out of range."""
    by_design: dict[Design, list[dict[str, Any]]] = defaultdict(list)
    for key, one in _measured_before(1).items():
        by_design[Design(*key[1:])].append(one)
    print("| designs | tables |", " | ".join(COLUMNS), "|")
    for kind, belongs in KINDS.items():
        ones = [one for design, of in by_design.items() if belongs(design) for one in of]
        held = (f"{_mean(ones, name):.3f}".lstrip("0") for name in COLUMNS)
        print(f"| {kind} | {sum(one['repetitions'] for one in ones)} |", " | ".join(held), "|")
    for design, ones in by_design.items():
        axes = [f"axis {axis}" for axis in AXES]
        held_by = {name: _mean(ones, name) for name in (*axes, *(name for name in COLUMNS if name != OVER_CONCEPTS))}
        out = {name: round(held, 4) for name, held in held_by.items() if not LOWEST <= held <= HIGHEST}
        if out:
            print(design, sum(one["repetitions"] for one in ones), out)


def _mean(ones: list[dict[str, Any]], name: str) -> float:
    """The share of intervals that held the truth, over all tables; of the axes over concepts their mean."""
    names = [f"axis {axis}" for axis in AXES] if name == OVER_CONCEPTS else [name]
    held = [np.mean([one["coverage"][each] for each in names]) for one in ones]
    return float(np.average(held, weights=[one["repetitions"] for one in ones]))


def _measured_before(repetitions: int) -> dict[tuple[Any, ...], dict[str, Any]]:
    """By level of rates and design, what the file has of so many repetitions or more."""
    path = RESULTS / "coverage.json"
    found = {}
    for one in json.loads(path.read_text())["measured"]["designs"] if path.is_file() else ():
        design = Design(**{name: one[name] for name in vars(COMPARED[0])})
        if one["repetitions"] >= repetitions // _fewer(design):
            found[one["rates"], *vars(design).values()] = one
    return found


if __name__ == "__main__":
    main()
