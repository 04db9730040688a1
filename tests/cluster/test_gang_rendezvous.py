"""Where the processes of a gang meet: at a port that is theirs by then, or they try another; and who ends them."""

import importlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from efface.cluster.gang import NOT_MET, Leader, Member, NotDone, _first_told
from efface.cluster.worker import Outcome

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
DONE, AWAY = Outcome("done"), Outcome("fault", NOT_MET)
SHORT = Outcome("fault", "out of memory", out_of_memory=True)
FAULT, CANCELLED = Outcome("fault", "connection closed by peer"), Outcome("failed", "cancelled")


@pytest.fixture
def taken() -> Iterator[int]:
    """A port of the loopback address at which somebody else listens."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        yield other.getsockname()[1]


def test_a_port_that_was_taken_meanwhile_is_no_fault_of_the_job(taken: int, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that they are as before afterwards
    setting: Any = SimpleNamespace(gpus=0)
    outcome = Member().run(setting, setting, False, 0, 2, "127.0.0.1", taken)
    assert (outcome.state, outcome.reason) == ("fault", NOT_MET) and "EADDRINUSE" in outcome.details


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ([DONE], DONE),
        ([AWAY, AWAY, DONE], DONE),
        ([AWAY, AWAY, AWAY], AWAY),
        ([AWAY, FAULT], FAULT),
        ([FAULT], FAULT),
    ],
)
def test_three_ports_are_tried_and_what_went_wrong_later_is_not_tried_again(
    told: list[Outcome], expected: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, removed, asked = list(told), [], []
    group = SimpleNamespace(wait=lambda seconds: True)
    groups = importlib.import_module("ray.util.placement_group")
    monkeypatch.setattr(groups, "placement_group", lambda *_, **told: asked.append(told) or group)
    monkeypatch.setattr(groups, "remove_placement_group", removed.append)
    monkeypatch.setattr(Leader, "_at_a_port", lambda *_: left.pop(0))
    setting: Any = SimpleNamespace(cpus=1, gpus=0)
    assert Leader().run(setting, setting, 2, one_node=True) == expected
    assert left == [] and removed == [group] and asked == [{"strategy": "STRICT_PACK"}]


def test_of_what_ranks_end_with_under_ray_train_the_reason_counts_and_not_its_consequence() -> None:
    assert _first_told([NotDone(FAULT), NotDone(CANCELLED)]) == CANCELLED
    assert _first_told([NotDone(FAULT), NotDone(SHORT)]) == SHORT
    assert _first_told([RuntimeError("died"), NotDone(FAULT)]) == FAULT
    assert _first_told([RuntimeError("died")]) is None


@pytest.mark.parametrize("second", [DONE, SHORT, FAULT])
def test_out_of_memory_all_halve_their_batches_once(second: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    left, halves = [SHORT, second], []

    def together(self: Leader, setting: Any, model: Any, size: int, strategy: str, halve: bool) -> Outcome:
        halves.append(halve)
        return left.pop(0)

    monkeypatch.setattr(Leader, "_together", together)
    setting: Any = SimpleNamespace()
    assert Leader().run(setting, setting, 2) == replace(second, halved=True)
    assert halves == [False, True]
