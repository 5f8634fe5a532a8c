"""A small Hugging Face hub of our own: it answers as the real one does, for a model, a gated one and unknown ones."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import constants, file_download

COMMIT = "0123456789" * 4
REVISIONS = ("main", "v1", COMMIT)


@contextmanager
def serving(model: str, folder: Path) -> Iterator[str]:
    """Serve the files of `folder` as `model`; "org/gated" is gated, all else is unknown. Yields the address."""
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*self._find())

        do_HEAD = do_GET

        def _find(self) -> tuple[int, dict[str, str], bytes]:
            if "org/gated" in self.path:
                return 401, {"X-Error-Code": "GatedRepo"}, b""
            if model not in self.path:
                return 401, {"X-Error-Code": "RepoNotFound"}, b""
            action, *rest = self.path.split("?")[0].split(f"{model}/")[-1].split("/")
            if action not in ("revision", "resolve"):
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            if rest[0] not in REVISIONS:
                return 404, {"X-Error-Code": "RevisionNotFound"}, b""
            if action == "revision":
                listed = [{"rfilename": name} for name in files]
                return 200, {}, json.dumps({"id": model, "sha": COMMIT, "siblings": listed, "private": False}).encode()
            body = files.get("/".join(rest[1:]))
            if body is None:
                return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT}, b""
            return 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": COMMIT}, body

        def _answer(self, status: int, headers: dict[str, str], body: bytes) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


def point_at(address: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make this process's client take `address` for the hub, as HF_ENDPOINT and HF_HOME do for a new process."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    template = "HUGGINGFACE_CO_URL_TEMPLATE"
    for module in (constants, file_download):
        if hasattr(module, template):
            there = getattr(module, template)
            monkeypatch.setattr(module, template, address + there[there.index("/{repo_id}") :])
