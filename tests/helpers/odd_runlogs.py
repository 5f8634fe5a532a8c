"""Odd folders of a comparison, from a seed: a good one with its log damaged, swapped or linked to somewhere else.

Of each the same is asked: the same call, on this folder, either ends with the table of the good one or is refused in one
line; and nothing outside the folder is changed. In both cases no finished row is lost.
"""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

import illava_lab as il
from illava_lab.views import plots
from illava_lab.widgets import read_run

STRATEGIES = ("random", "fastv")


def outside(target: Path) -> Path:
    """The file beside an odd folder that links in it may lead to; whoever tries the folder must leave it as it was made."""
    return target.with_name(f"{target.name}-outside.txt")


def odd_runlog(seed: int, good: Path, target: Path) -> str:
    """Copy the folder of a finished comparison and do one odd thing to the copy.

    Args:
        seed: the same gives the same folder.
        good: the folder that `compare(..., out=good)` left; it is only read.
        target: where the odd one goes; it is made, and `outside(target)` beside it.

    Returns:
        What was done, in a few words.
    """
    draw = random.Random(seed)
    shutil.copytree(good, target)
    outside(target).write_text("this file belongs to somebody else\n")
    what = draw.choice(sorted(DAMAGES))
    detail = DAMAGES[what](target, draw)
    return f"{what}: {detail}" if detail else what


# ---------------------------------------------------------------------------------------------- what is asked of them
def compared(lab: il.Lab, task: il.Task, out: Any, strategies: Sequence[Any] = STRATEGIES) -> pd.DataFrame:
    """The comparison that the folders are of."""
    return il.compare(lab, list(strategies), [0.5], task=task, timing=False, out=out, progress=False)


def finished(lab: il.Lab, task: il.Task, out: Any, strategies: Sequence[Any] = STRATEGIES) -> pd.DataFrame:
    """The same with its figures, as the command line writes them."""
    table = compared(lab, task, out, strategies)
    plots.save_html(plots.tradeoff(table), Path(out) / "tradeoff.html")
    plots.tradeoff_png(table, Path(out) / "tradeoff.png")
    return table


def judge(seed: int, lab: il.Lab, task: il.Task, good: Path, target: Path) -> str | None:
    """What is wrong with how an odd folder is treated, or None.

    Args:
        lab, task: that `good` was made with, by `finished`.
    """
    what = odd_runlog(seed, good, target)
    log, elsewhere = target / "run.jsonl", outside(target).read_bytes()
    before = log.read_bytes() if log.is_file() else None
    said = []
    for reads in (lambda: read_run(target, task), lambda: finished(lab, task, target)):
        try:
            reads()
        except il.LabError as error:
            said.append(str(error))
        except Exception as error:
            return f"{what}: raises {type(error).__name__}: {error}"
        else:
            said.append("")
    for sentence in said:
        if not sentence.isprintable() or len(sentence) > 600:
            return f"{what}: is refused with {sentence!r}"
    if outside(target).read_bytes() != elsewhere:
        return f"{what}: a file outside the folder is changed"
    if not said[1]:
        same = (target / "table.csv").read_bytes() == (good / "table.csv").read_bytes()
        links = [path.name for path in target.glob("[!.]*") if path.is_symlink()]
        return None if same and not links else f"{what}: another table, or links {links}"
    if before is not None and not said[1].startswith("path:") and log.read_bytes() != before:
        return f"{what}: is refused ({said[1]}), but its log is changed"
    return None


# ---------------------------------------------------------------------------------------------- lines
def _lines(folder: Path) -> list[bytes]:
    return (folder / "run.jsonl").read_bytes().splitlines()


def _store(folder: Path, lines: list[bytes], end: bytes = b"\n") -> None:
    (folder / "run.jsonl").write_bytes(b"".join(line + end for line in lines))


