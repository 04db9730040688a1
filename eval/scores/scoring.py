"""From the image table to scores: five axes and ERR per concept, two aggregates, intervals, and the base
beside.

An axis scores the share of images where the concept is absent (forget, indirect, adversarial) or present
(adjacent, retain). A verdict that could not be read is neither, nor is one on an image that is no evidence
(`image_errors.py`): both are left out and counted, and more than 5 % of them on one axis of one concept refuse
the score.

Several models of one method for one concept (its training seeds) weigh the same: an axis is the mean over
models of their means over images, and a concept's ERR is the harmonic mean (`err.py`) of the five numbers shown
beside it.

The 95 % intervals are over prompts, images and training seeds, as `jackknife.py` says.
"""

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from efface.concepts.prompts import AXES, TARGET_AXES, Axis
from efface.errors import UserError, did_you_mean
from efface.eval.judging.image_errors import broken_images, counted
from efface.eval.scores.axis_cells import Cells, IntArray, ScoredImages
from efface.eval.scores.err import Array
from efface.eval.scores.held_out import shown_scores, split_shown
from efface.eval.scores.intervals import CONFIDENCE_LEVEL
from efface.eval.scores.jackknife import estimate
from efface.eval.scores.results import Interval, Invalid, Range, Sampling, Scores, Summary

BASE = "base"
MAX_INVALID = 0.05
QUESTION = ["concept", "axis", "asked_concept", "prompt_id", "seed"]
"""Columns that say what was asked."""


def score_table(
    table: pa.Table,
    *,
    method: str | None = None,
    judge: str | None = None,
    recipe: str | None = None,
    base: str | None = None,
    level: float = CONFIDENCE_LEVEL,
) -> Scores:
    """The scores of one method in an image table: one edited model, or one set of single-concept models.

    method, judge, recipe (its id), base (its id): which rows, where the table holds several. The unedited
    base is scored beside, on the same questions, where the table has it (method "base").

    level: of the intervals; 95 %, unless several looks at the same answers share it.

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
    base_scores = _scores(_same_questions(of_base, edited), "the base", None, level) if has_base else None
    return _scores(edited, name, base_scores, level)


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
    wanted = edited.select(QUESTION).group_by(QUESTION).aggregate([])
    found = wanted.join(of_base, QUESTION, join_type="inner")
    answered = found.select(QUESTION).group_by(QUESTION).aggregate([]).num_rows
    if answered < wanted.num_rows:
        raise UserError(
            f"the base has no rows for {wanted.num_rows - answered} of the {wanted.num_rows} questions "
            "of the edited model, should be evaluated on the same ones (or left out of the table)"
        )
    return found


def _scores(table: pa.Table, name: str, base: Scores | None, level: float) -> Scores:
    """Of the rows of one method (or the base); `name` stands in messages."""
    images = broken_images(table)
    table, shown = split_shown(table)
    table = table.sort_by([(column, "ascending") for column in (*QUESTION, "model_id")])
    concepts, concept = _factorized(table, "concept")
    columns = {name: _factorized(table, f"{name}_id")[1] for name in ("model", "prompt")}
    columns |= {"concept": concept, "seed": _factorized(table, "seed")[1]}
    columns["axis"] = axis = pc.index_in(table["axis"], pa.array(AXES)).to_numpy().astype(np.int64)
    present = table["present"].cast(pa.float64()).to_numpy()  # null becomes NaN
    success = np.where(axis < len(TARGET_AXES), 1.0 - present, present)  # AXES begins with the target's
    read = ~np.isnan(success)
    invalid = _invalid_by_cell(table, name, concepts, concept * len(AXES) + axis, read)
    answers = ScoredImages(success=success[read], **{name: values[read] for name, values in columns.items()})
    estimates = estimate(answers, level)
    low = _summary(concepts, estimates.concepts.low, estimates.overall.low)
    high = _summary(concepts, estimates.concepts.high, estimates.overall.high)
    points = _summary(concepts, estimates.concepts.score, estimates.overall.score)
    return Scores(
        **vars(points),
        intervals=_intervals(low, high),
        invalid=Invalid(
            null=int((~read).sum()),
            rows=len(success),
            unread=int((~read & table["image_error"].is_null().to_numpy()).sum()),
            images=images,
            concepts=invalid,
        ),
        sampling=_sampling(Cells(answers)),
        shown=shown_scores(table, shown),
        base=base,
        estimates=estimates,
        questions=_hash(
            table.select(QUESTION).group_by(QUESTION).aggregate([]).sort_by([(c, "ascending") for c in QUESTION])
        ),
    )


def _sampling(cells: Cells) -> Sampling:
    prompts = {axis: Range(int(of.min()), int(of.max())) for axis, of in zip(AXES, cells.prompts.T, strict=True)}
    return Sampling(prompts, Range(int(cells.models.min()), int(cells.models.max())))


def _hash(table: pa.Table) -> str:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as stream:
        stream.write_table(table.combine_chunks())
    return hashlib.sha256(sink.getvalue()).hexdigest()


def _factorized(table: pa.Table, column: str) -> tuple[list[Any], IntArray]:
    """The values of a column, sorted, and for every row the number of its own."""
    values = sorted(table[column].unique().to_pylist())
    return values, pc.index_in(table[column], pa.array(values)).to_numpy().astype(np.int64)


def _invalid_by_cell(
    table: pa.Table, name: str, concepts: Sequence[str], cell: IntArray, read: NDArray[np.bool_]
) -> dict[str, dict[Axis, int]]:
    """How many rows of each concept and axis have no verdict. Raises UserError where those are too many, or all."""
    cells = len(concepts) * len(AXES)
    rows, valid = np.bincount(cell, minlength=cells), np.bincount(cell[read], minlength=cells)
    invalid = rows - valid
    for number in np.flatnonzero((rows == 0) | (invalid > MAX_INVALID * rows)).tolist():
        location = f"{name}: concept '{concepts[number // len(AXES)]}', axis {AXES[number % len(AXES)]}"
        if rows[number] == 0:
            raise UserError(f"{location}: the image table has no rows, should have some on each of {', '.join(AXES)}")
        broken = broken_images(table.take(np.flatnonzero(cell == number)))
        why = f"; {counted(broken)}" if broken else ""
        raise UserError(
            f"{location}: {invalid[number]} of {rows[number]} verdicts could not be read, a score needs at most "
            f"{MAX_INVALID:.0%}{why}"
        )
    by_concept = invalid.reshape(-1, len(AXES)).tolist()
    return {concept: dict(zip(AXES, counts, strict=True)) for concept, counts in zip(concepts, by_concept, strict=True)}


def _summary(concepts: Sequence[str], of_concepts: Array, overall: Array) -> Summary[float]:
    """Scores of the concepts (concepts, 6) and of all (7,), by their names."""
    *axes, err_mean, err_of_means = overall.tolist()
    names = (*AXES, "err")
    return Summary(
        concepts={
            name: dict(zip(names, of, strict=True)) for name, of in zip(concepts, of_concepts.tolist(), strict=True)
        },
        axes=dict(zip(AXES, axes, strict=True)),
        err_mean=err_mean,
        err_of_means=err_of_means,
    )


def _intervals(low: Summary[float], high: Summary[float]) -> Summary[Interval]:
    return Summary(
        concepts={
            name: {score: Interval(of[score], high.concepts[name][score]) for score in of}
            for name, of in low.concepts.items()
        },
        axes={axis: Interval(low.axes[axis], high.axes[axis]) for axis in AXES},
        err_mean=Interval(low.err_mean, high.err_mean),
        err_of_means=Interval(low.err_of_means, high.err_of_means),
    )
