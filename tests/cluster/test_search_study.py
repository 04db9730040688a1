"""The study of a search: what it proposes, which trials go on, and what it still knows after any end of the process."""

import json
from pathlib import Path

import optuna
import pytest
from tiny_search import MakeSearch

from efface.cluster.search.result import TrialCost, TrialResult, TrialScores
from efface.cluster.search.study import Study

COST = TrialCost(0.01, 1e-9, 7.0, ("esd-cat",))


def judged(score: float, images: int = 1) -> TrialResult:
    return TrialResult("judged", score, COST, TrialScores(score, (0.0, 1.0), {"forget": 0.5}, images))


def score_of(trial: optuna.Trial) -> float:
    """A landscape with one hill, where the learning rate is 1e-3."""
    return 1 / (1 + abs(trial.params["learning_rate"] - 1e-3) * 1e3)


def try_configs(study: Study, count: int) -> list[dict[str, object]]:
    """Ask for configs and judge each on both rungs at once; the points."""
    points = []
    for _ in range(count):
        trial = study.ask()
        points.append(study.point(trial))
        if study.judged(trial, 0, judged(score_of(trial))):
            study.judged(trial, 1, judged(score_of(trial), 3))
    return points


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "study.jsonl"


# proposals


def test_the_same_seed_proposes_the_same(search: MakeSearch, tmp_path: Path) -> None:
    # The eleventh config is the first that Optuna makes of what it knows.
    first = try_configs(Study(search(), tmp_path / "a"), 14)
    assert try_configs(Study(search(), tmp_path / "b"), 14) == first
    assert try_configs(Study(search(seed=1), tmp_path / "c"), 14)[0] not in first
    assert len({json.dumps(point) for point in first}) == 14


def test_a_search_that_starts_anew_at_each_trial_proposes_what_one_start_does(
    search: MakeSearch, file: Path, tmp_path: Path
) -> None:
    points = [point for _ in range(14) for point in try_configs(Study(search(), file), 1)]
    assert points == try_configs(Study(search(), tmp_path / "other"), 14)


def test_a_config_over_the_budget_is_avoided_more_than_one_that_was_pruned(search: MakeSearch, file: Path) -> None:
    study = Study(search(space={"variant": {"choice": ["x", "u"]}}), file)
    tried: list[object] = []
    for number in range(30):
        trial = study.ask()
        tried.append(study.point(trial)["variant"])
        if tried[-1] == "x":
            study.ended(trial, TrialResult("over budget", -0.1, COST))
        elif study.judged(trial, 0, judged(0.1 - 0.001 * number)):  # the first goes on, and none that follows
            study.judged(trial, 1, judged(0.1, 3))
    assert tried[10:].count("u") >= 15  # of the 20 that Optuna makes of what it knows


def test_of_configs_over_the_budget_those_nearer_to_it_are_followed(search: MakeSearch, file: Path) -> None:
    study = Study(search(), file)
    rates = []
    for _ in range(30):
        trial = study.ask()
        rates.append(float(study.point(trial)["learning_rate"] or 0))
        study.ended(trial, TrialResult("over budget", 1e-5 / rates[-1] - 1, COST))
    assert sum(rate < 1e-3 for rate in rates[20:]) >= 9  # of 10, where 1e-3 is the middle of the space


# which trials go on


@pytest.mark.parametrize(
    ("reduction", "arrivals"),
    [
        # On a rung, the n-th to arrive goes on if it is one of the best ⌊n / reduction⌋ so far, but at least the best.
        (2, [(0.5, True), (0.4, False), (0.6, True), (0.55, True), (0.3, False), (0.58, True), (0.54, False)]),
        (3, [(0.5, True), (0.4, False), (0.6, True), (0.55, False), (0.59, False), (0.58, False), (0.595, True)]),
        (2, [(0.5, True), (0.5, True)]),
    ],
)
def test_a_trial_goes_on_while_it_is_among_the_best_of_its_rung(
    search: MakeSearch, file: Path, reduction: int, arrivals: list[tuple[float, bool]]
) -> None:
    study = Study(search(reduction=reduction), file)
    assert [study.judged(study.ask(), 0, judged(score)) for score, _ in arrivals] == [goes for _, goes in arrivals]


def test_each_rung_is_a_competition_of_its_own_and_the_last_ends_a_trial(search: MakeSearch, file: Path) -> None:
    study = Study(search(rungs=[1, 2, 4]), file)
    first, second = study.ask(), study.ask()
    assert study.judged(first, 0, judged(0.5)) and study.judged(second, 0, judged(0.6))
    assert study.judged(second, 1, judged(0.3, 2)) and not study.judged(first, 1, judged(0.2, 2))
    assert not study.judged(second, 2, judged(0.4, 4))
    assert [row.ended for row in study.rows] == [True, True]
    assert [row.result.scores and row.result.scores.images_per_prompt for row in study.rows] == [2, 4]


def test_trials_that_were_not_judged_do_not_compete(search: MakeSearch, file: Path) -> None:
    study = Study(search(), file)
    assert study.judged(study.ask(), 0, judged(0.5))
    for _ in range(2):
        study.ended(study.ask(), TrialResult("failed", -1.0, reason="the loss is nan"))
    assert not study.judged(study.ask(), 0, judged(0.4))  # the second of two, and not of four


# what is kept


