"""Rows of the leaderboard, out of the folder of a comparison: a file for each model, task, method, budget and machine.

`results/leaderboard/schema.json` says what a file holds; the page of the docs shows all of them side by side.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any

from illava_lab.errors import LabError, reason
from illava_lab.files import write_whole
from illava_lab.measuring import loglines
from illava_lab.measuring.rows import BASELINE
from illava_lab.models.random_models import PREFIX
from illava_lab.paths import is_folder, quoted

FORMAT = 1
LONGEST_NAME = 100
LOG = "run.jsonl"
# What tells a row from all others: measured again, it takes the place of the old one.
IDENTITY = ("model", "weights", "task", "questions_digest", "method", "budget", "machine", "by")
VERSIONS = ("torch", "transformers")

Row = dict[str, Any]


def submit(
    folder: str | PathLike[str], out: str | PathLike[str], by: str | None = None
) -> tuple[list[Path], list[str]]:
    """Write the rows of a comparison, a file each, into `out`.

    Args:
        folder: what `compare` was given as `out`.
        by: who measured, as the leaderboard shows it.

    Returns:
        The files, and labels of rows that were left out because they failed.

    Raises:
        LabError: no comparison is in the folder, its log is damaged, it was measured by a lab that noted less, on
            random weights, or without a bare model; or `out` cannot be written.
    """
    folder, out = Path(folder), Path(out)
    rows, failed = _read(folder, _name(by))
    try:
        out.mkdir(parents=True, exist_ok=True)
        return [write(row, out) for row in rows], failed
    except OSError as error:
        raise LabError(f"out: cannot write to {quoted(out)} ({error.strerror or error})") from None


def _name(by: str | None) -> str | None:
    if by is None:
        return None
    if not isinstance(by, str) or not by.strip() or not by.isprintable() or len(by) > LONGEST_NAME:
        raise LabError(f"by must be a name of at most {LONGEST_NAME} printable characters, got {by!r:.200}")
    return by.strip()


def _read(folder: Path, by: str | None) -> tuple[list[Row], list[str]]:
    shown = quoted(folder)
    try:
        lines = loglines.read(folder / LOG)
    except OSError as error:
        raise LabError(f"{shown} holds no comparison: {LOG} cannot be read ({error.strerror or error})") from None
    if lines is None or "questions" not in lines.settings:
        raise LabError(f"{shown} holds no comparison: make one with illava-lab compare --out FOLDER")
    entries = {entry["label"]: entry for entry in lines.entries}  # the last one of a row that was measured again
    fine = [entry for entry in entries.values() if entry["row"]["status"] == "ok"]
    bare = next((entry["row"] for entry in fine if entry["row"].get("strategy") == BASELINE), None)
    if bare is None:
        raise LabError(f"{shown} has no finished row of the bare model to compare with: let the comparison end first")
    if _known(bare.get("difference_low")) is None:
        raise LabError(f"{shown} asked about one picture only, so its differences have no interval: ask more (--limit)")
    for entry in fine:
        if not isinstance(entry.get("measured"), dict):
            raise LabError(f"{shown} does not say when and where its rows were measured: compare again in a new folder")
    try:
        rows = [row_of(entry["row"], bare, lines.settings, entry["measured"], by) for entry in fine]
    except (KeyError, TypeError, ValueError, ZeroDivisionError) as error:
        if isinstance(error, LabError):
            raise
        raise LabError(f"{shown} holds rows that compare does not write ({reason(error)})") from None
    return rows, [label for label, entry in entries.items() if entry["row"]["status"] != "ok"]


def row_of(
    values: Mapping[str, Any],
    bare: Mapping[str, Any],
    settings: Mapping[str, Any],
    measured: Mapping[str, Any],
    by: str | None,
) -> Row:
    """One row of the leaderboard.

    Args:
        values: a row of the table of `compare` whose status is "ok"; bare: that of the bare model in the same table.
        settings: of the comparison, as the first line of its log has them.
        measured: date, processor and version of the lab.

    Raises:
        LabError: random weights, whose answers mean nothing.
    """
    if str(settings["model"]).startswith(PREFIX):
        raise LabError(
            f"{settings['model']} has random weights: its answers mean nothing, so they are in no leaderboard"
        )
    names = ("keep", "flops", "preset", "schedule")
    kind = next((name for name in names if _known(values.get(name)) is not None), names[0])
    categories = {
        name.removeprefix("accuracy_"): share for name, share in values.items() if name.startswith("accuracy_")
    }
    return {
        "format": FORMAT,
        "model": _public(str(settings["model"])),
        "weights": settings["weights"],
        "task": _public(str(settings["task"])).removesuffix(".parquet"),
        "questions": int(values["samples"]),
        "questions_digest": settings["questions"],
        "method": values["strategy"],
        "budget": {"kind": kind, "amount": _known(values.get(kind))},
        "accuracy": _rounded(values["accuracy"]),
        "difference": [_rounded(values[name]) for name in ("difference", "difference_low", "difference_high")],
        "accuracy_by_category": {name: _rounded(share) for name, share in sorted(categories.items())},
        "tokens": _rounded(values["tokens"]),
        "tokens_share": _rounded(values["tokens"] / bare["tokens"]),
        "flops": int(values["prefill_flops"]),
        "flops_share": _rounded(values["prefill_flops"] / bare["prefill_flops"]),
        "cache_bytes": int(values["cache_bytes"]),
        "cache_share": _rounded(values["cache_bytes"] / bare["cache_bytes"]),
        "peak_bytes": _whole(values.get("peak_bytes")),
        "prefill_time": _ratio(values, "prefill"),
        "decode_time": _ratio(values, "decode"),
        "machine": {
            "device": settings["device"],
            "processor": measured["processor"],
            "dtype": str(settings["dtype"]).removeprefix("torch."),
            "batch_size": settings["batch_size"],
            "graphs": settings["graphs"],
        },
        "versions": {"illava_lab": measured["illava_lab"], **{name: settings[name] for name in VERSIONS}},
        "date": measured["date"],
        "by": by,
    }


def write(row: Row, folder: Path) -> Path:
    """Write a row into a folder, under its name.

    Raises:
        OSError: it cannot be written.
    """
    path = folder / file_name(row)
    write_whole(path, json.dumps(row, indent=1, allow_nan=False) + "\n")
    return path


def file_name(row: Row) -> str:
    """Of a row: what a person looks for, and a fingerprint of all that tells it from others."""
    told = json.dumps([row[name] for name in IDENTITY], sort_keys=True)
    budget = f"{row['budget']['kind']}-{row['budget']['amount']}"
    parts = [*(row[name] for name in ("model", "task", "method")), budget]
    return "--".join([*map(_plain, parts), hashlib.sha256(told.encode()).hexdigest()[:8]]) + ".json"


def _plain(text: str) -> str:
    return re.sub(r"[^a-z0-9.+]+", "-", text.lower()).strip("-")[:40]


def _public(name: str) -> str:
    """A model or a task without the folders that it lies in, which are nobody's business."""
    return Path(name).name if is_folder(name) or name.count("/") != 1 or name.startswith((".", "~", "/")) else name


def _known(value: Any) -> Any:
    """The value, or None for the NaN of a table."""
    return None if value is None or (isinstance(value, float) and math.isnan(value)) else value


def _rounded(value: Any) -> float | None:
    return None if _known(value) is None else round(float(value), 6)


def _whole(value: Any) -> int | None:
    return None if _known(value) is None else int(value)


def _ratio(values: Mapping[str, Any], kind: str) -> list[float] | None:
    """[median, low, high] of a time as a multiple of the bare model's, or None where none was taken."""
    found = [_rounded(values.get(f"{kind}_ratio{end}")) for end in ("", "_low", "_high")]
    return None if None in found else found  # type: ignore[return-value]
