"""The files of a report: every number is that of the table, texts of others stay text, and nothing is fetched."""

import csv
import html
import io
import json
import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean, harmonic_mean
from typing import Any

import pytest
from PIL import Image
from report_runs import (
    CONCEPTS,
    HOSTILE,
    JUDGE,
    MARKUP,
    METHODS,
    images,
    named_by_a_stranger,
    rows,
    run_content,
)

from efface.concepts.prompts import AXES, KEPT_AXES, TARGET_AXES
from efface.errors import UserError
from efface.eval.calibration.calibration import Calibration
from efface.eval.calibration.judge_accuracy import Accuracy
from efface.eval.report.figures import figures
from efface.eval.report.page import report_html
from efface.eval.report.thumbnails import COLUMNS, ROWS, make_sprites
from efface.eval.report.write import is_report_of, write_report
from efface.text import shown


class Page(HTMLParser):
    """The tables of a page as rows of texts, the names of elements, and the data of the script."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: list[list[list[str]]] = []
        self.elements: list[str] = []
        self.loaded: list[str] = []
        self.linked_concepts: list[str | None] = []
        self.linked_methods: list[str | None] = []
        self._cell: list[str] | None = None
        self._script = False
        self.data: Any = None
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        given = dict(attributes)
        self.loaded += [value for name in ("src", "href") if (value := given.get(name))]
        self.linked_concepts += [given["data-concept"]] if "data-concept" in given else []
        self.linked_methods += [given["data-method"]] if "data-method" in given else []
        self._script = tag == "script" and given.get("type") == "application/json"
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self._cell = []

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th") and self._cell is not None:
            self.tables[-1][-1].append("".join(self._cell).strip())
            self._cell = None

    def handle_data(self, data: str) -> None:
        if self._script:
            self.data = json.loads(data)
            self._script = False
        if self._cell is not None:
            self._cell.append(data)


def recomputed(found: list[dict[str, Any]], method: str, concept: str, axis: str) -> float:
    """Share of right answers, from the rows alone."""
    right = [
        row["present"] is not (axis in TARGET_AXES)
        for row in found
        if (row["method"], row["concept"], row["axis"]) == (method, concept, axis)
    ]
    return fmean(right)


def test_the_leaderboard_and_every_concept_show_the_numbers_of_the_table() -> None:
    found = rows()
    page = Page(report_html([run_content(found)], "title"))
    scores = {
        method: {concept: [recomputed(found, method, concept, axis) for axis in AXES] for concept in CONCEPTS}
        for method in METHODS
    }
    board = {line[0]: line for line in page.tables[0][1:]}
    assert set(board) == {"base", *METHODS}
    for method, by_concept in scores.items():
        means = [fmean(values) for values in zip(*by_concept.values(), strict=True)]
        errs = [harmonic_mean(values) for values in by_concept.values()]
        assert board[method][2:7] == [f"{mean:.3f}" for mean in means]
        assert board[method][7] == f"{fmean(errs):.3f}"
        assert board[method][10] == f"{harmonic_mean(means):.3f}"
    by_concept = {(concept, method): cells for concept, method, *cells in page.tables[1][1:]}
    assert by_concept.keys() == {(concept, method) for concept in CONCEPTS for method in METHODS}
    for (concept, method), cells in by_concept.items():
        values = scores[method][concept]
        assert cells[:6] == [f"{value:.3f}" for value in (*values, harmonic_mean(values))]
    best = [max(METHODS, key=lambda method: float(by_concept[c, method][5])) for c in sorted(CONCEPTS)]
    assert [line[1] for line in page.tables[1][1::2]] == best


def test_the_csv_holds_every_score_in_full(tmp_path: Path) -> None:
    found = rows()
    _, path, *_ = write_report([run_content(found)], tmp_path / "report.html")
    lines = list(csv.DictReader(io.StringIO(path.read_text())))
    for line in lines:
        if line["concept"] in CONCEPTS and line["axis"] in AXES:
            expected = recomputed(found, line["method"], line["concept"], line["axis"])
            assert float(line["score"]) == pytest.approx(expected, abs=1e-12)
    assert len(lines) == len(METHODS) * (len(CONCEPTS) * 6 + 5 + 2)


def with_shown() -> list[dict[str, Any]]:
    """The rows, of which those that ask for a tree are held out, and a shown concept that is always there."""
    kept = [row for row in rows() if row["axis"] in KEPT_AXES]
    return [
        *(row | {"held_out": True if row["axis"] in KEPT_AXES else None} for row in rows()),
        *(row | {"held_out": False, "asked_concept": "dog", "prompt_id": "dog", "present": True} for row in kept),
    ]


def test_what_methods_may_see_stands_beside_in_every_file_and_changes_no_other_number(tmp_path: Path) -> None:
    plain, content = run_content(), run_content(with_shown())
    header, *board = Page(report_html([content], "title")).tables[0]
    assert header[2:9] == [*AXES, "adjacent_shown", "retain_shown"]
    without = Page(report_html([plain], "title")).tables[0]
    assert [line[:7] + line[9:] for line in [header, *board]] == without
    assert {line[0]: line[7:9] for line in board} == {name: ["1.000", "1.000"] for name in ("base", *METHODS)}
    _, table, markdown, _ = write_report([content], tmp_path / "report.html")
    lines = [line for line in csv.DictReader(io.StringIO(table.read_text())) if line["axis"] == "retain_shown"]
    assert [(line["method"], line["concept"], line["score"]) for line in lines] == [
        (method, concept, "1.0") for method in METHODS for concept in (*sorted(CONCEPTS), "(mean)")
    ]
    head, _, first = markdown.read_text().splitlines()[2:5]
    assert head.split(" | ")[6:9] == ["retain", "adjacent_shown", "retain_shown"]
    assert first.split(" | ")[7:9] == ["1.000", "1.000"]
    assert "_shown" not in write_report([plain], tmp_path / "plain.html")[2].read_text()


def test_judges_are_shown_with_how_certain_their_accuracy_is() -> None:
    """Wilson's interval of 9 of 10 is 0.596 to 0.982, of 18 of 20 0.699 to 0.972, of 20 of 20 0.839 to 1."""
    measured = {"cat": Accuracy.counted(9, 10, 20, 20, 0), "bus": Accuracy.counted(9, 10, 18, 20, 0)}
    calibration = Calibration(
        judge=JUDGE,
        weights="w",
        judge_version="1",
        base_id="b",
        recipe_id="r",
        prompts_sha256="p",
        thresholds={},
        accuracy=measured,
    )
    page = Page(report_html([run_content(calibrations=(calibration,))], "title"))
    (table,) = (table for table in page.tables if table and "found in its own images" in table[0])
    assert table[1][0] == "all together" and table[1][3] == "20" and table[1][6] == "40"
    assert table[1][1:3] == ["0.900", "0.699–0.972"]
    assert table[2] == ["bus", "0.900", "0.596–0.982", "10", "0.900", "0.699–0.972", "20"]
    assert table[3] == ["cat", "0.900", "0.596–0.982", "10", "1.000", "0.839–1.000", "20"]


