"""The readers of files that come from outside, and what must hold of each whatever the file holds.

A check reads what was drawn and says whether it was accepted. It fails where a reader raises anything but a UserError
of one line, where it does not come back, or where it accepts what was changed.
"""

import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fuzz_deltas as deltas
import fuzz_run_folder as run_folder
import fuzz_tables as tables
import fuzz_texts as texts
from hypothesis import strategies as st

from efface.errors import UserError

SECONDS = 20
"""A reader that takes longer hangs."""

Check = Callable[[Any, Path], bool]


@dataclass(frozen=True)
class Reader:
    """A reader under fuzz: files as they are drawn, and the check that reads one in an empty folder."""

    name: str
    drawn: st.SearchStrategy[Any]
    check: Check

    def __call__(self, drawn: Any) -> bool:
        """Whether the file was accepted."""
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder, _at_most(SECONDS):
            try:
                return self.check(drawn, Path(folder))
            except UserError as error:
                told = str(error)
                assert told and "\n" not in told and "\r" not in told, f"not one line: {told!r}"
                return False


class Hang(Exception):
    """A reader did not come back in time."""


@contextmanager
def _at_most(seconds: int) -> Iterator[None]:
    def give_up(number: int, frame: object) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


READERS = (
    Reader("campaign", texts.campaigns, texts.check_campaign),
    Reader("concept set", texts.concept_sets, texts.check_concepts),
    Reader("prompt set", texts.prompt_sets, texts.check_prompts),
    Reader("delta, damaged", deltas.damaged, deltas.check_damaged),
    Reader("delta, strange", deltas.well_signed(), deltas.check_well_signed),
    Reader("image table, damaged", tables.damaged, tables.check_damaged),
    Reader("image table, other columns", tables.other_columns(), tables.check_other_columns),
    Reader("images, damaged", tables.damaged_images, tables.check_damaged_images),
    Reader("record", run_folder.records(), run_folder.check_record),
    Reader("output", run_folder.outputs, run_folder.check_output),
    Reader("failure and stop", run_folder.JSON_FILES, run_folder.check_failure),
    Reader("lease", run_folder.leases(), run_folder.check_lease),
    Reader("journal", run_folder.journals, run_folder.check_journal),
)
