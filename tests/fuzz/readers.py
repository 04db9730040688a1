"""The readers of files that come from outside, and what must hold of each whatever the file holds.

A check reads a generated file and says whether it was accepted. It fails where a reader raises anything but a UserError
of one line, where it does not come back, or where it accepts what was changed.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_bases as bases
import fuzz_deltas as deltas
import fuzz_run_folder as run_folder
import fuzz_tables as tables
import fuzz_texts as texts
from hypothesis import strategies as st
from time_limit import time_limit

from efface.errors import UserError

TIMEOUT_SECONDS = 20
"""A reader that takes longer hangs."""

Check = Callable[[Any, Path], bool]


@dataclass(frozen=True)
class FuzzTarget:
    """A reader under fuzz: a strategy for files, and the check that reads one in an empty folder."""

    name: str
    drawn: st.SearchStrategy[Any]
    check: Check

    def __call__(self, drawn: Any) -> bool:
        """Whether the file was accepted."""
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, time_limit(TIMEOUT_SECONDS, FuzzTimeout):
            try:
                return self.check(drawn, Path(folder))
            except UserError as error:
                message = str(error)
                assert message and "\n" not in message and "\r" not in message, f"not one line: {message!r}"
                return False


class FuzzTimeout(Exception):
    """A reader did not come back in time."""


FUZZ_TARGETS = (
    FuzzTarget("campaign", texts.campaigns, texts.check_campaign),
    FuzzTarget("concept set", texts.concept_sets, texts.check_concepts),
    FuzzTarget("prompt set", texts.prompt_sets, texts.check_prompts),
    FuzzTarget("judge", texts.judges, texts.check_judge),
    FuzzTarget("delta, damaged", deltas.damaged, deltas.check_damaged),
    FuzzTarget("delta, strange", deltas.well_signed(), deltas.check_well_signed),
    FuzzTarget("image table, damaged", tables.damaged, tables.check_damaged),
    FuzzTarget("image table, other columns", tables.other_columns(), tables.check_other_columns),
    FuzzTarget("images, damaged", tables.damaged_images, tables.check_damaged_images),
    FuzzTarget("record", run_folder.records(), run_folder.check_record),
    FuzzTarget("output", run_folder.outputs, run_folder.check_output),
    FuzzTarget("failure and stop", run_folder.JSON_FILES, run_folder.check_failure),
    FuzzTarget("lease", run_folder.leases(), run_folder.check_lease),
    FuzzTarget("journal", run_folder.journals, run_folder.check_journal),
    FuzzTarget("fingerprint", bases.tensors, bases.check_tensors),
    FuzzTarget("checkpoint", bases.pickles, bases.check_pickle),
    FuzzTarget("base", bases.damaged_configs(), bases.check_configs),
)
