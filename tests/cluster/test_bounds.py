"""Lower bounds and LPT against numbers worked out by hand."""

import pytest

from benchmarks.scheduler.bounds import Bound, Chain, longest_first, lower_bound


def test_all_gpus_together_are_only_so_fast() -> None:
    base = Chain(0, (5.0,) * 12)
    assert lower_bound([], [base], [1, 1, 1]) == Bound(20, "work")
    assert lower_bound([], [base], [1, 1, 2]) == Bound(15, "work")


def test_nothing_of_a_model_is_judged_before_it_is_trained() -> None:
    # Four GPUs, of which two wait 10 s for something to do; then 40 s of judging on all four.
    models = [Chain(10, (1.0,) * 20)] * 2
    assert lower_bound([], models, [1] * 4) == Bound(10 + 40 / 4, "waiting")


def test_waiting_counts_models_that_are_not_ready_yet_and_what_is_left_of_their_training() -> None:
    # At 10 s the second has 2 s of training to come; it and its judging, and that of the first: 2 + 20 + 20 on 10 GPUs;
    # at 12 s the second's judging alone: 12 + 2.
    models = [Chain(10, (1.0,) * 20), Chain(12, (1.0,) * 20)]
    assert lower_bound([], models, [1] * 10) == Bound(10 + 42 / 10, "waiting")


def test_the_judges_calibration_comes_before_all_judging() -> None:
    assert lower_bound([6.0, 4.0], [Chain(0, (1.0,) * 20)], [1] * 10) == Bound(6 + 20 / 10, "waiting")
    assert lower_bound([6.0], [Chain(0, (5.0,))], [1, 1]) == Bound(11, "chain")
    assert lower_bound([6.0], [Chain(2, (5.0,))], [1, 1]) == Bound(11, "chain")


def test_training_loading_and_the_longest_shard_make_a_chain() -> None:
    assert lower_bound([], [Chain(10, (1.0, 3.0), load=0.5)], [1] * 100) == Bound(13.5, "chain")
    assert lower_bound([], [Chain(10, (1.0, 3.0), load=0.5)], [1, 2]).seconds == 6.75


def test_a_model_without_shards_is_only_trained() -> None:
    assert lower_bound([], [Chain(10, (), load=0.5)], [1, 1]).seconds == 10


@pytest.mark.parametrize(
    ("trainings", "speeds", "expected"),
    [
        ([10] * 3, [1, 1], 20),
        ([10] * 5, [1, 1], 30),
        ([10] * 3, [1, 0.5], 20),  # two on the fast one, one on the slow one
        ([10] * 4, [1, 0.5], 30),
        ([10, 10, 1], [1, 1], 10.5),  # the third is short: only the work counts
    ],
)
def test_a_gpu_trains_whole_models(trainings: list[float], speeds: list[float], expected: float) -> None:
    found = lower_bound([], [Chain(training, ()) for training in trainings], speeds)
    assert found.seconds == pytest.approx(expected, rel=1e-6)


def test_after_the_last_round_a_model_is_still_to_be_judged() -> None:
    found = lower_bound([], [Chain(10, (2.0,))] * 3, [1, 1])
    assert found.seconds == pytest.approx(22) and found.reason == "rounds"


def test_longest_first_is_grahams_example() -> None:
    # Two machines, LPT 7 where 6 is possible; three machines, 11 where 9 is: its worst case (4m - 1) / 3m.
    assert longest_first([3, 3, 2, 2, 2], [1, 1]) == 7
    assert longest_first([5, 5, 4, 4, 3, 3, 3], [1, 1, 1]) == 11


def test_longest_first_puts_a_piece_where_it_ends_first() -> None:
    assert longest_first([4], [0.5, 1, 2]) == 2
    assert longest_first([4, 4], [1, 2]) == 4
    assert longest_first([], [1, 2]) == 0
