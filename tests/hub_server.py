"""The part of the Hugging Face hub's HTTP API that publishing and fetching models needs, on loopback, in memory.

As the hub has it: a repository is made, files are said to be small or large, large ones go to a storage by their hash,
and one commit names all; what is read comes with the commit and the hash in its headers.
"""

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

import pytest

TOKEN = "hf_" + "x" * 20
COMMIT = "0" * 40


class Hub:
    """What the hub holds, and what was asked of it."""

    def __init__(self) -> None:
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: dict[str, bool] = {}
        self.storage: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.url = ""

    def writes(self) -> list[str]:
        return [request for request in self.requests if not request.startswith(("GET", "HEAD"))]


class _Handler(BaseHTTPRequestHandler):
    hub: Hub

    def log_message(self, *_: object) -> None:
        pass

    def _json(self, value: Any, code: int = 200) -> None:
        self._answer(json.dumps(value).encode(), code, {"Content-Type": "application/json"})

    def _answer(self, body: bytes, code: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body = self._body()
        self.hub.requests.append(f"POST {self.path}")
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials in Authorization header"}, 401)
        path = unquote(self.path.partition("?")[0])
        if path == "/api/repos/create":
            made = json.loads(body)
            name = f"{made['organization']}/{made['name']}" if made.get("organization") else made["name"]
            if name in self.hub.repositories:
                return self._json({"error": "You already created this model repo"}, 409)
            self.hub.repositories[name], self.hub.private[name] = (
                {},
                "private" in (made.get("visibility"), made.get("private") and "private"),
            )
            return self._json({"url": f"{self.hub.url}/{name}", "name": name})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        if path.endswith("/preupload/main"):
            files = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in json.loads(body)["files"]
            ]
            return self._json({"files": [{**file, "shouldIgnore": False} for file in files]})
        if path.endswith(".git/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            answer = [{**o, "actions": {"upload": {"href": f"{self.hub.url}/storage/{o['oid']}"}}} for o in objects]
            return self._json({"transfer": "basic", "objects": answer})
        repository = path.removeprefix("/api/models/").partition("/commit/")[0]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                self.hub.repositories[repository][value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.hub.repositories[repository][value["path"]] = self.hub.storage[value["oid"]]
        return self._json({"commitUrl": f"{self.hub.url}/{repository}/commit/{COMMIT}", "commitOid": COMMIT})

    def do_PUT(self) -> None:
        body = self._body()
        oid = self.path.rpartition("/")[2]
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.requests.append(f"PUT {self.path}")
        self.hub.storage[oid] = body
        self._answer(b"")

    def do_GET(self) -> None:
        self.hub.requests.append(f"{self.command} {self.path}")
        path = unquote(self.path.partition("?")[0])
        if path.startswith("/api/models/"):
            repository, _, of = path.removeprefix("/api/models/").partition("/tree/")
            files = self.hub.repositories.get(repository.partition("/revision/")[0])
            if files is None:
                return self._answer(b"", 401, {"X-Error-Code": "RepoNotFound"})
            listed = [{"type": "file", "path": name, "size": len(data), "oid": "0"} for name, data in files.items()]
            return self._json(listed if of else {"id": repository, "sha": COMMIT, "siblings": []})
        repository, _, rest = path.removeprefix("/").partition("/resolve/")
        files = self.hub.repositories.get(repository)
        if files is None:
            return self._answer(b"", 401, {"X-Error-Code": "RepoNotFound"})
        data = files.get(rest.partition("/")[2])
        if data is None:
            return self._answer(b"", 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        self._answer(data, 200, {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(data).hexdigest()}"'})

    do_HEAD = do_GET


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub that listens on loopback until the block ends."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Hub]:
    """The hub that the hub's library asks in this test, with an empty cache, and a token of the user's."""
    with serving() as served:
        constants = "huggingface_hub.constants"
        monkeypatch.setattr(f"{constants}.HF_HUB_OFFLINE", False)
        monkeypatch.setattr(f"{constants}.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(f"{constants}.HF_HUB_CACHE", str(tmp_path_factory.mktemp("hub-cache")))
        monkeypatch.setattr(f"{constants}.ENDPOINT", served.url)
        template = f"{served.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(f"{constants}.HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", served.url)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served