def test_scores_corrected_for_the_judges_errors_stand_below_its_calibration() -> None:
    """A judge that was never wrong corrects nothing: the estimates are the scores."""
    content = run_content()
    never_wrong = Accuracy.counted(10**6, 10**6, 10**6, 10**6, 0)
    facts = {"weights": "w", "judge_version": "1", "base_id": "b", "recipe_id": "r", "prompts_sha256": "p"}
    accuracy = dict.fromkeys((*CONCEPTS, "tree"), never_wrong)
    calibration = Calibration(judge=JUDGE, thresholds={}, accuracy=accuracy, **facts)
    page = Page(report_html([replace(content, calibrations=(calibration,))], "title"))
    (table,) = (table for table in page.tables if table and "method, corrected" in table[0])
    board = {line[0]: line for line in page.tables[0][1:]}
    assert {line[0] for line in table[1:]} == {"base", *METHODS}
    for method, *estimates in table[1:]:
        assert [float(estimate.split(" ")[0]) for estimate in estimates] == pytest.approx(
            [float(score) for score in board[method][2:7]], abs=1.1e-3
        )
        assert all(" to " in estimate for estimate in estimates)
    assert "method, corrected" not in report_html([content], "title")


def test_strips_hold_every_answer_beside_the_base_and_begin_with_what_most_models_get_wrong() -> None:
    found = rows()
    (run,) = Page(report_html([run_content(found)], "title")).data
    strips = run["strips"]
    text = strips["texts"].__getitem__
    assert strips["columns"][0] == "base" and set(strips["columns"][1:]) == set(METHODS)
    answers = {
        (r["method"], r["concept"], r["axis"], r["asked_concept"], r["prompt"], r["seed"]): r["present"] for r in found
    }
    seen = 0
    costs = []
    for i, (concept, axis, asked, prompt, seed) in enumerate(strips["questions"]):
        question = (text(concept), text(axis), text(asked), text(prompt), seed)
        costs.append(0)
        for column, cells in zip(strips["columns"], strips["cells"], strict=True):
            state, score, thumbnail, error = cells[i]
            present = answers[column, *question]
            assert (state, score, error) == (int(present), 0.75 if present else 0.25, None)
            assert thumbnail is not None
            costs[-1] += column != "base" and present is (question[1] in TARGET_AXES)
            seen += 1
    assert seen == len(found)
    assert costs == sorted(costs, reverse=True) and costs[0] == 2


