"""A mutant: a change of the sources that breaks a promise, and the tests that must fail then."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """A change of the sources that breaks a promise."""

    name: str
    file: str
    old: str
    """What stands in the file, once."""
    new: str
    tests: str
    """Arguments to pytest: fast tests of which one must fail."""
    chaos: str = ""
    """Ids of trials in tests/cluster/test_chaos.py that should fail too, as one expression of `-k`."""
