"""The live board in headless Chromium: what is done now stands there, follows the run, and asks nobody else."""

import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from efface.launch.commands.board import BoardOptions, make_server

playwright = pytest.importorskip("playwright.sync_api", reason="the package playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine", allow_module_level=True)


@pytest.fixture
def address(finished: Path, tmp_path: Path) -> Iterator[str]:
    with served(shutil.copytree(finished, tmp_path / "run")) as address:
        yield address


@contextmanager
def served(*runs: Path) -> Iterator[str]:
    with make_server(BoardOptions(runs=[str(run) for run in runs], port=0)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/"
        server.shutdown()
        thread.join()


def test_the_board_shows_what_is_done_now_and_follows_it(address: str, tmp_path: Path) -> None:
    errors: list[str] = []
    requests: list[str] = []
    with playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page()
        page.on("console", lambda message: errors.append(message.text))
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("request", lambda request: requests.append(request.url))
        page.goto(address)
        page.get_by_text("finished").wait_for()
        bars = page.locator("#live .live-bar")
        judging = bars.filter(has_text="judging")
        assert judging.locator("progress").evaluate("(bar) => bar.value === bar.max")
        assert page.locator("#live button").count() == 0
        assert set(page.locator("#board-0 tbody th").all_text_contents()) == {"base", "uce"}
        next((tmp_path / "run" / "evaluations").rglob("*.verdicts.parquet")).unlink()
        for record in (tmp_path / "run" / "jobs").glob("*/record.json"):
            record.unlink()
        page.get_by_text("nobody works on it").wait_for(timeout=15_000)
        browser.close()
    assert errors == []
    own = {address, f"{address}status.json"}
    assert {url for url in requests if not url.startswith(("data:", "blob:"))} <= own


def test_two_runs_stand_side_by_side_in_a_wide_window(finished: Path, tmp_path: Path) -> None:
    """What they do now, and what they have found."""
    runs = [shutil.copytree(finished, tmp_path / name) for name in ("one", "two")]
    with served(*runs) as address, playwright.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1800, "height": 900})
        page.goto(address)
        page.locator("#live .live-run").nth(1).wait_for()
        for what in ("#live .live-run", "section.run"):
            first, second = (page.locator(what).nth(i).bounding_box() for i in (0, 1))
            assert first["y"] == second["y"] and first["x"] + first["width"] <= second["x"]
        browser.close()
