"""How often sequential stopping is wrong where the truth is known, and what it saves; python -m benchmarks.sequential.

Images of two methods are simulated (`simulated_answers.py`) and looked at as `efface evaluate --until` does: is an axis
above a threshold, which method is higher? A wrong answer is one on the wrong side of the truth; all looks together may
be wrong in 5 % of the evaluations. Beside it stands what looking at plain 95 % intervals each time would come to.
`python -m benchmarks.sequential 100` repeats each design so often.
"""

import sys
from collections import Counter
from dataclasses import fields

import numpy as np

from benchmarks.record import write_result
from benchmarks.simulated_answers import Design, Simulated, simulate
from efface.concepts.prompts import AXES
from efface.eval.scores.axis_cells import ScoredImages
from efface.eval.scores.err import Array
from efface.eval.scores.intervals import CONFIDENCE_LEVEL
from efface.eval.scores.jackknife import Estimates, difference, estimate
from efface.eval.scores.sequential import look_level, look_sizes, side

REPETITIONS = 100
RATES = (0.95, 0.9, 0.8, 0.7, 0.9)
OFFSETS = (0.0, 0.05, 0.15)
"""Of the threshold from the true score, to either side. At 0 every answer is wrong on one side: the hardest case."""
DESIGNS = (Design(1, 5, 20), Design(5, 5, 20), Design(20, 5, 20))


def up_to(answers: ScoredImages, images: int) -> ScoredImages:
    """The answers on the first images of each prompt."""
    kept = answers.seed < images
    return ScoredImages(**{field.name: getattr(answers, field.name)[kept] for field in fields(answers)})


def answered(low: Array, high: Array, truth: Array) -> list[str | None]:
    """Of each axis: right, wrong, or no answer. low, high, truth: (5,), the truth less what it is held against."""
    found: list[str | None] = []
    for one in range(len(AXES)):
        verdict = side(float(low[one]), float(high[one]), 0.0)
        right = "above" if truth[one] > 0 else "below" if truth[one] < 0 else None
        found.append(None if verdict is None else "right" if verdict == right else "wrong")
    return found


def sequence(
    two: tuple[Simulated, Simulated], question: float | None, sign: int, sizes: tuple[int, ...], level: float
) -> tuple[list[str | None], list[int]]:
    """Per axis its answer and the images of a prompt that were drawn for it; question: an offset, or None: compare."""
    one, other = two
    truth = one.truth.mean(axis=0) - other.truth.mean(axis=0) if question is None else np.full(5, -sign * question)
    answer: list[str | None] = [None] * len(AXES)
    drawn = [sizes[-1]] * len(AXES)
    for size in sizes:
        found = estimate(up_to(one.answers, size), level)
        low, high = _interval(found, two, question, sign, size, level)
        for axis, said in enumerate(answered(low, high, truth)):
            if said and answer[axis] is None:
                answer[axis], drawn[axis] = said, size
        if all(answer):
            break
    return answer, drawn


def _interval(
    found: Estimates,
    two: tuple[Simulated, Simulated],
    question: float | None,
    sign: int,
    size: int,
    level: float,
) -> tuple[Array, Array]:
    if question is None:
        between = difference(found, estimate(up_to(two[1].answers, size), level))
        return between.low[:5], between.high[:5]
    threshold = two[0].truth.mean(axis=0) + sign * question
    return found.overall.low[:5] - threshold, found.overall.high[:5] - threshold


def measure(design: Design, question: float | None, repetitions: int, corrected: bool) -> dict[str, float]:
    """Shares of all axes and evaluations: wrong, right and open answers, and images drawn."""
    sizes = look_sizes(design.images)
    level = look_level(len(sizes)) if corrected else CONFIDENCE_LEVEL
    counts: Counter[str | None] = Counter()
    images = 0.0
    rng = np.random.default_rng([design.concepts, design.prompts, design.images])
    for number in range(repetitions):
        two = simulate(np.array(RATES), design, rng)
        answer, drawn = sequence(two, question, (-1) ** number, sizes, level)
        counts.update(answer)
        images += sum(drawn)
    total = repetitions * len(AXES)
    shares = {"wrong": counts["wrong"], "right": counts["right"], "open": counts[None]}
    return {name: round(count / total, 4) for name, count in shares.items()} | {
        "images": round(images / total / design.images, 4)
    }


def main() -> None:
    repetitions = int(sys.argv[1]) if len(sys.argv) > 1 else REPETITIONS
    rows = []
    for design in DESIGNS:
        for question in (*OFFSETS, None):
            for corrected in (True, False):
                found = measure(design, question, repetitions, corrected)
                asked = "which is higher" if question is None else f"threshold {question:g} off"
                facts = {"design": str(design), "repetitions": repetitions, "question": asked, "corrected": corrected}
                rows.append({**facts, **found})
                print(rows[-1], flush=True)
    print(write_result("sequential", {"rows": rows}))


if __name__ == "__main__":
    main()
