"""The scores of a run corrected for the errors of the headline's judge, for the table beside its calibration."""

import pyarrow.compute as pc

from efface.eval.report.reported_run import RunContent
from efface.eval.scores.corrected import CORRECTED, axes_of, corrected_by_method

CAUTION = f"{CORRECTED}."


def corrected_lines(run: RunContent) -> list[list[str]]:
    """Of each method, and the base: its label, and the estimate of each axis; none where the judge was not measured."""
    accuracy = next((of.accuracy for of in run.calibrations if of.judge == run.judge), None)
    if accuracy is None:
        return []
    table = run.table.filter(pc.equal(run.table["judge"], run.judge))
    return [[label, *axes_of(found)] for label, found in corrected_by_method(table, accuracy, run.scores).items()]
