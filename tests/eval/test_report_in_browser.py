"""The report as people use it, in headless Chromium: sorting, filtering, images, colours, keyboard; no request."""

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from report_runs import HOSTILE, MARKUP, METHODS, named_by_a_stranger, rows, run_content

from efface.concepts.prompts import TARGET_AXES
from efface.eval.report.write import write_report
from efface.text import shown

if TYPE_CHECKING:
    from playwright.sync_api import Page

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)

Open = Callable[..., "Page"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report([run_content(rows(prompt=HOSTILE), problems=(HOSTILE,))], path)
    return path


@pytest.fixture
def page(browser: Any, file: Path) -> Iterator["Page"]:
    """The report, light."""
    with opened_page(browser, file) as opened:
        yield opened


@contextmanager
def opened_page(browser: Any, file: Path, scheme: str = "light", width: int = 1200) -> Iterator["Page"]:
    """A report; afterwards there must have been no error and no request but for the file itself."""
    opened = browser.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})
    errors: list[str] = []
    opened.on("console", lambda message: errors.append(message.text))
    opened.on("pageerror", lambda error: errors.append(str(error)))
    opened.on("dialog", lambda dialog: (errors.append("a dialog"), dialog.dismiss()))
    requests: list[str] = []
    opened.on("request", lambda request: requests.append(request.url))
    opened.goto(file.as_uri())
    yield opened
    opened.close()
    assert errors == []
    assert [url for url in requests if not url.startswith(("data:", "blob:")) and url != file.as_uri()] == []


def first_column(page: "Page") -> list[str]:
    return page.locator("#board-0 tbody tr:visible th").all_text_contents()


def test_a_header_sorts_by_mouse_and_by_keyboard(page: "Page") -> None:
    header = page.locator("#board-0 thead th", has_text="ERR mean")
    header.get_by_role("button").click()
    values = [float(text) for text in page.locator("#board-0 tbody td:nth-child(8)").all_text_contents()]
    assert values == sorted(values, reverse=True)
    header.get_by_role("button").press("Enter")
    assert page.locator("#board-0 tbody td:nth-child(8)").all_text_contents() == [f"{v:.3f}" for v in values[::-1]]
    assert header.get_attribute("aria-sort") == "ascending"


def test_the_filter_keeps_the_methods_that_match(page: "Page") -> None:
    page.get_by_label("Filter", exact=True).fill("ES")
    assert first_column(page) == ["esd"]
    page.get_by_label("Filter", exact=True).fill("")
    assert set(first_column(page)) == {"base", *METHODS}


def test_images_can_be_narrowed_to_one_method_and_to_what_costs_score(page: "Page") -> None:
    form = page.locator("form.strips")
    form.get_by_label("Method").select_option("esd")
    form.get_by_label("only what costs score").press("Space")
    failing = sum(row["method"] == "esd" and row["present"] is (row["axis"] in TARGET_AXES) for row in rows())
    assert page.locator("#strip-0 caption").text_content() == f"{min(20, failing)} of {failing} rows"
    heads = page.locator("#strip-0 thead th").all_text_contents()
    assert heads == ["question", "base", "esd"]
    assert page.locator("#strip-0 tbody td.failure").count() == min(20, failing)
    form.get_by_label("Concept").select_option("cat")
    form.get_by_label("Axis").select_option("forget")
    assert page.locator("#strip-0 tbody tr").count() <= 3


def test_a_concept_leads_to_its_images_by_one_method(page: "Page") -> None:
    page.get_by_label("Filter by concept or method").fill("bus")
    lines = page.locator("#concepts-table-0 tbody tr:visible")
    assert set(lines.locator("th:first-child").all_text_contents()) == {"bus"} and lines.count() == len(METHODS)
    lines.filter(has_text="uce").get_by_role("link").press("Enter")
    assert page.locator("form.strips").get_by_label("Concept").input_value() == "bus"
    assert page.locator("#strip-0 thead th").all_text_contents() == ["question", "base", "uce"]
    questions = {(r["axis"], r["asked_concept"], r["seed"]) for r in rows() if r["concept"] == "bus"}
    assert page.locator("#strip-0 caption").text_content() == f"{len(questions)} of {len(questions)} rows"


def test_more_rows_are_shown_on_request(page: "Page") -> None:
    assert page.locator("#strip-0 tbody tr").count() == 20
    page.get_by_role("button", name="Show more").press("Enter")
    assert page.locator("#strip-0 tbody tr").count() == 30
    assert page.get_by_role("button", name="Show more").is_hidden()


def test_dark_and_light_change_page_and_figures(page: "Page") -> None:
    def colours() -> list[str]:
        page.wait_for_selector(".plot .xtick text, .plot .xaxislayer-above text")
        return [
            page.evaluate("getComputedStyle(document.body).backgroundColor"),
            page.evaluate("getComputedStyle(document.querySelector('.plot .xaxislayer-above text')).fill"),
        ]

    page.locator(".plot").first.scroll_into_view_if_needed()
    light = colours()
    page.get_by_role("button", name="Dark").press("Enter")
    page.wait_for_timeout(300)
    assert all(before != after for before, after in zip(light, colours(), strict=True))
    assert page.get_by_role("button", name="Light").get_attribute("aria-pressed") == "true"