def test_what_is_wrong_and_counts_nowhere_is_said_and_comes_after_what_costs_score() -> None:
    """A dog that a method may see is gone from every image; ERR goes by the trees, which are held out."""
    found = [row | {"present": False} if row["asked_concept"] == "dog" else row for row in with_shown()]
    (run,) = Page(report_html([run_content(found)], "title")).data
    strips = run["strips"]
    text = strips["texts"].__getitem__
    asked = [text(question[2]) for question in strips["questions"]]
    assert {asked[i] for i in strips["uncounted"]} == {"dog"} and asked.count("dog") == len(strips["uncounted"])
    costly = sum(
        any(
            r["present"] is (r["axis"] in TARGET_AXES)
            for r in found
            if r["method"] != "base"
            and [r[k] for k in ("concept", "axis", "asked_concept", "prompt", "seed")]
            == [*(text(number) for number in question[:4]), question[4]]
        )
        for question, name in zip(strips["questions"], asked, strict=True)
        if name != "dog"
    )
    assert "dog" not in asked[:costly] and asked[costly] == "dog"


def test_every_image_is_a_file_beside_the_page_where_that_is_requested(tmp_path: Path) -> None:
    content = run_content()
    plain, *_ = write_report([content], tmp_path / "plain.html")
    assert all(len(cell) == 4 for cells in Page(plain.read_text()).data[0]["strips"]["cells"] for cell in cells)
    path, *_, folder = write_report([content], tmp_path / "a report.html", with_images=True)
    (run,) = Page(path.read_text()).data
    assert run["images"] == "a%20report-images" and folder == tmp_path / "a report-images"
    linked = {cell[4] for cells in run["strips"]["cells"] for cell in cells}
    assert linked == {file.name for file in folder.iterdir()} and len(linked) == content.table.num_rows
    assert {file.read_bytes() for file in folder.iterdir()} == {png for _, png in images(content.table)}
    (tmp_path / "taken-images").write_text("mine")
    with pytest.raises(UserError, match="taken-images: is there"):
        write_report([content], tmp_path / "taken.html", with_images=True)
    assert not (tmp_path / "taken.html").exists()


def test_the_heat_maps_show_the_change_of_presence() -> None:
    """Of every method, in the order of the leaderboard; the table below has the same."""
    found, content = rows(), run_content()
    (run,) = Page(report_html([content], "title")).data
    methods = [row.method for row in content.rows if row.method != "base"]
    assert len(methods) == len(METHODS)
    tables = {figure.id: figure.rows for figure in figures(content)}
    for number, method in enumerate(methods, start=1):
        trace = run["figures"][f"interference-{number}"]["data"][0]
        changes = {
            (target, asked): fmean(present) - 1
            for target in CONCEPTS
            for asked in (*CONCEPTS, "tree")
            if (present := answers_of(found, method, target, asked))
        }
        drawn = {
            (target, asked): value
            for target, line in zip(trace["y"], trace["z"], strict=True)
            for asked, value in zip(trace["x"], line, strict=True)
            if value is not None
        }
        assert drawn == pytest.approx(changes) and len(changes) == 2 * len(CONCEPTS)
        assert {row[:2]: row[2] for row in tables[f"interference-{number}"]} == pytest.approx(changes)


def answers_of(found: list[dict[str, Any]], method: str, target: str, asked: str) -> list[bool]:
    """Whether its images show what is asked, of the models that forget a concept."""
    key = method, target, asked
    return [row["present"] for row in found if (row["method"], row["concept"], row["asked_concept"]) == key]


