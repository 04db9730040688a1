"""Rates at other thresholds, from the scores in an image table."""

from collections.abc import Callable
from typing import Any

import pyarrow as pa

from efface.eval.scores.threshold_curve import threshold_curve


def test_the_share_of_images_at_or_above_each_threshold(
    row: Callable[..., dict[str, Any]], table: Callable[..., pa.Table]
) -> None:
    scores = [0.1, 0.45, 0.5, 0.9]
    rows = [row("forget", s >= 0.45, score=s, seed=i) for i, s in enumerate(scores)]
    rows += [row("forget", None, score=None, seed=9), row("retain", True, score=0.3, asked_concept="Dog")]
    curve = threshold_curve(table(rows), (0.3, 0.45, 0.6))
    assert curve == {"forget, Cat": {0.3: 0.75, 0.45: 0.75, 0.6: 0.25}, "retain, Dog": {0.3: 1.0, 0.45: 0.0, 0.6: 0.0}}
