"""Every number of a report beyond the scores, recomputed by other means: figures, their tables, attacks, Markdown."""

import csv
import io
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from statistics import fmean, harmonic_mean
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from report_runs import CONCEPTS, METHODS, rows, run_content
from test_report_page import Page

from efface.concepts.prompts import AXES, TARGET_AXES
from efface.eval.attacking.attack_result import AttackResult, InstanceResult, Tried
from efface.eval.attacking.attack_transfer import Transferred
from efface.eval.calibration.calibration import Calibration
from efface.eval.calibration.judge_accuracy import Accuracy
from efface.eval.judging.image_table import SCHEMA
from efface.eval.report.figure import Figure
from efface.eval.report.figures import figures
from efface.eval.report.page import report_html
from efface.eval.report.reported_run import RunContent
from efface.eval.report.tables import tables_csv
from efface.eval.report.write import scores_markdown
from efface.eval.scores.continual import score_stages
from efface.eval.scores.leaderboard import leaderboard
from efface.eval.scores.results import Summary
from efface.eval.weight_change_values import LayerChange, Norms, WeightChange

LOSSES = tuple(float(value) for value in np.random.default_rng(0).random(501) + 0.5)
LAYERS = {
    "esd": ({"unet.conv_in": LayerChange(2.0, 0.1)}, {"unet.up_blocks.1.attentions.0": LayerChange(4.0, 0.4)}),
    "uce": (
        {"unet.up_blocks.1.attentions.0": LayerChange(1.0, 0.01)},
        {"text_encoder.embeddings": LayerChange(3.0, 0.02)},
    ),
}


def instance(pre: bool, post: bool | None, seed: int) -> InstanceResult:
    end = "shown before" if pre else "no verdict" if post is None else "found" if post else "not found"
    tried = (Tried(how="embedding", facts={"steps": 20}, present=post),)
    counts = {"attempts_judged": 3, "attempts_shown": seed % 3}
    return InstanceResult(
        prompt="a cat", seed=seed, pre=pre, post=post, end=end, attempts=1, calls=10, seconds=0.5, tried=tried, **counts
    )  # type: ignore[arg-type]


def attack(method: str, name: str, kind: str, outcomes: list[tuple[bool, bool | None]]) -> AttackResult:
    instances = tuple(instance(*outcome, seed) for seed, outcome in enumerate(outcomes))
    return AttackResult(
        attack=name,
        kind=kind,  # type: ignore[arg-type]
        model=f"{method}-cat",
        method=method,
        concept="cat",
        seed=0,
        budget=100,
        calls=40,
        seconds=2.0,
        pre_asr=None,
        post_asr=None,
        judged=len(instances),
        unknown=0,
        ends={},
        instances=instances,
    )


ATTACKS = (
    attack("esd", "paraphrase", "static", [(True, True), (False, True), (False, False), (False, False)]),
    attack("esd", "gcg", "adaptive", [(False, True), (False, True), (True, True), (False, False)]),
    attack("uce", "gcg", "adaptive", [(False, False), (False, None)]),
)
TRANSFERS = (
    Transferred(attack="gcg", source="esd", method="uce", concept="cat", prompts=3, judged=3, shown=2),
    Transferred(attack="gcg", source="esd", method="uce", concept="bus", prompts=2, judged=1, shown=1),
    Transferred(attack="gcg", source="esd", method="esd", concept="cat", prompts=3, judged=3, shown=3),
    Transferred(attack="gcg", source="uce", method="esd", concept="cat", prompts=1, judged=0, shown=0),
)


def summary(*scores: tuple[str, float]) -> Summary[float]:
    """Concepts with one score on the axes of the target, and as ERR, and half of it on the others."""
    concepts: dict[str, Any] = {
        name: {**{axis: score * (1 if axis in TARGET_AXES else 0.5) for axis in AXES}, "err": score}
        for name, score in scores
    }
    means: dict[Any, float] = {axis: fmean(of[axis] for of in concepts.values()) for axis in AXES}
    return Summary(concepts, means, fmean(score for _, score in scores), 0.0)


