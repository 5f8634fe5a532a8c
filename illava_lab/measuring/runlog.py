"""The folder of a sweep: every finished row is safe on the disk at once, and a stopped sweep goes on from there."""

from __future__ import annotations

import hashlib
import inspect
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers

from illava_lab.errors import LabError
from illava_lab.measuring.rows import Row
from illava_lab.session.lab import Lab


class RunLog:
    """`run.jsonl` is what a stopped sweep goes on from: its first line holds the settings, then comes one line per
    finished row, appended at once. `table.csv` is made from it.

    Args:
        what: what the folder holds, for messages ("a comparison").

    Raises:
        LabError: the folder cannot be written, or it holds a sweep with other settings.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], what: str) -> None:
        self.folder, self._log, self._what = folder, folder / "run.jsonl", what
        self._entries: dict[str, dict[str, Any]] = {}
        lines: list[str] = []
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if self._log.exists():
                lines = self._log.read_text(encoding="utf-8").splitlines()
            elif (folder / "table.csv").exists():
                raise LabError(f"{folder} holds a table.csv but no run.jsonl to go on from: name another folder")
            entries = [entry for entry in map(_parse, lines) if entry is not None]
            if entries:
                self._check(entries[0].get("settings", {}), settings)
            self._entries = {entry["label"]: entry for entry in entries[1:]}
            # Also cuts off a last line that a killed run left unfinished.
            write_whole(self._log, "".join(_line(entry) for entry in [{"settings": settings}, *self._entries.values()]))
        except OSError as error:
            raise LabError(f"out: cannot write to {folder} ({error.strerror or error})") from None

    def _check(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        # Through JSON and back, as the stored ones went.
        for key, value in json.loads(json.dumps(now)).items():
            if before.get(key) != value:
                raise LabError(
                    f"{self.folder} holds {self._what} with {key}={before.get(key)!r}, this one has {value!r}: "
                    "name another folder, or delete that one"
                )

    def finished(self, label: str, row: Row) -> dict[str, Any] | None:
        """The stored entry of a row, if it is complete and nothing about the row changed."""
        entry = self._entries.get(label)
        valid = entry and entry["row"]["status"] == "ok" and entry["digest"] == _digest(row)
        return entry if valid else None

    def add(self, label: str, row: Row, values: dict[str, Any], **more: Any) -> None:
        """Append a finished row, safe on the disk before this returns."""
        entry = {"label": label, "digest": _digest(row), "schedule": repr(row.schedule), "row": values, **more}
        with self._log.open("a", encoding="utf-8") as log:
            log.write(_line(entry))
            log.flush()
            os.fsync(log.fileno())

    def write_table(self, table: pd.DataFrame) -> None:
        write_whole(self.folder / "table.csv", table.to_csv(index=False))


def model_settings(lab: Lab) -> dict[str, Any]:
    """What a model and its place must have in common for rows to stand in one table."""
    # The first values of every parameter tell two checkpoints apart without reading gigabytes.
    weights = hashlib.sha256()
    for parameter in lab.model.parameters():
        weights.update(parameter.detach().flatten()[:16].float().cpu().numpy().tobytes())
    device = lab.model.device
    return {
        "model": lab.source,
        "weights": weights.hexdigest()[:16],
        "dtype": str(lab.model.dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def write_whole(path: Path, text: str) -> None:
    """Write a file completely or not at all."""
    part = path.with_name(f".{path.name}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def _line(entry: dict[str, Any]) -> str:
    return json.dumps(entry) + "\n"


def _parse(line: str) -> dict[str, Any] | None:
    try:
        return json.loads(line)
    except ValueError:
        return None


def _digest(row: Row) -> str:
    """A fingerprint of settings, code and schedule: whoever edits a method must not be shown its old row."""
    text = f"{row.strategy!r} {row.schedule!r} {_code(type(row.strategy))}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _code(cls: type) -> str:
    try:
        return inspect.getsource(sys.modules[cls.__module__])
    except (OSError, TypeError, KeyError):  # a notebook's classes are in no file, but their methods are in its cells
        out = []
        for member in vars(cls).values():
            try:
                out.append(inspect.getsource(member))
            except (OSError, TypeError):
                continue
        return "".join(out)