def _on_a_line(change: Callable[[bytes, random.Random], bytes]) -> Callable[[Path, random.Random], str]:
    """Damage that replaces one line, the first one as often as another."""

    def damage(folder: Path, draw: random.Random) -> str:
        lines = _lines(folder)
        number = draw.choice([0, draw.randrange(len(lines)), len(lines) - 1])
        lines[number] = change(lines[number], draw)
        _store(folder, lines)
        return f"line {number + 1}: {lines[number][:60]!r}"

    return damage


def _no_row(line: bytes, draw: random.Random) -> bytes:
    """JSON, but not an object that the lab wrote."""
    other = ["[]", "{}", "3", "null", "true", '"text"', "NaN", "[[1, 2], {}]", '{"label": 3}', '{"settings": []}',
             '{"label": "none keep 1"}', '{"row": {}, "label": "", "digest": null}', '{"settings": {"version": 99}}',
             "1e999", "9" * 5000, "[" * 100_000, '{"a":' * 50_000]  # fmt: skip
    return draw.choice(other).encode()


def _parts(entry: Any) -> list[tuple[Any, Any]]:
    """(container, key) of everything in an entry, from the top down."""
    out: list[tuple[Any, Any]] = []
    keys = entry if isinstance(entry, dict) else range(len(entry)) if isinstance(entry, list) else []
    for key in keys:
        out += [(entry, key), *_parts(entry[key])]
    return out


def _missing_key(line: bytes, draw: random.Random) -> bytes:
    entry = json.loads(line)
    place, key = draw.choice([part for part in _parts(entry) if isinstance(part[0], dict)])
    del place[key]
    return json.dumps(entry).encode()


def _other_value(line: bytes, draw: random.Random) -> bytes:
    entry = json.loads(line)
    place, key = draw.choice(_parts(entry))
    others = [None, True, -1, 0.25, "", "text", "\ud800", [], {}, [None], 10**400, {"a": [1]}, float("inf")]
    place[key] = draw.choice(others)
    return json.dumps(entry).encode()


def _further_key(line: bytes, draw: random.Random) -> bytes:
    entry = json.loads(line)
    entry[draw.choice(["version", "more", "label", "row", "settings", ""])] = draw.choice([1, None, {}, "x"])
    return json.dumps(entry).encode()


def _other_bytes(line: bytes, draw: random.Random) -> bytes:
    out = bytearray(line)
    for _ in range(draw.randint(1, 4)):
        at = draw.randrange(len(out))
        out[at : at + draw.randint(0, 3)] = draw.randbytes(draw.randint(0, 4)).replace(b"\n", b" ")
    return bytes(out)


def _one_digit(line: bytes, draw: random.Random) -> bytes:
    """Still JSON, and a row; but another number."""
    out = bytearray(line)
    at = draw.choice([i for i, sign in enumerate(out) if chr(sign).isdigit()])
    out[at] = ord(draw.choice([digit for digit in "123456789" if ord(digit) != out[at]]))
    return bytes(out)


def _not_utf8(line: bytes, draw: random.Random) -> bytes:
    at = draw.randrange(len(line))
    return line[:at] + draw.choice([b"\xff", b"\xe9", b"\xed\xa0\x80", b"\xc0\x80", b"\x00"]) + line[at:]


def _long(line: bytes, draw: random.Random) -> bytes:
    filler = draw.choice([b" ", b"x", b"[", b"9", b"\x00"]) * draw.choice([100_000, 20_000_000])
    return draw.choice([line + filler, filler, b'{"label": "' + filler + b'"}'])


# ---------------------------------------------------------------------------------------------- the whole log
def _cut(folder: Path, draw: random.Random) -> str:
    data = (folder / "run.jsonl").read_bytes()
    length = draw.choice([0, draw.randrange(len(data)), len(data) - 1])
    (folder / "run.jsonl").write_bytes(data[:length])
    return f"{length} of {len(data)} bytes"


