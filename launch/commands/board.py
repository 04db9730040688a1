"""`efface board`: the report of running campaigns, live, on a page of this machine."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from efface.errors import UserError
from efface.files import as_path
from efface.launch.command import Command
from efface.launch.terminal.tables import print_line
from efface.text import shown_in

if TYPE_CHECKING:
    from efface.cluster.run import Run

HOST = "127.0.0.1"
REBUILD_INTERVAL = 20.0
"""Seconds between two reports at least: making one reads every verdict."""


@dataclass(frozen=True, kw_only=True)
class BoardOptions:
    """Show runs live in a browser on this machine: what each worker does, the time left, and the report so far."""

    runs: Annotated[list[str], typer.Argument(help="Run folders.", metavar="RUN…")]
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port on the loopback address; 0: any free one.")] = 8420


@dataclass
class Board:
    """What is served: reads run folders, and changes nothing."""

    roots: list[Path]
    runs: "list[Run]"
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _page: bytes = b""
    _version: str = ""
    _built: float = 0.0

    def status(self) -> dict[str, Any]:
        """Of each run what it does now, and the version of the results, which changes when there are new ones."""
        from efface.cluster.live_run import live_run

        live = [live_run(run.plan, run.folder) for run in self.runs]
        return {"version": self._version_of(live), "runs": [shown_in(asdict(one)) for one in live]}

    def page(self) -> bytes:
        """The report, made anew where there are new results, and not too often."""
        from efface.cluster.live_run import live_run
        from efface.cluster.run_content import read_run
        from efface.eval.report.page import report_html

        with self._lock:
            version = self._version_of([live_run(run.plan, run.folder) for run in self.runs])
            is_old = version != self._version and time.monotonic() - self._built >= REBUILD_INTERVAL
            if is_old or not self._page:
                contents = [read_run(root) for root in self.roots]
                html = report_html(contents, ", ".join(content.name for content in contents), live_version=version)
                self._page, self._version, self._built = html.encode(), version, time.monotonic()
            return self._page

    @staticmethod
    def _version_of(live: Any) -> str:
        counts = [
            [one.summary.campaign, len(one.summary.failures), sorted((k, t.done) for k, t in one.summary.tasks.items())]
            for one in live
        ]
        return json.dumps(counts)


class Handler(BaseHTTPRequestHandler):
    """Two addresses: the page, and the state of the runs as JSON."""

    def __init__(self, board: Board, *args: Any) -> None:
        self.board = board
        super().__init__(*args)

    def do_GET(self) -> None:
        # Another site's page that has this address under a name of its own gets nothing.
        if self.headers.get("Host", "").rpartition(":")[0] not in (HOST, "localhost"):
            self.send_error(403)
        elif self.path == "/":
            self._answer("text/html; charset=utf-8", self.board.page)
        elif self.path == "/status.json":
            self._answer("application/json", lambda: json.dumps(self.board.status()).encode())
        else:
            self.send_error(404)

    def _answer(self, kind: str, make: Callable[[], bytes]) -> None:
        """What is made, or in a sentence why it cannot be made now; nothing where the browser has gone."""
        try:
            status, body = 200, make()
        except UserError as error:
            status, kind, body = 503, "text/plain; charset=utf-8", f"{error}\n".encode()
        with contextlib.suppress(ConnectionError):
            self._send(status, kind, body)

    def _send(self, status: int, kind: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a page asks every few seconds."""


def make_server(options: BoardOptions) -> ThreadingHTTPServer:
    """The server, bound and not yet serving. Raises UserError for a folder that is no run, or a port in use."""
    from efface.cluster.run import reopen_run

    roots = [as_path(folder) for folder in options.runs]
    board = Board(roots, [reopen_run(root) for root in roots])
    try:
        return ThreadingHTTPServer((HOST, options.port), partial(Handler, board))
    except OSError as error:
        raise UserError(f"--port {options.port}: {error.strerror or error}; give another, or 0 for any") from None


def run(options: BoardOptions) -> None:
    """Serve until interrupted."""
    with make_server(options) as server:
        print_line(f"http://{HOST}:{server.server_address[1]}/  (Ctrl-C ends it; the runs go on)")
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return


COMMAND = Command("board", BoardOptions, run, lambda _: None)
