"""How often 95 % intervals of scores hold the truth: `python -m benchmarks.coverage` writes results/coverage.json.

Answers with known truth (`simulated_answers.py`) are scored by the code that scores real ones. Coverage is the share of
intervals that hold the truth, over all repetitions: 0.95 if they are what they say. `python -m benchmarks.coverage 100`
repeats each design 100 times at each level of rates. Each is saved when it is done; with `--seconds` it stops after so
long, and the same command goes on from there. Designs that were repeated as often or more are kept. The bootstrap's
intervals (`bootstrap.py`) are compared on a few designs. `--table` prints the tables of docs/coverage.md from the file
(`coverage_table.py`), `--into docs/coverage.md` puts them there.
"""

import argparse
import itertools
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.bootstrap import bootstrap_intervals
from benchmarks.coverage_table import coverage_tables, put_tables
from benchmarks.record import RESULTS, write_result
from benchmarks.simulated_answers import Design, Simulated, simulate
from efface.concepts.prompts import AXES
from efface.eval.scores.err import Array, err_mean, err_of_means, harmonic_mean
from efface.eval.scores.jackknife import Estimates, difference, estimate

WORLDS = {
    "even": (0.8, 0.7, 0.6, 0.85, 0.9),
    "strong": (0.98, 0.95, 0.9, 0.95, 0.97),
    "weak": (0.5, 0.3, 0.2, 0.9, 0.95),
}
"""Rates of the axes, of a concept and prompt in the middle."""
REPETITIONS, COMPARED_REPETITIONS = 1000, 40
COMPARED = (Design(1, 5, 4), Design(5, 5, 4), Design(20, 5, 4), Design(20, 15, 20), Design(20, 5, 4, shared=True))
SEEDED = tuple(Design(concepts, 5, 4, shared, 3) for concepts, shared in ((1, False), (20, False), (20, True)))


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
        **{f"difference axis {axis}": held_between[index] for index, axis in enumerate(AXES)},
        "difference of err_mean": held_between[5],
        "difference of err_of_means": held_between[6],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("repetitions", type=int, nargs="?", default=REPETITIONS)
    parser.add_argument("--seconds", type=float, default=float("inf"), help="of processor time, then stop")
    parser.add_argument("--table", action="store_true", help="print what was measured, and measure nothing")
    parser.add_argument("--into", type=Path, help="a page: put what --table prints there, between its two marks")
    options = parser.parse_args()
    if options.table or options.into:
        tables = coverage_tables(measured_designs())
        return put_tables(options.into, tables) if options.into else print(tables)
    measured = {_key(one): one for one in measured_designs()}
    for world in WORLDS:
        for design in (*designs(), *SEEDED):
            key = (world, *vars(design).values())
            if _is_enough(measured.get(key), options.repetitions) or time.process_time() > options.seconds:
                continue
            found = coverage(world, design, options.repetitions, design in COMPARED)
            measured[key] = {"rates": world, **vars(design), "repetitions": options.repetitions, "coverage": found}
            write_result("coverage", {"designs": list(measured.values())}, rates=WORLDS)
            print(world, design, found, flush=True)


def measured_designs() -> list[dict[str, Any]]:
    """What the file has."""
    path = RESULTS / "coverage.json"
    designs: list[dict[str, Any]] = json.loads(path.read_text())["measured"]["designs"] if path.is_file() else []
    return designs


def _key(one: dict[str, Any]) -> tuple[Any, ...]:
    """The level of rates and the design."""
    return one["rates"], *(one[name] for name in vars(COMPARED[0]))


def _is_enough(one: dict[str, Any] | None, repetitions: int) -> bool:
    """Whether a design was repeated so often, with the differences of every axis kept apart."""
    return one is not None and one["repetitions"] >= repetitions and f"difference axis {AXES[0]}" in one["coverage"]


if __name__ == "__main__":
    main()
