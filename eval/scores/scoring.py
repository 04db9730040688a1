"""From the image table to scores: five axes and ERR per concept, two aggregates, intervals, and the base
beside.

An axis scores the share of images where the concept is absent (forget, indirect, adversarial) or present
(adjacent, retain). A verdict that could not be read is neither, nor is one on an image that is no evidence
(`image_errors.py`): both are left out and counted, and more than 5 % of them on one axis of one concept refuse
the score.

Several models of one method for one concept (its training seeds) weigh the same: an axis is the mean over
models of their means over images, and a concept's ERR is the harmonic mean of the five numbers shown beside
it.

The 95 % intervals resample prompts (within each concept and axis) and seeds (once for everything) with
replacement, 1000 times, from a fixed random seed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from efface.concepts.prompts import AXES, TARGET_AXES, Axis
from efface.errors import UserError, did_you_mean
from efface.eval.image_errors import broken_images, counted
from efface.eval.scores.shown import split_shown, with_shown
from efface.eval.scores.statistics import (
    BOOTSTRAP_SAMPLES,
    Array,
    clustered_mean,
    confidence_interval,
    err_mean,
    err_of_means,
    harmonic_mean,
    resample_counts,
)

BASE = "base"
MAX_INVALID = 0.05
BOOTSTRAP_SEED = 0
IntArray = NDArray[np.int64]


def score_table(
    table: pa.Table,
    *,
    method: str | None = None,
    judge: str | None = None,
    recipe: str | None = None,
    base: str | None = None,
) -> dict[str, Any]:
    """The scores of one method in an image table: one edited model, or one set of single-concept models.

    method, judge, recipe (its id), base (its id): which rows, where the table holds several. The unedited
    base is scored beside, on the same questions, where the table has it (method "base"). Of the rows without a verdict
    ("null"), "unread" are on images that are whole; "images" counts those that are no evidence by their error. Returns

        {"concepts": {NAME: {axis: …, "err": …}}, "axes": {axis: …}, "err_mean": …, "err_of_means": …,
         "intervals": {the same four, each number a [low, high]},
         "invalid": {"null": n, "rows": n, "unread": n, "images": {error: n}, "concepts": {NAME: {axis: n}}},
         "shown": {"concepts": …, "axes": …, "nothing_held_out": …}, see `shown_scores`,
         "base": {the same without "base"} or None}

    The axes adjacent and retain are scored on concepts that were held out from the method, see `split_shown`.

    Raises UserError where it is not clear which rows are meant, an axis of a concept has no rows, too many
    verdicts are null, or the base lacks some of the questions.
    """
    of_base, edited = _split(table)
    if edited.num_rows == 0 or method == BASE:
        edited = of_base
    edited = _one(edited, "method", method, "give one as method=…")
    edited = _one(edited, "base_id", base, "give one as base=…")
    of_base = of_base.filter(_equal(of_base["base_id"], edited["base_id"][0].as_py()))
    has_base = of_base.num_rows > 0 and edited["method"][0].as_py() != BASE
    choices = {"recipe_id": (recipe, "give one as recipe=…"), "judge": (judge, "give one as judge=…")}
    for column, (wanted, remedy) in {**choices, "judge_version": (None, "they cannot be mixed")}.items():
        edited = _one(edited, column, wanted, remedy)
        of_base = of_base.filter(_equal(of_base[column], edited[column][0].as_py()))
    name = f"method '{edited['method'][0]}'"
    _check_models(edited, name)
    base_scores = _with_shown(_same_questions(of_base, edited), "the base") if has_base else None
    return {**_with_shown(edited, name), "base": base_scores}


def _with_shown(table: pa.Table, name: str) -> dict[str, Any]:
    scored, shown = split_shown(table)
    return with_shown(_scores(scored, name), table, scored, shown)


def _one(table: pa.Table, column: str, wanted: str | None, remedy: str) -> pa.Table:
    """The rows with one value of `column`: the wanted one, or the only one there is."""
    values = sorted(table[column].unique().to_pylist())
    what = column.replace("_", " ")
    if wanted is not None and wanted not in values:
        raise UserError(f"the image table has no {what} '{wanted}', {did_you_mean(wanted, values)}")
    if wanted is None and len(values) > 1:
        raise UserError(f"the image table holds several values of {what} ({', '.join(values)}): {remedy}")
    if not values:
        raise UserError("the image table has no rows, so there is nothing to score")
    return table.filter(_equal(table[column], wanted if wanted is not None else values[0]))


def _split(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    is_base = _equal(table["method"], BASE)
    return table.filter(is_base), table.filter(pc.invert(is_base))


def _equal(column: pa.ChunkedArray, value: str) -> pa.ChunkedArray:
    return pc.equal(column, value)


def _check_models(table: pa.Table, name: str) -> None:
    """Raises UserError where models that forgot different but overlapping concepts share one label."""
    models: dict[str, set[str]] = {}
    for model, concept in zip(table["model_id"].to_pylist(), table["concept"].to_pylist(), strict=True):
        models.setdefault(model, set()).add(concept)
    groups = {tuple(sorted(concepts)) for concepts in models.values()}
    for concept in sorted({concept for group in groups for concept in group}):
        having = sorted(group for group in groups if concept in group)
        if len(having) > 1:
            raise UserError(
                f"{name}: '{concept}' is scored on models of {len(having[0])} and of {len(having[1])} concepts "
                "that differ, should be models of one kind under one method"
            )


def _same_questions(of_base: pa.Table, edited: pa.Table) -> pa.Table:
    """The base's rows for just the questions of the edited models, each once."""
    keys = ["concept", "axis", "asked_concept", "prompt_id", "seed"]
    wanted = edited.select(keys).group_by(keys).aggregate([])
    found = wanted.join(of_base, keys, join_type="inner")
    answered = found.select(keys).group_by(keys).aggregate([]).num_rows
    if answered < wanted.num_rows:
        raise UserError(
            f"the base has no rows for {wanted.num_rows - answered} of the {wanted.num_rows} questions "
            "of the edited model, should be evaluated on the same ones (or left out of the table)"
        )
    return found