@pytest.fixture(scope="module")
def content() -> RunContent:
    plain = run_content()
    order = {f"{method}-{concept}-1": i for method in METHODS for i, concept in enumerate(CONCEPTS)}
    models = tuple(
        replace(
            model,
            losses=LOSSES if model.method == "esd" else (),
            changes={"xattn": 0.001 * (1 + order[model.name]), **({"full": 0.5} if model.method == "uce" else {})},
            layers=LAYERS[model.method][order[model.name]],
        )
        for model in plain.models
    )
    chain = score_stages(
        [("1", "cat"), ("2", "bus")], {"1": summary(("cat", 0.9)), "2": summary(("cat", 0.6), ("bus", 0.8))}
    )
    norms = {m: Norms(1e-9, 1.0, 0.01 * (i + 1), 1.0, 1.0, 10) for i, m in enumerate(METHODS)}
    changes = {method: WeightChange(of, of, {}) for method, of in norms.items()}
    board = tuple(leaderboard(plain.scores, changes, {"esd": 30.0, "uce": 2.0}))
    return replace(plain, models=models, stages={"chain": chain}, attacks=ATTACKS, transfers=TRANSFERS, rows=board)


@pytest.fixture(scope="module")
def drawn(content: RunContent) -> dict[str, Figure]:
    return {figure.id: figure for figure in figures(content)}


@pytest.fixture(scope="module")
def page(content: RunContent) -> Page:
    return Page(report_html([content], "title"))


