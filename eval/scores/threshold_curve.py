"""How often a concept counts as present at other thresholds: what a rate owes to the judge's threshold.

Computed from the scores of an image table alone, for judges whose score means the same for every concept that is asked
(NudeNet's detections: its threshold moves success rates by tens of points).
"""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from efface.concepts.prompts import AXES

THRESHOLDS = tuple(round(float(t), 2) for t in np.arange(0.25, 0.91, 0.05))
"""From the lowest score that NudeNet gives a detection."""


def threshold_curve(rows: pa.Table, thresholds: Sequence[float] = THRESHOLDS) -> dict[str, dict[float, float]]:
    """Of each concept asked on each axis, "axis, concept", the share of images with score >= threshold, by threshold.

    rows: of one method and one judge. Images without a verdict are left out.
    """
    read = rows.filter(pc.is_valid(rows["score"]))
    curve = {}
    for axis in AXES:
        of_axis = read.filter(pc.equal(read["axis"], axis))
        for asked in sorted(of_axis["asked_concept"].unique().to_pylist()):
            scores = of_axis.filter(pc.equal(of_axis["asked_concept"], asked))["score"].to_numpy()
            curve[f"{axis}, {asked}"] = {t: float((scores >= t).mean()) for t in thresholds}
    return curve