def test_texts_of_others_are_neither_markup_nor_script_nor_terminal_codes(tmp_path: Path) -> None:
    found = rows(prompt=HOSTILE)
    plain = Page(report_html([run_content()], "title"))
    hostile = run_content(found, name=HOSTILE, path=HOSTILE, problems=(HOSTILE,), provenance={HOSTILE: HOSTILE})
    text = report_html([hostile], HOSTILE)
    page = Page(text)
    assert page.elements.count("script") == plain.elements.count("script")
    assert "alert('x')</script>" not in text
    before_data, _, data = text.partition('<script type="application/json"')
    # nothing that could end a script element ("</script " without its bracket does too) or begin a comment in it
    assert not set("<>&") & set(data.partition(">")[2].partition("</script>")[0])
    assert "\x1b" not in before_data and "\u202e" not in before_data
    assert f"{shown(HOSTILE)} of forget for cat" in page.data[0]["strips"]["texts"]
    _, csv_path, markdown, _ = write_report([hostile], tmp_path / "report.html")
    assert "<script>" not in markdown.read_text() and "\x1b" not in markdown.read_text()
    assert not re.search(r"^[=+@-]", csv_path.read_text(), re.MULTILINE)


def texts_of(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
    """Every text in some JSON, with the key that it is under."""
    if isinstance(value, str):
        yield name, value
    else:
        for key, item in value.items() if isinstance(value, dict) else ((name, item) for item in value):
            if isinstance(item, str | dict | list):
                yield from texts_of(item, key)


def test_names_in_figures_and_strips_are_texts_without_markup_and_marks_of_direction() -> None:
    page = Page(report_html([named_by_a_stranger()], "title"))
    (run,) = page.data
    found = list(texts_of(run["figures"]))
    assert {text for key, text in found if key != "hovertemplate" and set("<>") & set(text)} == set()
    plain = shown(MARKUP)
    assert {key for key, text in found if html.unescape(text) == plain} >= {"x", "y", "text", "name"}
    drawn = {
        name for name, figure in run["figures"].items() if any(plain in html.unescape(t) for _, t in texts_of(figure))
    }
    assert drawn >= {"seconds", "interference-1", "interference-2", "matrix", "groups", "losses"}
    assert plain in run["strips"]["texts"] and plain in run["strips"]["columns"]
    assert not [text for _, text in texts_of(run) if "\u202e" in text]
    assert plain in page.linked_concepts and plain in page.linked_methods  # they lead to what the strips call so


def test_images_that_are_gone_are_counted_apart_from_those_without_space_and_not_linked(tmp_path: Path) -> None:
    table = run_content().table
    of_esd = {row["image_sha256"] for row in table.to_pylist() if row["method"] == "esd"}
    content = run_content(images=lambda: (image for image in images(table) if image[0] not in of_esd))
    path, *_ = write_report([content], tmp_path / "report.html", with_images=True)
    said = " ".join(path.read_text().split())
    assert f"{len(of_esd)} images are gone or damaged" in said and "for want of space" not in said
    strips = Page(path.read_text()).data[0]["strips"]
    for column, cells in zip(strips["columns"], strips["cells"], strict=True):
        assert {len(cell) for cell in cells} == {4 if column == "esd" else 5}


def test_a_cell_that_would_be_a_formula_is_none_in_the_csv(tmp_path: Path) -> None:
    _, path, *_ = write_report([run_content(name="=1+1")], tmp_path / "report.html")
    assert {line["run"] for line in csv.DictReader(io.StringIO(path.read_text()))} == {"'=1+1"}


def test_nothing_is_loaded_from_elsewhere() -> None:
    text = report_html([run_content()], "title")
    assert [target for target in Page(text).loaded if not target.startswith(("#", "data:"))] == []
    assert "default-src 'none'" in text and "connect-src" not in text


def test_a_run_without_any_result_gives_a_page_that_says_so() -> None:
    empty = run_content().table.slice(0, 0)
    content = run_content(
        table=empty,
        rows=(),
        scores={},
        models=(),
        images=lambda: iter(()),
        problems=("judging: 0 of 9 images are done",),
    )
    text = report_html([content], "title")
    assert "judging: 0 of 9 images are done" in text
    assert "No method has been judged to the end." in text


def test_a_report_replaces_a_report_and_nothing_else(tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    write_report([run_content()], out)
    write_report([run_content()], out)
    assert is_report_of(out, "") and not is_report_of(out, "another")
    out.write_text("<!doctype html><p>mine</p>")
    with pytest.raises(UserError, match="no report"):
        write_report([run_content()], out)
    assert out.read_text() == "<!doctype html><p>mine</p>"


@pytest.mark.parametrize(
    ("suffix", "mine"), [(".md", "# My project\n\n## Use\n"), (".md", "## Notes\n"), (".csv", "a,b\n")]
)
def test_a_file_of_the_user_beside_a_report_is_kept(suffix: str, mine: str, tmp_path: Path) -> None:
    """README.html comes with README.md."""
    (tmp_path / f"README{suffix}").write_text(mine)
    with pytest.raises(UserError, match=f"README{suffix}: is there"):
        write_report([run_content()], tmp_path / "README.html")
    assert [path.name for path in tmp_path.iterdir()] == [f"README{suffix}"]
    assert (tmp_path / f"README{suffix}").read_text() == mine


def test_a_report_with_problems_is_replaced_too(tmp_path: Path) -> None:
    content = replace(run_content(), problems=("one thing", "and another"))
    write_report([content], tmp_path / "report.html")
    assert write_report([content, run_content()], tmp_path / "report.html")


def test_thumbnails_are_where_their_numbers_say() -> None:
    table = run_content().table
    wanted = sorted(set(table["image_sha256"].to_pylist()))
    sprites = make_sprites(wanted, images(table), 2**20)
    colours = {sha: Image.open(io.BytesIO(png)).getpixel((0, 0)) for sha, png in images(table)}
    assert sprites.side == 64 and sprites.left_out == 0
    for sha, number in sprites.positions.items():
        picture = Image.open(io.BytesIO(sprites.pictures[number // (COLUMNS * ROWS)]))
        place = number % (COLUMNS * ROWS)
        middle = (place % COLUMNS * 64 + 32, place // COLUMNS * 64 + 32)
        assert all(abs(a - b) < 12 for a, b in zip(picture.getpixel(middle), colours[sha], strict=True))


def test_thumbnails_shrink_to_fit_and_the_most_important_are_kept() -> None:
    table = run_content().table
    wanted = sorted(set(table["image_sha256"].to_pylist()))
    sprites = make_sprites(wanted, images(table), 600)
    assert sprites.side == 32
    kept = list(sprites.positions)
    assert 0 < len(kept) < len(wanted) and kept == wanted[: len(kept)]
    assert sprites.left_out == len(wanted) - len(kept)


def test_with_one_method_there_is_no_difference_to_show() -> None:
    content = run_content()
    (base, best, _) = content.rows
    alone = replace(content, rows=(base, replace(best, difference=None)))
    columns = [Page(report_html([run], "title")).tables[0][0] for run in (content, alone)]
    assert "difference to the best" in columns[0]
    assert columns[1] == [name for name in columns[0] if name != "difference to the best"]
    cells = Page(report_html([alone], "title")).tables[0][2]
    assert len(cells) == len(columns[1]) and dict(zip(columns[1], cells, strict=True))["ERR of means"] != ""


def test_a_logarithmic_scale_is_said_to_be_one_and_groups_of_weights_are_explained() -> None:
    drawn = {figure.id: figure for figure in figures(run_content())}
    for figure in drawn.values():
        for axis in ("xaxis", "yaxis"):
            of = figure.plot["layout"][axis]
            assert of.get("type") != "log" or "logarithmic" in of["title"]["text"]
    assert drawn["groups"].plot["layout"]["yaxis"]["type"] == "log"
    assert "xattn: cross-attention" in drawn["groups"].note
    assert drawn["groups"].note in html.unescape(report_html([run_content()], "title"))


def test_a_run_that_is_called_like_its_folder_is_named_once() -> None:
    headings = [
        re.search(r"<h2[^>]*>(.*?)</h2>", report_html([run_content(path=path)], "title"), re.S)
        for path in ("made-up", "elsewhere")
    ]
    texts = [re.sub(r"<[^>]*>", "", found[1]) for found in headings if found]
    assert texts == ["made-up", "made-up elsewhere"]
    assert "4 trained models" in report_html([run_content()], "title")
    one = replace(run_content(), models=run_content().models[:1])
    assert "1 trained model<" in report_html([one], "title")
