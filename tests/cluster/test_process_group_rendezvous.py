"""Where the processes of a group meet: at a port that is theirs by then, or they try another; and who ends them."""

import importlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from efface.cluster.tasks.retry_rules import Outcome
from efface.cluster.workers.process_group import RENDEZVOUS_FAILED, ActorLauncher, RankActor, RankNotDone, _root_cause

VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
DONE, AWAY = Outcome.done(), Outcome.error(RENDEZVOUS_FAILED)
SHORT = Outcome.error("out of memory", out_of_memory=True)
ERROR, CANCELLED = Outcome.error("connection closed by peer"), Outcome.failed("cancelled")


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
    context: Any = SimpleNamespace(gpus=0)
    outcome = RankActor().run(context, context, False, 0, 2, "127.0.0.1", taken)
    assert (outcome.state, outcome.reason) == ("error", RENDEZVOUS_FAILED) and "EADDRINUSE" in outcome.details


@pytest.mark.parametrize(
    ("output", "expected"),
    [
        ([DONE], DONE),
        ([AWAY, AWAY, DONE], DONE),
        ([AWAY, AWAY, AWAY], AWAY),
        ([AWAY, ERROR], ERROR),
        ([ERROR], ERROR),
    ],
)
def test_three_ports_are_tried_and_what_went_wrong_later_is_not_tried_again(
    output: list[Outcome], expected: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    left, removed, requested = list(output), [], []
    group = SimpleNamespace(wait=lambda seconds: True)
    groups = importlib.import_module("ray.util.placement_group")
    monkeypatch.setattr(groups, "placement_group", lambda *_, **output: requested.append(output) or group)
    monkeypatch.setattr(groups, "remove_placement_group", removed.append)
    monkeypatch.setattr(ActorLauncher, "_run_ranks", lambda *_: left.pop(0))
    context: Any = SimpleNamespace(cpus=1, gpus=0)
    assert ActorLauncher().run(context, context, 2, one_node=True) == expected
    assert left == [] and removed == [group] and requested == [{"strategy": "STRICT_PACK"}]


def test_of_what_ranks_end_with_under_ray_train_the_reason_counts_and_not_its_consequence() -> None:
    assert _root_cause([RankNotDone(ERROR), RankNotDone(CANCELLED)]) == CANCELLED
    assert _root_cause([RankNotDone(ERROR), RankNotDone(SHORT)]) == SHORT
    assert _root_cause([RuntimeError("died"), RankNotDone(ERROR)]) == ERROR
    assert _root_cause([RuntimeError("died")]) is None


@pytest.mark.parametrize("second", [DONE, SHORT, ERROR])
def test_out_of_memory_all_halve_their_batches_once(second: Outcome, monkeypatch: pytest.MonkeyPatch) -> None:
    left, smaller_batches = [SHORT, second], []

    def run_process_group(
        self: ActorLauncher, context: Any, model: Any, size: int, strategy: str, smaller_batch: bool
    ) -> Outcome:
        smaller_batches.append(smaller_batch)
        return left.pop(0)

    monkeypatch.setattr(ActorLauncher, "_run_process_group", run_process_group)
    context: Any = SimpleNamespace()
    assert ActorLauncher().run(context, context, 2) == replace(second, smaller_batch=True)
    assert smaller_batches == [False, True]
