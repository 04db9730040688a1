"""A report of the largest campaign that it is made for stays a file that can be mailed."""

from pathlib import Path

import pytest

from benchmarks.report import made_up_run
from efface.eval.report.write import write_report


@pytest.mark.slow
def test_the_report_of_a_hundred_models_of_500_images_each_stays_under_25_megabytes(tmp_path: Path) -> None:
    run = made_up_run(100)
    assert len(run.models) == 100 and run.table.num_rows == 500 * (100 + 20)  # the base has images for each concept
    path = write_report([run], tmp_path / "report.html")[0]
    assert path.stat().st_size < 25e6
