"""The mutants of `benchmarks/mutants.py` still fit the sources; whether tests catch them, the benchmark says."""

import re
from pathlib import Path

import pytest

from benchmarks.base_mutants import BASE_MUTANTS
from benchmarks.mutant import Mutant
from benchmarks.output_mutants import OUTPUT_MUTANTS
from benchmarks.result_mutants import RESULT_MUTANTS
from benchmarks.run_mutants import RUN_MUTANTS
from benchmarks.stranger_mutants import STRANGER_MUTANTS
from benchmarks.work_mutants import WORK_MUTANTS

ROOT = Path(__file__).parents[1]
MUTANTS = (*RUN_MUTANTS, *WORK_MUTANTS, *OUTPUT_MUTANTS, *BASE_MUTANTS, *RESULT_MUTANTS, *STRANGER_MUTANTS)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_its_text_stands_once_in_a_file_and_its_tests_are_there(mutant: Mutant) -> None:
    assert (ROOT / mutant.file).read_text(encoding="utf-8").count(mutant.old) == 1
    files = re.findall(r"tests/\S+\.py", mutant.tests)
    assert files and all((ROOT / file).is_file() for file in files)


def test_no_two_have_one_name() -> None:
    assert len({mutant.name for mutant in MUTANTS}) == len(MUTANTS)
