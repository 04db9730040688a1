"""Ctrl-C while a YAML file is read is Ctrl-C, and never taken for a fault of the file."""

import random
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from efface.config_files import read_yaml

TEXT = "name: set\nconcepts:\n  - {name: cat, aliases: [kitty], adjacent: [dog]}\n  - {name: dog}\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "set.yaml"
    path.write_text(TEXT)
    return path


def traced(path: Path, on_line: Callable[[int], None]) -> None:
    """Read the file, calling `on_line` with the number of each line of Python that is run within OmegaConf and YAML."""
    count = 0

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if event == "line" and "site-packages" in frame.f_code.co_filename:
            count += 1
            on_line(count)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        read_yaml(path)
    finally:
        sys.settrace(before)


def test_an_interruption_anywhere_in_the_reading_is_an_interruption(file: Path) -> None:
    lines = 0

    def counting(number: int) -> None:
        nonlocal lines
        lines = number

    read_yaml(file)  # what happens the first time alone is not counted
    traced(file, counting)
    draw = random.Random(0)
    for at in draw.sample(range(1, lines + 1), 40):
        with pytest.raises(KeyboardInterrupt):
            traced(file, lambda number, at=at: signal.raise_signal(signal.SIGINT) if number == at else None)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_reading_leaves_the_handler_of_a_driver_in_place(file: Path) -> None:
    received: list[int] = []

    def hear(number: int, _: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGINT, hear)
    try:
        traced(file, lambda number: signal.raise_signal(signal.SIGINT) if number == 500 else None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]
