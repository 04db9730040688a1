"""The report in a run folder: written when a run ends, and only if its results are not those that it shows."""

import hashlib
from pathlib import Path

from efface import __version__
from efface.cluster.run_content import read_run
from efface.cluster.storage.records import sha256
from efface.cluster.storage.run_folder import RunFolder
from efface.eval.report.write import is_report_of, write_report


def update_report(folder: RunFolder) -> Path | None:
    """Write the report of what there is; its path, None where nothing was scored.

    Raises UserError where a file of its name is no report.
    """
    shown = [sha256(path) for path in (folder.table, folder.scores)]
    if None in shown:
        return None
    version = hashlib.sha256(" ".join([__version__, *map(str, shown)]).encode()).hexdigest()
    if not is_report_of(folder.report, version):
        write_report([read_run(folder.root)], folder.report, version=version)
    return folder.report