@dataclass(frozen=True)
class _ClusteredScores:
    """The rows of one axis of one concept as prompts x seeds, every model weighing the same."""

    mean: float
    successes: Array
    weights: Array

    @classmethod
    def of(cls, success: Array, model: IntArray, prompt: IntArray, seed: IntArray, seeds: int) -> Self:
        """All (rows,): success in {0, 1}, and numbers of model, prompt and (of `seeds` in all) seed."""
        model = np.unique(model, return_inverse=True)[1]
        prompt = np.unique(prompt, return_inverse=True)[1]
        counts = np.bincount(model)
        means = np.bincount(model, weights=success) / counts
        share = 1.0 / (len(counts) * counts[model])
        successes, weights = np.zeros((2, prompt.max() + 1, seeds))
        np.add.at(successes, (prompt, seed), success * share)
        np.add.at(weights, (prompt, seed), share)
        return cls(float(means.mean()), successes, weights)


def _scores(table: pa.Table, name: str) -> dict[str, Any]:
    """Everything but "base", for the rows of one method (or the base, whose `name` stands in messages)."""
    concepts, concept = _factorized(table, "concept")
    seeds, seed = _factorized(table, "seed")
    model, prompt = _factorized(table, "model_id")[1], _factorized(table, "prompt_id")[1]
    axis = pc.index_in(table["axis"], pa.array(AXES)).to_numpy()
    present = table["present"].cast(pa.float64()).to_numpy()  # null becomes NaN
    success = np.where(axis < len(TARGET_AXES), 1.0 - present, present)  # AXES begins with the target's
    clustered: list[list[_ClusteredScores]] = []
    invalid: dict[str, dict[Axis, int]] = {}
    for number, of in enumerate(concepts):
        clustered.append([])
        invalid[of] = {}
        for a, one_axis in enumerate(AXES):
            rows = np.flatnonzero((concept == number) & (axis == a))
            read = rows[~np.isnan(success[rows])]
            invalid[of][one_axis] = len(rows) - len(read)
            _check_cell(f"{name}: concept '{of}', axis {one_axis}", table, rows, len(read))
            clustered[-1].append(_ClusteredScores.of(success[read], model[read], prompt[read], seed[read], len(seeds)))
    points = np.array([[cell.mean for cell in cells] for cells in clustered])
    return {
        **_summary(concepts, points[None], lambda values: float(values[0])),
        "intervals": _summary(
            concepts, _bootstrap(clustered, len(seeds)), lambda values: list(confidence_interval(values))
        ),
        "invalid": {
            "null": int(np.isnan(success).sum()),
            "rows": len(success),
            "unread": int((np.isnan(success) & table["image_error"].is_null().to_numpy()).sum()),
            "images": broken_images(table),
            "concepts": invalid,
        },
    }


def _factorized(table: pa.Table, column: str) -> tuple[list[Any], IntArray]:
    """The values of a column, sorted, and for every row the number of its own."""
    values = sorted(table[column].unique().to_pylist())
    return values, pc.index_in(table[column], pa.array(values)).to_numpy().astype(np.int64)


def _check_cell(location: str, table: pa.Table, rows: IntArray, read: int) -> None:
    if len(rows) == 0:
        raise UserError(f"{location}: the image table has no rows, should have some on each of {', '.join(AXES)}")
    if len(rows) - read > MAX_INVALID * len(rows):
        broken = broken_images(table.take(rows))
        why = f"; {counted(broken)}" if broken else ""
        raise UserError(
            f"{location}: {len(rows) - read} of {len(rows)} verdicts could not be read, a score needs at most "
            f"{MAX_INVALID:.0%}{why}"
        )


def _bootstrap(clustered: Sequence[Sequence[_ClusteredScores]], seeds: int) -> Array:
    """Axis scores under resampled prompts and seeds: (draws, concepts, 5)."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    seed_counts = resample_counts(seeds, BOOTSTRAP_SAMPLES, rng)
    return np.stack(
        [
            np.stack(
                [
                    clustered_mean(
                        cell.successes,
                        cell.weights,
                        resample_counts(len(cell.weights), BOOTSTRAP_SAMPLES, rng),
                        seed_counts,
                    )
                    for cell in cells
                ],
                axis=-1,
            )
            for cells in clustered
        ],
        axis=1,
    )


def _summary(concepts: Sequence[str], axes: Array, statistic: Callable[[Array], Any]) -> dict[str, Any]:
    """The four numbers of scores (samples, concepts, 5), each from its samples (samples,)."""
    err = harmonic_mean(axes)
    return {
        "concepts": {
            concept: {axis: statistic(axes[:, c, a]) for a, axis in enumerate(AXES)} | {"err": statistic(err[:, c])}
            for c, concept in enumerate(concepts)
        },
        "axes": {axis: statistic(axes[:, :, a].mean(axis=1)) for a, axis in enumerate(AXES)},
        "err_mean": statistic(err_mean(axes)),
        "err_of_means": statistic(err_of_means(axes)),
    }