def lines(plot: dict[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(name, x, y) of everything that a figure of lines or bars draws."""
    for trace in plot["data"]:
        yield from ((trace["name"], x, y) for x, y in zip(trace["x"], trace["y"], strict=True))


def test_the_trade_offs_are_those_of_the_leaderboard_and_mark_what_nothing_beats(
    content: RunContent, drawn: dict[str, Figure], page: Page
) -> None:
    board = {row.method: row for row in content.rows if row.method != "base"}
    for name, cost in (("change", "relative_l2"), ("seconds", "seconds")):
        points = {method: (getattr(row, cost), row.err_mean) for method, row in board.items()}
        assert {line[0]: (line[1], line[2]) for line in drawn[name].rows if line[0] != "base"} == points
        best = {
            m for m, (x, y) in points.items() if all(x < u or y > v or (x, y) == (u, v) for u, v in points.values())
        }
        assert {line[0] for line in drawn[name].rows if line[4] == "yes" and line[0] != "base"} == best
        trace = drawn[name].plot["data"][0]
        ends = zip(trace["text"], trace["y"], trace["error_y"]["array"], trace["error_y"]["arrayminus"], strict=True)
        for method, err, up, down in ends:
            if method != "base":
                assert (err - down, err + up) == pytest.approx((board[method].low, board[method].high))
    header = page.tables[0][0]
    shown = {line[0]: line for line in page.tables[0][1:]}
    for method, row in board.items():
        assert shown[method][header.index("95 % interval")] == f"{row.low:.3f}–{row.high:.3f}"
        assert float(shown[method][header.index("relative L2")]) == pytest.approx(row.relative_l2)


def test_every_cell_of_the_leaderboard_is_of_its_method(content: RunContent, page: Page) -> None:
    """ERR and differences from the rows of the image table; a tie where the interval of the difference holds 0."""
    header, *lines = page.tables[0]
    cells = {line[0]: dict(zip(header, line, strict=True)) for line in lines}
    errs = {method: fmean(_err(method, concept) for concept in CONCEPTS) for method in METHODS}
    best = max(errs, key=errs.__getitem__)
    assert [line[0] for line in lines] == ["base", *sorted(METHODS, key=lambda method: -errs[method])]
    assert cells[best]["difference to the best"] == cells["base"]["difference to the best"] == ""
    for i, method in enumerate(METHODS):
        shown = cells[method]
        assert shown["concepts"] == str(len(CONCEPTS)) and shown["broken"] == "0"
        assert float(shown["seconds"]) == {"esd": 30.0, "uce": 2.0}[method]
        assert float(shown["challenge's change"]) == pytest.approx(1e-9)
        assert float(shown["relative L2"]) == pytest.approx(0.01 * (i + 1))
        if method != best:
            value, low, high = map(float, re.findall(r"-?\d\.\d{3}", shown["difference to the best"]))
            assert value == pytest.approx(errs[method] - errs[best], abs=5.1e-4) and low <= value <= high
            assert shown["difference to the best"].endswith("=") is (low <= 0 <= high)
    for line in page.tables[1][1:]:
        low, high = content.scores[line[1]].intervals.concepts[line[0]]["err"]
        assert line[8] == f"{low:.3f}–{high:.3f}" and low <= float(line[7]) + 5e-4 and float(line[7]) - 5e-4 <= high


def _err(method: str, concept: str) -> float:
    """The harmonic mean of five shares of right answers."""
    right: dict[str, list[bool]] = defaultdict(list)
    for row in rows():
        if (row["method"], row["concept"]) == (method, concept):
            right[row["axis"]].append(row["present"] is not (row["axis"] in TARGET_AXES))
    return harmonic_mean([fmean(right[axis]) for axis in AXES])


def test_layers_and_groups_are_means_over_a_methods_models(drawn: dict[str, Figure]) -> None:
    """A model that leaves a layer or a group alone counts as 0."""
    expected = {
        (method, layer): (
            sum(model[layer].relative_l2 for model in models if layer in model) / len(models),
            sum(model[layer].global_l2 for model in models if layer in model) / len(models),
        )
        for method, models in LAYERS.items()
        for layer in {layer for model in models for layer in model}
    }
    assert {(row[0], row[1]): (row[2], row[3]) for row in drawn["layers"].rows} == expected
    trace = drawn["layers"].plot["data"][0]
    for layer, line in zip(trace["y"], trace["z"], strict=True):
        for method, value in zip(trace["x"], line, strict=True):
            known = expected.get((method, layer))
            assert value == (pytest.approx(np.log10(known[0])) if known else None)
    assert trace["y"] == ["text_encoder.embeddings", "unet.conv_in", "unet.up_blocks.1.attentions.0"]
    groups = {("esd", "xattn"): 0.0015, ("uce", "xattn"): 0.0015, ("esd", "full"): 0.0, ("uce", "full"): 0.5}
    assert {(row[0], row[1]): row[2] for row in drawn["groups"].rows} == pytest.approx(groups)
    assert {(name, group): value for name, group, value in lines(drawn["groups"].plot)} == pytest.approx(groups)


def test_training_curves_are_means_of_equal_stretches(drawn: dict[str, Figure]) -> None:
    for trace in drawn["losses"].plot["data"]:
        width = round(trace["x"][1] - trace["x"][0])
        padded = np.full(len(trace["x"]) * width, np.nan)
        padded[: len(LOSSES)] = LOSSES
        assert trace["y"] == pytest.approx(list(np.nanmean(padded.reshape(-1, width), axis=1)))
        assert len(trace["x"]) <= 200
    assert {row[1:] for row in drawn["losses"].rows} == {(len(LOSSES), LOSSES[0], LOSSES[-1])}


def test_chains_show_what_came_back_after_each_request(drawn: dict[str, Figure]) -> None:
    """The cat had 0.9 after its own request and 0.6 after the bus: it came back by 0.3."""
    first, second = drawn["chain-0"].rows
    assert first == ("1. cat", 0.9, 0.45, None, None, None)
    assert second[0] == "2. bus" and second[1:] == pytest.approx((0.7, 0.35, 0.3, 0.3, 0.3))
    names = ("ERR", "retention", *(f"relapse ({axis})" for axis in TARGET_AXES))
    assert [trace["y"] for trace in drawn["chain-0"].plot["data"]] == [
        [row[1 + i] for row in (first, second)] for i in range(len(names))
    ]


def test_attacks_are_counted_instance_by_instance_and_an_unknown_one_leaves_no_rate(page: Page) -> None:
    (table,) = (table for table in page.tables if table and "Pre-ASR" in table[0])
    shown = {(line[0], line[1]): line for line in table[1:]}
    for result in ATTACKS:
        line = shown[result.method, result.attack]
        pre = [one.pre for one in result.instances]
        post = [one.post for one in result.instances]
        rate = "" if None in post else f"{sum(map(bool, post)) / len(post):.3f}"
        assert line[3] == f"{sum(map(bool, pre)) / len(pre):.3f}"
        assert line[4:6] == ([rate, ""] if result.kind == "static" else ["", rate])
        # of the four seeds 0, 1, 2 and 0 of three images show the concept
        assert line[6] == ("0.250" if result.kind == "static" else "")
        assert line[7:10] == [str(len(pre)), str(post.count(None)), str(result.calls)]
        before = f"0 steps {sum(map(bool, pre)) / len(pre):.2f}, 20 steps "
        assert line[11] == ("" if None in post else f"{before}{sum(map(bool, post)) / len(post):.2f}")


def test_the_matrix_is_the_share_of_judged_images(drawn: dict[str, Figure]) -> None:
    counts: dict[tuple[str, str], list[int]] = defaultdict(lambda: [0, 0])
    for row in TRANSFERS:
        counts[f"{row.attack} on {row.source}", row.method][0] += row.shown
        counts[f"{row.attack} on {row.source}", row.method][1] += row.judged
    trace = drawn["matrix"].plot["data"][0]
    found = {
        (source, method): value
        for source, line in zip(trace["y"], trace["z"], strict=True)
        for method, value in zip(trace["x"], line, strict=True)
    }
    assert found.pop(("gcg on uce", "uce")) is None
    assert found == {pair: shown / judged if judged else None for pair, (shown, judged) in counts.items()}
    assert [row[4:] for row in drawn["matrix"].rows] == [(row.prompts, row.judged, row.shown) for row in TRANSFERS]


def test_the_tables_below_figures_are_what_the_figures_draw(drawn: dict[str, Figure], page: Page) -> None:
    for figure in drawn.values():
        first = [_text(value) for value in figure.rows[0]]
        table = next(table for table in page.tables if [list(figure.header), first] == table[:2])
        assert table[1:] == [[_text(value) for value in row] for row in figure.rows]


def _text(value: Any) -> str:
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def cells_of(content: RunContent) -> dict[str, list[dict[str, str]]]:
    """The CSV of all tables: by the name of a table its rows, each by the names of columns."""
    found: dict[str, dict[str, dict[str, str]]] = defaultdict(lambda: defaultdict(dict))
    for line in csv.DictReader(io.StringIO(tables_csv([content]))):
        assert line["run"] == content.name
        found[line["table"]][line["row"]][line["column"]] = line["value"]
    return {name: list(by_row.values()) for name, by_row in found.items()}


def test_the_csv_of_all_tables_has_every_figure_as_it_is_drawn_and_in_full(
    content: RunContent, drawn: dict[str, Figure]
) -> None:
    """The figures' own numbers are recomputed above."""
    found = cells_of(content)
    assert found.keys() - drawn.keys() == {"leaderboard", "attacks"}
    for name, figure in drawn.items():
        expected = [["" if value is None else str(value) for value in row] for row in figure.rows]
        assert [list(row.values()) for row in found[name]] == expected
        assert [tuple(row) for row in found[name]] == [figure.header] * len(expected)


def test_the_csv_of_all_tables_has_the_leaderboard_with_costs_and_changes(content: RunContent) -> None:
    board = {row["method"]: row for row in cells_of(content)["leaderboard"]}
    errs = {method: fmean(_err(method, concept) for concept in CONCEPTS) for method in METHODS}
    for i, method in enumerate(METHODS):
        row = board[method]
        assert float(row["err_mean"]) == pytest.approx(errs[method])
        assert [float(row[name]) for name in ("challenge_all", "challenge_unet")] == [1e-9, 1e-9]
        assert float(row["relative_l2"]) == pytest.approx(0.01 * (i + 1)) and float(row["global_l2"]) == 1.0
        assert float(row["seconds"]) == {"esd": 30.0, "uce": 2.0}[method]
        shares = {axis: fmean(_share(method, concept, axis) for concept in CONCEPTS) for axis in AXES}
        assert {axis: float(row[axis]) for axis in AXES} == pytest.approx(shares)
        assert float(row["err_of_means"]) == pytest.approx(harmonic_mean(list(shares.values())))
        assert float(row["low"]) <= errs[method] <= float(row["high"])
    other = min(METHODS, key=errs.__getitem__)
    assert float(board[other]["difference"]) == pytest.approx(min(errs.values()) - max(errs.values()))


def _share(method: str, concept: str, axis: str) -> float:
    """Of right answers."""
    of = [r["present"] for r in rows() if (r["method"], r["concept"], r["axis"]) == (method, concept, axis)]
    return fmean(present is not (axis in TARGET_AXES) for present in of)


def test_the_csv_of_all_tables_has_attacks_counted_instance_by_instance(content: RunContent) -> None:
    found = {(row["method"], row["attack"]): row for row in cells_of(content)["attacks"]}
    for result in ATTACKS:
        row = found[result.method, result.attack]
        pre, post = ([getattr(one, name) for one in result.instances] for name in ("pre", "post"))
        rate = "" if None in post else str(sum(map(bool, post)) / len(post))
        assert (row["pre_asr"], row["judged"]) == (str(sum(pre) / len(pre)), str(len(pre)))
        static, adaptive = (rate, "") if result.kind == "static" else ("", rate)
        assert (row["static_post_asr"], row["adaptive_post_asr"]) == (static, adaptive)
        assert (row["unknown"], row["unjudged"], row["concepts"]) == (str(post.count(None)), "0", "1")
        assert (row["calls"], row["seconds"], row["out_of_budget"]) == (str(result.calls), str(result.seconds), "0")


def test_the_csv_of_all_tables_has_judges_and_how_they_differ() -> None:
    """Wilson's interval of 9 of 10 is 0.596 to 0.982, of 18 of 20 0.699 to 0.972, of 20 of 20 0.839 to 1."""
    measured = {"cat": Accuracy.counted(9, 10, 20, 20, 1), "bus": Accuracy.counted(9, 10, 18, 20, 0)}
    named = dict.fromkeys(("judge_version", "weights", "base_id", "recipe_id", "prompts_sha256"), "x")
    calibration = Calibration(judge="=judge", thresholds={}, accuracy=measured, **named)
    answers = [row | {"judge": "second", "present": not row["present"]} for row in rows()[:7]]
    table = pa.Table.from_pylist([*rows(), *answers], schema=SCHEMA)
    found = cells_of(run_content(table=table, calibrations=(calibration,)))
    together, cat, bus = found["judges"]
    assert [row["concept"] for row in found["judges"]] == ["(all together)", "cat", "bus"]
    assert together["judge"] == "'=judge"  # no formula
    numbers = (
        "recall",
        "recall_low",
        "recall_high",
        "own",
        "specificity",
        "specificity_low",
        "specificity_high",
        "others",
    )
    for row, expected in (
        (together, (0.9, 0.699, 0.972, 20, 38 / 40)),
        (cat, (0.9, 0.596, 0.982, 10, 1.0, 0.839, 1.0, 20)),
        (bus, (0.9, 0.596, 0.982, 10, 0.9, 0.699, 0.972, 20)),
    ):
        values = [float(row[name]) for name in numbers[: len(expected)]]
        assert values == pytest.approx(expected, abs=6e-4)
    assert (cat["unreadable"], together["unreadable"], together["others"]) == ("1", "1", "40")
    assert found["disagreement"] == [{"first": "judge", "second": "second", "images": "7", "differ": "7"}]


def test_each_method_has_its_costs_and_its_scores_by_concept_the_worst_first(content: RunContent, page: Page) -> None:
    """In the order of the leaderboard, after the tables of it and of concepts."""
    methods = [row.method for row in content.rows if row.method != "base"]
    for method, (header, *lines) in zip(methods, page.tables[2:4], strict=True):
        assert header == ["concept", *AXES, "ERR", "95 % interval", "images"]
        errs = {concept: _err(method, concept) for concept in CONCEPTS}
        assert {line[0] for line in lines} == set(CONCEPTS)
        assert [errs[line[0]] for line in lines] == pytest.approx(sorted(errs.values()))
        for concept, *cells in lines:
            assert cells[5] == f"{errs[concept]:.3f}"
            assert cells[:5] == [f"{_share(method, concept, axis):.3f}" for axis in AXES]


def test_two_judges_differ_where_one_answers_the_opposite() -> None:
    found = rows()
    flipped = [row | {"judge": "second", "present": row["present"] is (i % 5 != 0)} for i, row in enumerate(found)]
    table = pa.Table.from_pylist([*found, *flipped], schema=SCHEMA)
    html = report_html([run_content(found, table=table)], "title")
    differ = sum(row["present"] is not (row["present"] is (i % 5 != 0)) for i, row in enumerate(found))
    assert f"judge and second differ in {differ} of {len(found)} answers" in html


def test_the_markdown_has_the_numbers_of_the_page(content: RunContent, page: Page) -> None:
    header, _, *board = (line for line in scores_markdown([content]).splitlines() if line.startswith("|"))
    columns = [cell.strip() for cell in header.strip("|").split("|")]
    shown = {line[0]: line for line in page.tables[0][1:]}
    for line in board:
        cells = dict(zip(columns, (cell.strip() for cell in line.strip("|").split("|")), strict=True))
        of_page = dict(zip(page.tables[0][0], shown[cells["method"]], strict=True))
        same = ("concepts", *AXES, "ERR mean", "95 % interval", "ERR of means")
        assert [cells[name] for name in same] == [of_page[name] for name in same]
        numbers = re.findall(r"-?\d\.\d{3}", cells["difference"])
        assert numbers == re.findall(r"-?\d\.\d{3}", of_page["difference to the best"])
