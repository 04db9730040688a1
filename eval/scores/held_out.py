"""Shown and held out: the axes adjacent and retain score concepts that no method could see; the others stand beside.

A concept set shows a method some of the concepts that must stay, which it may hold still by name, and holds others out
(`Concept.held_out`, the column `held_out` of the image table). The score of what was shown says how well a method keeps
what it is given; only what was held out says what it costs everything else.
"""

from collections.abc import Sequence
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from efface.concepts.prompts import AXES, KEPT_AXES, Axis
from efface.eval.scores.results import Shown


def split_shown(table: pa.Table) -> tuple[pa.Table, pa.Table]:
    """(scored, shown): the rows that the five axes go by, and the rows about concepts that methods may see.

    Where an axis of a concept has nothing that is held out, it goes by what was shown: those rows are in both. A table
    that does not say what was held out is scored whole.
    """
    held_out = pc.fill_null(table["held_out"], False).to_numpy(zero_copy_only=False)
    was_shown = pc.fill_null(pc.invert(table["held_out"]), False).to_numpy(zero_copy_only=False)
    cells = _cells(table)
    scored = ~was_shown | ~np.isin(cells, np.unique(cells[held_out]))
    return table.filter(pa.array(scored)), table.filter(pa.array(was_shown))


def shown_scores(scored: pa.Table, shown: pa.Table) -> Shown:
    """Of concepts that methods may see, from what `split_shown` gave."""
    names = sorted(scored["concept"].unique().to_pylist())
    concepts = {name: {axis: _share(shown, name, axis) for axis in KEPT_AXES} for name in names}
    both = scored.filter(pc.fill_null(pc.invert(scored["held_out"]), False))
    found = both.select(["concept", "axis"]).group_by(["concept", "axis"]).aggregate([]).to_pylist()
    return Shown(
        concepts=concepts,
        axes={axis: _mean([concepts[name][axis] for name in names]) for axis in KEPT_AXES},
        nothing_held_out={
            axis: sorted(cell["concept"] for cell in found if cell["axis"] == axis)
            for axis in KEPT_AXES
            if any(cell["axis"] == axis for cell in found)
        },
    )


def _cells(table: pa.Table) -> np.ndarray:
    """A number for each pair of concept and axis: (rows,)."""
    concept, axis = (table[name].combine_chunks().dictionary_encode() for name in ("concept", "axis"))
    return np.asarray(concept.indices) * len(AXES) + np.asarray(axis.indices)


def _share(shown: pa.Table, concept: str, axis: Axis) -> float | None:
    rows = shown.filter(pc.and_(pc.equal(shown["concept"], concept), pc.equal(shown["axis"], axis)))
    read = rows.filter(pc.is_valid(rows["present"]))
    values = pa.table({"model": read["model_id"], "present": read["present"].cast(pa.float64())})
    return _mean(values.group_by("model").aggregate([("present", "mean")])["present_mean"].to_pylist())


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