def test_a_new_study_knows_every_trial_in_its_order(search: MakeSearch, file: Path) -> None:
    study = Study(search(), file)
    done, asked, broken, failed = (study.ask() for _ in range(4))
    study.judged(done, 0, judged(0.5))
    study.judged(done, 1, judged(0.6, 3))
    study.errored(broken, TrialResult("errored", reason="the worker died"))
    study.ended(failed, TrialResult("failed", -1.0, reason="the loss is nan"))
    again = Study(search(), file)
    assert again.rows == study.rows and not again.damaged
    assert [(row.number, row.result.state, row.ended) for row in again.rows] == [
        (1, "judged", True),
        (2, "started", False),
        (3, "errored", False),
        (4, "failed", True),
    ]
    assert again.rows[0].result == judged(0.6, 3)
    assert [again.point(trial) for trial in again.unfinished()] == [study.point(asked), study.point(broken)]
    assert not again.is_complete(4) and Study(search(), file.with_name("none")).is_complete(0)


def test_a_trial_that_is_judged_again_after_a_kill_competes_once(search: MakeSearch, file: Path) -> None:
    study = Study(search(), file)
    assert study.judged(study.ask(), 0, judged(0.5))
    again = Study(search(), file)
    (trial,) = again.unfinished()
    assert again.rung(trial) == 0 and again.judged(trial, 0, judged(0.5))
    # Of two trials one goes on: were the first counted twice, it would be one of three all the same, but two of four.
    assert not again.judged(again.ask(), 0, judged(0.4))
    assert not again.judged(again.ask(), 0, judged(0.45))
    again.judged(trial, 1, judged(0.5, 3))
    assert again.rows[0].ended and again.rows[0].result == judged(0.5, 3)


def test_the_file_holds_whole_steps(search: MakeSearch, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[bytes] = []
    monkeypatch.setattr("efface.cluster.search.study.write_atomic", lambda path, data: written.append(data))
    study = Study(search(), file)
    study.judged(study.ask(), 0, judged(0.5))
    study.judged(study.ask(), 0, judged(0.4))
    assert len(written) == 4
    states = []
    for data in written:
        file.write_bytes(data)
        states.append([(len(row.point), row.result.score, row.ended) for row in Study(search(), file).rows])
    assert states == [
        [(2, None, False)],
        [(2, 0.5, False)],
        [(2, 0.5, False), (2, None, False)],
        [(2, 0.5, False), (2, 0.4, True)],
    ]


def test_optuna_reads_the_file_as_its_own(search: MakeSearch, file: Path) -> None:
    try_configs(Study(search(), file), 3)
    storage = optuna.storages.JournalStorage(optuna.storages.journal.JournalFileBackend(str(file)))
    loaded = optuna.load_study(study_name="tiny", storage=storage)
    assert [dict(trial.params) for trial in loaded.trials] == [row.point for row in Study(search(), file).rows]


# damage


def test_a_file_cut_anywhere_keeps_what_was_known_by_then(search: MakeSearch, file: Path) -> None:
    wanted = search()
    try_configs(Study(wanted, file), 3)
    whole, rows = file.read_bytes(), Study(wanted, file).rows
    lines = whole.splitlines(keepends=True)
    cuts = {sum(map(len, lines[:count])) + extra for count in range(len(lines)) for extra in (0, 1, 20)}
    for cut in sorted(cut for cut in cuts if cut < len(whole)):
        file.write_bytes(whole[:cut])
        known = Study(wanted, file)
        ended = [row for row in known.rows if row.ended]
        assert ended == rows[: len(ended)] and len(known) <= len(ended) + 1
        assert all(row.point.keys() == wanted.space.keys() for row in known.rows)
        assert known.damaged == (whole[cut - 1 : cut] not in (b"\n", b""))
        try_configs(known, 1)
        assert Study(wanted, file).rows == known.rows


def test_what_follows_a_damaged_line_is_not_used(search: MakeSearch, file: Path) -> None:
    try_configs(Study(search(), file), 3)
    rows = Study(search(), file).rows
    lines = file.read_bytes().splitlines(keepends=True)
    second = [number for number, line in enumerate(lines) if json.loads(line)["op_code"] == 4][1]
    lines[second] = b"\0" * len(lines[second])
    file.write_bytes(b"".join(lines))
    study = Study(search(), file)
    assert study.damaged and study.rows == rows[:1]


@pytest.mark.parametrize(
    "damage",
    [
        b'{"op_code":99}\n',
        b'{"op_code":8,"trial_id":0,"user_attr":{"result":{"state":"fine"}},"worker_id":"w"}\n',
        b'{"op_code":4}\n',
        b"[]\n",
        b"\xff\xfe\n",
        b"[" * 100_000 + b"\n",
    ],
)
def test_operations_that_cannot_be_replayed_cost_no_more_than_the_study(
    search: MakeSearch, file: Path, damage: bytes
) -> None:
    Study(search(), file).ask()
    file.write_bytes(file.read_bytes() + damage)
    study = Study(search(), file)
    assert study.damaged and len(study) <= 1
    assert len(try_configs(study, 2)) == 2 and not Study(search(), file).damaged


def test_a_study_of_another_space_is_begun_anew(search: MakeSearch, file: Path) -> None:
    Study(search(space={"eta": {"uniform": [0, 1]}}), file).ask()
    study = Study(search(space={"eta": {"choice": [0.5, 1.0]}}), file)
    assert study.damaged and len(study) == 0
