"""`efface report` and `efface board` on a run: what is written, what is served, and to whom."""

import json
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from command import RunEfface

from efface.cluster.run import reopen_run
from efface.errors import UserError
from efface.launch.commands.board import BoardOptions, Handler, make_server


@pytest.fixture
def run(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


@pytest.fixture
def address(run: Path) -> Iterator[str]:
    with served(run) as address:
        yield address


@contextmanager
def served(*runs: Path) -> Iterator[str]:
    with make_server(BoardOptions(runs=[str(run) for run in runs], port=0)) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


def get(address: str, path: str, **headers: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://{address}{path}", headers=headers)) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, ""


def test_report_writes_page_csv_and_markdown_into_the_run_folder(efface: RunEfface, run: Path) -> None:
    result = efface("report", run)
    assert result.code == 0
    written = [run / f"report{end}" for end in (".html", ".csv", ".md", "-tables.csv")]
    assert result.out.splitlines() == [str(path) for path in written] and all(path.is_file() for path in written)


def test_several_runs_are_one_page(efface: RunEfface, run: Path, tmp_path: Path) -> None:
    other = shutil.copytree(run, tmp_path / "other")
    out = tmp_path / "both.html"
    assert efface("report", run, other, "--out", out).code == 0
    assert out.read_text().count('<section class="run"') == 2


def test_a_report_goes_to_an_html_file(efface: RunEfface, run: Path) -> None:
    assert efface("report", run, "--out", run / "report.pdf").error_message.endswith("should end in .html")


def test_run_ends_with_a_report_and_says_where(efface: RunEfface, run: Path) -> None:
    result = efface("run", run / "campaign.yaml", "--out", run, "--workers", 0)
    assert result.code == 0 and str(run / "report.html") in result.out
    first = (run / "report.html").stat()
    assert efface("run", run / "campaign.yaml", "--out", run, "--workers", 0).code == 0
    assert (run / "report.html").stat() == first  # the results are the same, so it is not made again


def test_a_file_of_the_user_where_the_report_would_be_is_kept(efface: RunEfface, run: Path) -> None:
    (run / "report.html").write_text("mine")
    result = efface("run", run / "campaign.yaml", "--out", run, "--workers", 0)
    assert result.code == 0 and "no report" in result.err
    assert (run / "report.html").read_text() == "mine"


def test_the_board_serves_the_report_and_what_is_done_now(address: str) -> None:
    status, page = get(address, "/")
    assert status == 200 and 'id="live"' in page and "connect-src 'self'" in page
    status, text = get(address, "/status.json")
    (now,) = json.loads(text)["runs"]
    assert now["driver"] is None and now["running"] == []
    assert now["summary"]["tasks"]["judging"]["left"] == 0


def test_a_board_takes_several_runs_and_what_was_evaluated_too(
    efface: RunEfface, run: Path, base: str, tmp_path: Path
) -> None:
    delta = next(run.glob("jobs/*/delta.safetensors"))
    evaluated = tmp_path / "evaluated"
    options = ("--base", base, "--images-per-prompt", 1, "--workers", 0, "--out", evaluated)
    assert efface("evaluate", delta, *options).code == 0
    assert "1 delta to judge, images " in efface("status", evaluated).out and efface("logs", evaluated).code == 0
    with served(run, evaluated) as address:
        first, second = json.loads(get(address, "/status.json")[1])["runs"]
        assert [one["summary"]["tasks"]["judging"]["left"] for one in (first, second)] == [0, 0]
        page = get(address, "/")[1]
        assert page.count('<section class="run"') == 2 and "What to know first" not in page.partition('id="run-1"')[2]


def test_texts_of_a_run_that_is_watched_turn_nothing_around(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with served(run) as address:
        monkeypatch.setattr(
            "efface.cluster.live_run.active_driver", lambda _: "host \u202e1"
        )  # of a lease, which is a file too
        (now,) = json.loads(get(address, "/status.json")[1])["runs"]
    assert now["driver"] == "host \\u202e1"


def test_the_version_of_the_results_changes_when_there_are_new_ones(address: str, run: Path) -> None:
    before = json.loads(get(address, "/status.json")[1])["version"]
    assert json.loads(get(address, "/status.json")[1])["version"] == before
    opened = reopen_run(run)
    opened.folder.record_file(opened.plan.shards[opened.plan.jobs[0].id][0]).unlink()
    assert json.loads(get(address, "/status.json")[1])["version"] != before


def test_what_cannot_be_read_now_is_a_sentence_and_no_traceback(
    address: str, run: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(run)
    with pytest.raises(urllib.error.HTTPError) as error:
        urllib.request.urlopen(f"http://{address}/")
    assert error.value.code == 503 and "is not a run folder" in error.value.read().decode()
    assert "Traceback" not in capfd.readouterr().err


def test_a_browser_that_has_gone_is_nothing_to_speak_of(monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise BrokenPipeError

    monkeypatch.setattr(Handler, "_send", gone)
    Handler.__new__(Handler)._answer("text/plain", lambda: b"text")


def test_another_site_that_points_its_name_here_gets_nothing(address: str) -> None:
    assert get(address, "/", Host="evil.example:80")[0] == 403
    assert get(address, "/status.json", Host="evil.example")[0] == 403
    assert get(address, "/../../etc/passwd")[0] == 404


def test_a_port_in_use_is_one_sentence(address: str, run: Path) -> None:
    with pytest.raises(UserError, match="give another, or 0"):
        make_server(BoardOptions(runs=[str(run)], port=int(address.rpartition(":")[2])))