def test_every_figure_is_drawn_and_described(page: "Page") -> None:
    for plot in drawn_plots(page):
        assert re.search(r"\w+ .*\w", plot.get_attribute("aria-label") or "")


def drawn_plots(page: "Page") -> Iterator[Any]:
    """All figures, each after it has been drawn."""
    plots = page.locator(".plot")
    for i in range(plots.count()):
        plots.nth(i).scroll_into_view_if_needed()
        plots.nth(i).locator("svg").first.wait_for()
        yield plots.nth(i)


def test_a_name_that_is_markup_is_a_name_in_figures_and_leads_to_its_images(browser: Any, tmp_path: Path) -> None:
    write_report([named_by_a_stranger()], tmp_path / "report.html")
    with opened_page(browser, tmp_path / "report.html") as page:
        names = [text for plot in drawn_plots(page) for text in plot.locator("svg text").all_text_contents()]
        assert shown(MARKUP) in names and page.locator(".plot svg a").count() == 0
        page.locator("#concepts-table-0").get_by_role("link").first.press("Enter")
        form = page.locator("form.strips")
        assert shown(MARKUP) in (form.get_by_label("Concept").input_value(), form.get_by_label("Method").input_value())


def test_a_method_leads_to_what_there_is_of_it(page: "Page") -> None:
    parts = page.locator("details.method")
    assert parts.count() == len(METHODS) and not parts.first.get_by_role("link").first.is_visible()
    page.locator("#board-0").get_by_role("link", name="esd").press("Enter")
    part = parts.filter(has_text="esd: ERR")
    assert part.locator("tbody tr").first.is_visible() and part.locator("tbody tr").count() == 2
    part.get_by_role("link").first.press("Enter")
    assert page.locator("form.strips").get_by_label("Method").input_value() == "esd"


def test_paper_is_light_however_dark_the_screen_is(browser: Any, file: Path) -> None:
    """By the choice of the system, and by the button; colours of figures too."""
    ground, text = "getComputedStyle(document.body).backgroundColor", "getComputedStyle(document.body).color"
    tick = "getComputedStyle(document.querySelector('.plot .xaxislayer-above text')).fill"
    with opened_page(browser, file, "dark") as page:
        page.locator(".plot").first.scroll_into_view_if_needed()
        page.wait_for_selector(".plot .xaxislayer-above text")
        for pressed in (False, True):
            if pressed:
                page.get_by_role("button", name="Light").press("Enter")
                page.get_by_role("button", name="Dark").press("Enter")
            dark = [page.evaluate(what) for what in (ground, text)]
            page.emulate_media(media="print")
            page.wait_for_timeout(300)
            light = [page.evaluate(what) for what in (ground, text)]
            assert light == ["rgb(255, 255, 255)", "rgb(27, 27, 27)"] != dark and page.evaluate(tick) == light[1]
            page.emulate_media(media="screen")
            page.evaluate("dispatchEvent(new Event('beforeprint'))")  # as a browser says before it lays out for paper
            page.wait_for_timeout(300)
            assert page.evaluate(tick) == light[1]
            page.evaluate("dispatchEvent(new Event('afterprint'))")
            page.wait_for_timeout(300)
            assert [page.evaluate(what) for what in (ground, text)] == dark and page.evaluate(tick) == dark[1]


@pytest.mark.parametrize(("width", "abreast"), [(1800, True), (1000, False)])
def test_two_runs_are_side_by_side_where_there_is_room(browser: Any, tmp_path: Path, width: int, abreast: bool) -> None:
    write_report([run_content(), run_content(name="other")], tmp_path / "report.html")
    with opened_page(browser, tmp_path / "report.html", width=width) as page:
        first, second = (box for run in page.locator("section.run").all() if (box := run.bounding_box()))
        assert (first["y"] == second["y"] and first["x"] + first["width"] <= second["x"]) is abreast
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_texts_of_others_stay_texts(page: "Page") -> None:
    assert "alert('x')" in (page.locator(".problems li").text_content() or "")
    assert "alert('x')" in (page.locator("#strip-0 .prompt").first.text_content() or "")
    assert page.locator("#strip-0 script, .problems script").count() == 0


def test_the_page_can_be_gone_through_by_keyboard(page: "Page") -> None:
    """The first stop leads past the header, and every control is reached."""
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip"
    reached = set()
    for _ in range(150):
        page.keyboard.press("Tab")
        reached.add(page.evaluate("document.activeElement.tagName + (document.activeElement.name || '')"))
    assert {"BUTTON", "INPUT", "SUMMARY", "SELECTconcept", "SELECTmethod"} <= reached


def test_a_table_that_is_cut_off_says_that_it_can_be_scrolled(browser: Any, tmp_path: Path) -> None:
    write_report([run_content()], tmp_path / "report.html")
    for width, is_cut in ((600, "true"), (2400, "false")):
        with opened_page(browser, tmp_path / "report.html", width=width) as page:
            page.add_style_tag(content="main { max-width: none !important; }")
            cut = "document.querySelector('.scroll').hasAttribute('data-wide')"
            page.wait_for_function(f"{cut} === {is_cut}")