def _whole(folder: Path, draw: random.Random) -> str:
    data = (folder / "run.jsonl").read_bytes()
    ways: dict[str, bytes] = {
        "utf-16": data.decode().encode("utf-16"),
        "byte order mark": b"\xef\xbb\xbf" + data,
        "CRLF": data.replace(b"\n", b"\r\n"),
        "blank lines": data.replace(b"\n", b"\n\n"),
        "one line": data.replace(b"\n", b" "),
        "zeros": bytes(len(data)),
        "zeros at the end": data + bytes(4096),
        "noise": draw.randbytes(len(data)),
        "a list": b"[" + data.replace(b"\n", b",\n")[:-2] + b"]",
        "twice": data + data,
        "other line ends": data.replace(b"\n", b"\xe2\x80\xa8"),
    }
    way = draw.choice(sorted(ways))
    (folder / "run.jsonl").write_bytes(ways[way])
    return way


def _order(folder: Path, draw: random.Random) -> str:
    lines = _lines(folder)
    draw.shuffle(lines)
    _store(folder, lines)
    return ""


def _fewer(folder: Path, draw: random.Random) -> str:
    lines = _lines(folder)
    number = draw.randrange(len(lines))
    del lines[number]
    _store(folder, lines)
    return f"line {number + 1} is gone"


def _newer(folder: Path, draw: random.Random) -> str:
    """What a later release of the lab might write."""
    first, *rest = _lines(folder)
    entry = json.loads(first)
    entry["version"] = draw.choice([2, 3, 99, "2.0", None, -1, 10**30])
    lines = [json.dumps(entry).encode(), *rest]
    if draw.random() < 0.5:
        lines.append(b'{"event": "stopped", "at": "2031-01-01"}')
    _store(folder, lines)
    return f"version {entry['version']!r}"


# ---------------------------------------------------------------------------------------------- what is no plain file
def _links(folder: Path, draw: random.Random) -> str:
    names = ["run.jsonl", "table.csv", ".table.csv.part", ".run.jsonl.part", "tradeoff.html", "tradeoff.png"]
    kinds = ["symbolic link", "hard link", "dangling link", "link to a folder", "link to itself"]
    name, kind = draw.choice(names), draw.choice(kinds)
    place, victim = folder / name, outside(folder)
    content = place.read_bytes() if place.exists() else b""
    place.unlink(missing_ok=True)
    if kind == "symbolic link":
        place.symlink_to(victim)
    elif kind == "hard link":
        if name == "run.jsonl":  # with what a log holds, so that it is read and gone on with
            victim.write_bytes(content)
        os.link(victim, place)
    elif kind == "dangling link":
        place.symlink_to(folder.with_name("nowhere"))
    elif kind == "link to a folder":
        place.symlink_to(folder.parent, target_is_directory=True)
    else:
        place.symlink_to(place)
    return f"{name} is a {kind}"


def _no_file(folder: Path, draw: random.Random) -> str:
    name, kind = draw.choice(["run.jsonl", "table.csv"]), draw.choice(["folder", "full folder", "pipe", "missing"])
    place = folder / name
    place.unlink()
    if kind == "pipe" and hasattr(os, "mkfifo"):
        os.mkfifo(place)
    elif kind != "missing":
        place.mkdir()
        if kind == "full folder":
            (place / "mine.txt").write_text("mine")
    return f"{name}: {kind}"


def _table(folder: Path, draw: random.Random) -> str:
    (folder / "table.csv").write_bytes(draw.choice([b"", b"mine", draw.randbytes(300), b"strategy\nnone\n"]))
    return ""


DAMAGES: dict[str, Callable[[Path, random.Random], str]] = {
    "no row": _on_a_line(_no_row),
    "missing key": _on_a_line(_missing_key),
    "other value": _on_a_line(_other_value),
    "further key": _on_a_line(_further_key),
    "other bytes": _on_a_line(_other_bytes),
    "one digit": _on_a_line(_one_digit),
    "not UTF-8": _on_a_line(_not_utf8),
    "long line": _on_a_line(_long),
    "cut": _cut,
    "whole file": _whole,
    "order": _order,
    "fewer lines": _fewer,
    "newer version": _newer,
    "link": _links,
    "no file": _no_file,
    "other table": _table,
}
