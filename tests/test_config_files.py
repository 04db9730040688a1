"""YAML files of strangers are data: nothing in them is looked up, and none fills the memory. Ctrl-C stays Ctrl-C."""

import random
import signal
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from efface.config_files import CONFIGS, list_configs, read_yaml, to_yaml
from efface.errors import UserError

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
    generator = random.Random(0)
    for at in generator.sample(range(1, lines + 1), 40):
        with pytest.raises(KeyboardInterrupt):
            traced(file, lambda number, at=at: signal.raise_signal(signal.SIGINT) if number == at else None)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_reading_leaves_the_handler_of_a_driver_in_place(file: Path) -> None:
    received: list[int] = []

    def receive(number: int, _: FrameType | None) -> None:
        received.append(number)

    before = signal.signal(signal.SIGINT, receive)
    try:
        traced(file, lambda number: signal.raise_signal(signal.SIGINT) if number == 500 else None)
    finally:
        signal.signal(signal.SIGINT, before)
    assert received == [signal.SIGINT]


def refused(path: Path, text: str, overrides: list[str] | None = None) -> str:
    """The sentence by which a file with this text is refused."""
    path.write_text(text)
    with pytest.raises(UserError) as error:
        read_yaml(path, overrides)
    return str(error.value)


@pytest.mark.parametrize(
    "value",
    ["${oc.env:SECRET}", "a ${oc.env:SECRET} b", "${oc.decode:${oc.env:SECRET}}", "${name}", "${${x}:SECRET}"],
)
@pytest.mark.parametrize("place", ["label: '{}'", "methods: [{{label: '{}'}}]", "a: {{b: {{c: '{}'}}}}"])
def test_a_file_cannot_read_the_users_environment(
    value: str, place: str, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "hunter2")
    message = refused(file, f"name: set\nx: oc.env\n{place.format(value)}\n")
    assert "${…} is not looked up in files" in message and "hunter2" not in message


def test_nor_by_what_overrides_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """OmegaConf looks up what stands where an override goes below."""
    monkeypatch.setenv("SECRET", "{hunter2: 1}")
    for text, override in (("a: ${oc.decode:${oc.env:SECRET}}", "a.b=1"), ("a: 1", "b=${oc.env:SECRET}")):
        assert "hunter2" not in refused(file, text, [override])


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HOME}",
        "\\${x}",
        "\\\\${x}",
        "$",
        "${",
        "a\\",
        "😀",
        "\x1b[31m",
        "two\nlines",
        "\u2028\x85\u202e",
        "=1+1",
    ],
)
def test_what_is_written_is_read_back_as_it_is_and_never_looked_up(text: str, file: Path) -> None:
    data = {"label": text, "methods": [{"label": text}]}
    for _ in range(2):
        file.write_text(to_yaml(data))
        assert read_yaml(file) == data


def bomb(levels: int) -> str:
    """Some hundred bytes that expand to 10 ** levels values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        lines.append(f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]")
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (bomb(9), "holds more than 200,000 values, aliases expanded"),
        ("a: &a {b: *a}", "alias *a is unknown, or stands within what it names"),
        ("a: " + "[" * 100_000, "nested more than 32 levels deep"),
        ("a: " + "{b: " * 40 + "1" + "}" * 40, "nested more than 32 levels deep"),
        ("".join("- " for _ in range(40)) + "x", "nested more than 32 levels deep"),
        ("a: " + "x" * (4 * 2**20), "is longer than 4,194,304 characters"),
        ("a: [" + "1," * 250_000 + "]", "holds more than 200,000 values"),
    ],
)
def test_a_file_that_would_fill_the_memory_is_refused_before_anything_is_built(
    text: str, reason: str, file: Path
) -> None:
    file.write_text(text)
    tracemalloc.start()
    assert reason in refused(file, text)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 * 2**20


def test_aliases_are_fine_as_long_as_they_come_to_little(file: Path) -> None:
    file.write_text("a: &a {x: 1}\nb: [*a, *a]\nc:\n  <<: *a\n  y: 2\n")
    assert read_yaml(file) == {"a": {"x": 1}, "b": [{"x": 1}, {"x": 1}], "c": {"x": 1, "y": 2}}


@pytest.mark.parametrize("name", ["campaigns", "searches", "bases", "judges", "recipes", "clusters", "rates"])
def test_what_ships_is_far_from_these_limits(name: str) -> None:
    for shipped in list_configs(name):
        assert read_yaml(CONFIGS / name / f"{shipped}.yaml")
