"""Whatever a file holds, it is read or refused in a sentence; `benchmarks/fuzz.py` draws 10,000 files a reader."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from readers import FUZZ_TARGETS, FuzzTarget


@pytest.mark.parametrize("target", FUZZ_TARGETS, ids=lambda target: target.name)
@pytest.mark.parametrize("examples", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_file_is_read_or_refused_in_one_sentence(examples: int, target: FuzzTarget) -> None:
    @settings(max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
    @given(target.drawn)
    def holds(drawn: Any) -> None:
        target(drawn)

    holds()
