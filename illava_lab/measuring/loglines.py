"""The lines of a run log: how they are written, and how what was damaged or written by others is told from them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from illava_lab.errors import LabError
from illava_lab.files import read_plain
from illava_lab.paths import quoted

VERSION = 1
CHECK = "check"


@dataclass(frozen=True)
class Lines:
    """A run log.

    Attributes:
        settings: of the run.
        entries: one for each row, in the order in which they were written: `row` (columns of the table, with
            `status`), in a comparison `right` and `answers`, and what the row belongs to.
    """

    settings: dict[str, Any]
    entries: list[dict[str, Any]]


def head(settings: dict[str, Any]) -> str:
    """The first line."""
    return line({"version": VERSION, "settings": settings})


def line(entry: dict[str, Any]) -> str:
    """An entry as a line, with a check sum: a digit that a disk got wrong is no result."""
    return json.dumps({**entry, CHECK: _sum(entry)}) + "\n"


def read(path: Path, checked: bool = True) -> Lines | None:
    """The lines of a log; None where the file is empty. A last line that a killed run left unfinished is left out.

    Args:
        checked: every line must have its check sum; False also takes lines without one, written by hand.

    Raises:
        OSError: as `read_plain`.
        LabError: a line that the lab did not write, or not like this.
    """
    data = read_plain(path)
    if not data:
        return None
    first, *rest = data.split(b"\n")
    settings, entries = _first(first, path, checked), []
    for number, text in enumerate(rest, 2):
        if not text.strip():
            continue
        entry = _entry(text, checked)
        if isinstance(entry, dict) and not _is_row(entry, checked):
            entry = "it is no row"
        if isinstance(entry, dict):
            entries.append(entry)
        elif number <= len(rest):  # else it is the last one, and unfinished
            raise LabError(
                f"line {number} of {quoted(path)} cannot be read ({entry}): delete that line to measure its row again, "
                "or name another folder"
            )
    return Lines(settings, entries)


def _first(text: bytes, path: Path, checked: bool) -> dict[str, Any]:
    entry = _entry(text, checked)
    newer = _version(text)
    if newer is not None:
        raise LabError(
            f"{quoted(path)} was written by another version of the lab (format {newer}, this one has {VERSION}): name "
            "another folder"
        )
    if not isinstance(entry, dict) or not isinstance(entry.get("settings"), dict):
        why = entry if isinstance(entry, str) else "it holds no settings"
        raise LabError(f"{quoted(path)} is no log of a run: its first line cannot be read ({why}); name another folder")
    return entry["settings"]


def _version(text: bytes) -> str | None:
    """What a first line says of its format, if it is not ours."""
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError):
        return None
    version = entry.get("version", VERSION) if isinstance(entry, dict) else VERSION
    return None if version == VERSION and type(version) is int else repr(version)[:40]


def _entry(text: bytes, checked: bool) -> dict[str, Any] | str:
    """The entry of a line, or what is wrong with it."""
    try:
        entry = json.loads(text.decode())
        if not isinstance(entry, dict):
            return "it is no row"
        found = entry.pop(CHECK, None)
        if found is None and checked:
            return "it has no check sum"
        return entry if found in (None, _sum(entry)) else "its check sum is another"
    except UnicodeDecodeError:
        return "it is not UTF-8"
    except (ValueError, RecursionError):
        return "it is no JSON"


def _is_row(entry: dict[str, Any], checked: bool) -> bool:
    row, right, answers = entry.get("row"), entry.get("right"), entry.get("answers")
    if not isinstance(row, dict) or not isinstance(row.get("status"), str):
        return False
    if checked and not (isinstance(entry.get("label"), str) and isinstance(entry.get("digest"), str)):
        return False
    return _list_of(bool, right) and _list_of(str, answers)


def _list_of(kind: type, given: Any) -> bool:
    return given is None or (isinstance(given, list) and all(isinstance(one, kind) for one in given))


def _sum(entry: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(entry).encode()).hexdigest()[:16]
