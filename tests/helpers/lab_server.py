"""A real JupyterLab server for tests: started by the command under test, asked over HTTP, stopped as a person would."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass
class Server:
    """Where a running server answers.

    Attributes:
        process: the server.
        url: its address on loopback.
        token: what it asks for.
    """

    process: subprocess.Popen[str]
    url: str
    token: str

    def get(self, path: str, token: str | None = None) -> Any:
        """The JSON answer to a GET request, sent with the server's own token unless another is given."""
        return self._answer(path, token)

    def put(self, path: str, body: Any) -> Any:
        """The JSON answer to a PUT request, such as saving a file."""
        return self._answer(path, data=json.dumps(body).encode(), method="PUT")

    def _answer(self, path: str, token: str | None = None, **request: Any) -> Any:
        headers = {"Authorization": f"token {self.token if token is None else token}"}
        with urllib.request.urlopen(
            urllib.request.Request(self.url + path, headers=headers, **request), timeout=30
        ) as answer:
            return json.load(answer)


@contextmanager
def serving(command: list[str], cwd: Path, scratch: Path, env: dict[str, str] | None = None) -> Iterator[Server]:
    """Run ``command --no-browser --port=...`` until the block ends.

    Jupyter's own folders are put below `scratch`, so that neither the settings nor the running servers that are there
    already matter.

    Raises:
        AssertionError: the server ended, or gave no answer within two minutes; with what it printed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    token = secrets.token_urlsafe(16)
    folders = {
        name: str(scratch / name.lower())
        for name in (
            "JUPYTER_CONFIG_DIR",
            "JUPYTER_DATA_DIR",
            "JUPYTER_RUNTIME_DIR",
            "JUPYTERLAB_SETTINGS_DIR",
            "JUPYTERLAB_WORKSPACES_DIR",
            "IPYTHONDIR",
        )
    }
    # The token goes through the environment: a command line can be read by every user of the machine.
    surroundings = {**os.environ, **folders, "JUPYTER_TOKEN": token, **(env or {})}
    log = scratch / "jupyter.log"
    scratch.mkdir(parents=True, exist_ok=True)
    with log.open("w", encoding="utf-8") as out:
        process = subprocess.Popen(
            [*command, "--no-browser", f"--port={port}", "--ServerApp.port_retries=0"],
            cwd=cwd,
            env=surroundings,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            text=True,
        )
        server = Server(process, f"http://127.0.0.1:{port}", token)
        try:
            _wait(server, log)
            yield server
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(server: Server, log: Path) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        assert server.process.poll() is None, log.read_text(encoding="utf-8")
        try:
            server.get("/api")
            return
        except OSError:  # not listening yet
            time.sleep(0.25)
    raise AssertionError(f"no answer from {server.url}: {log.read_text(encoding='utf-8')}")
