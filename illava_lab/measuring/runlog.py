"""The folder of a sweep: every finished row is safe on the disk at once, and a stopped sweep goes on from there."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import sys
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers

from illava_lab import __version__
from illava_lab.errors import LabError
from illava_lab.files import append, clear_parts, write_whole
from illava_lab.measuring import loglines
from illava_lab.measuring.belonging import Belonging
from illava_lab.measuring.machine import machine
from illava_lab.measuring.rows import Row
from illava_lab.measuring.summary import measured_again
from illava_lab.paths import quoted
from illava_lab.session.lab import Lab


class RunLog:
    """`run.jsonl` is what a stopped sweep goes on from: its first line holds the settings, then comes one line per
    finished row, appended at once. `table.csv` is made from it.

    Args:
        what: what the folder holds, for messages ("a comparison").
        rows: label -> row, all that will be asked for. What they belong to is noted now, before any of them runs.

    Attributes:
        changed: what is in the folder but belongs to code that has changed since (`Row.label`), and so is measured
            again. A line on stderr says so.

    Raises:
        LabError: the folder cannot be written, it holds a sweep with other settings, or a log that cannot be read.
            Nothing is changed then.
    """

    def __init__(self, folder: Path, settings: dict[str, Any], what: str, rows: Mapping[str, Row]) -> None:
        self.folder, self._log, self._what = folder, folder / "run.jsonl", what
        self._entries: dict[str, dict[str, Any]] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lines = loglines.read(self._log) if os.path.lexists(self._log) else None
            if lines is None and os.path.lexists(folder / "table.csv"):
                raise LabError(
                    f"{quoted(folder)} holds a table.csv but no run.jsonl to go on from: name another folder"
                )
            if (folder / "table.csv").is_dir():
                raise LabError(f"{quoted(folder)} holds a folder named table.csv: name another folder")
            if lines is not None:
                self._check(lines.settings, settings)
                self._entries = {entry["label"]: entry for entry in lines.entries}
            clear_parts(folder)
            # Also cuts off a last line that a killed run left unfinished, and leaves alone what a link leads to.
            kept = [loglines.head(settings), *map(loglines.line, self._entries.values())]
            write_whole(self._log, "".join(kept))
        except OSError as error:
            raise self._cannot(error) from None
        self._belonging = Belonging(rows.values())
        changed = [row.label for label, row in rows.items() if self._is_ok(label) and not self.finished(label, row)]
        self.changed = list(dict.fromkeys(changed))
        if self.changed:
            print(measured_again(self.changed), file=sys.stderr)

    def _check(self, before: dict[str, Any], now: dict[str, Any]) -> None:
        # Through JSON and back, as the stored ones went.
        for key, value in json.loads(json.dumps(now)).items():
            if before.get(key) != value:
                raise LabError(
                    f"{self.folder} holds {self._what} with {key}={before.get(key)!r}, this one has {value!r}: "
                    "name another folder, or delete that one"
                )

    def _is_ok(self, label: str) -> bool:
        return label in self._entries and self._entries[label]["row"]["status"] == "ok"

    def finished(self, label: str, row: Row) -> dict[str, Any] | None:
        """The stored entry of a row, if it is complete and nothing about the row changed."""
        if not self._is_ok(label) or self._entries[label]["digest"] != self._belonging.of(row):
            return None
        return self._entries[label]

    def add(self, label: str, row: Row, values: dict[str, Any], **more: Any) -> None:
        """Append a finished row, safe on the disk before this returns.

        Raises:
            LabError: it cannot be written; what was there before still is.
        """
        entry: dict[str, Any] = {"label": label, "digest": self._belonging.of(row), "schedule": repr(row.schedule)}
        # A sweep may go on for days, and its folder move: of each row it is known when and where it was measured.
        entry |= {"measured": {"date": date.today().isoformat(), "processor": machine(), "illava_lab": __version__}}
        try:
            append(self._log, loglines.line({**entry, "row": values, **more}))
        except OSError as error:
            raise self._cannot(error, kept=True) from None

    def write_table(self, table: pd.DataFrame) -> None:
        """Make `table.csv` anew, after rows were measured.

        Raises:
            LabError: it cannot be written.
        """
        self._belonging.have_run()
        self.write("table.csv", table.to_csv(index=False))

    def write(self, name: str, text: str) -> None:
        """Make a file of the folder anew.

        Raises:
            LabError: it cannot be written.
        """
        try:
            write_whole(self.folder / name, text)
        except OSError as error:
            raise self._cannot(error, kept=True) from None

    def _cannot(self, error: OSError, kept: bool = False) -> LabError:
        note = "; finished rows are kept, the same call goes on from there" if kept else ""
        return LabError(f"out: cannot write to {quoted(self.folder)} ({error.strerror or error}){note}")


def model_settings(lab: Lab) -> dict[str, Any]:
    """What a model and its place must have in common for rows to stand in one table."""
    # Some values of every parameter tell two checkpoints apart without reading gigabytes.
    weights = hashlib.sha256()
    for parameter in lab.model.parameters():
        flat = parameter.detach().flatten()
        some = torch.cat([flat[:16], flat[:: max(1, len(flat) // 64)]])
        weights.update(some.float().cpu().numpy().tobytes())
    device = lab.model.device
    return {
        "model": lab.source,
        "weights": weights.hexdigest()[:16],
        "configuration": _configuration(lab),
        "dtype": str(lab.model.dtype),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }


def _configuration(lab: Lab) -> str:
    """A fingerprint of what else decides about an answer: the model's configuration, its processor and its words."""
    tokenizer: Any = getattr(lab.processor, "tokenizer", None)
    parts = [getattr(lab.model.config, "_attn_implementation", None), getattr(tokenizer, "chat_template", None)]
    parts.append(getattr(lab.processor, "chat_template", None))
    for one in (lab.model.config, lab.model.generation_config, lab.processor):
        parts.append(one.to_json_string() if hasattr(one, "to_json_string") else type(one).__name__)
    if hasattr(tokenizer, "get_vocab"):
        parts.append(sorted(tokenizer.get_vocab().items()))
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
