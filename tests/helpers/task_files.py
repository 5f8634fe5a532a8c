"""Small task files of every kind, with noise for pictures."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import pandas as pd
from helpers.labs import noise

import illava_lab as il


def png(seed: int, size: int = 64) -> bytes:
    """An encoded picture that is no other."""
    buffer = BytesIO()
    noise(size, size, seed).save(buffer, format="PNG")
    return buffer.getvalue()


def rows(
    kind: str = "image", counts: Sequence[int] = (1, 1, 1), turns: Sequence[int] | None = None, size: int = 64
) -> list[dict[str, Any]]:
    """Two questions about each image_id, or its turns, of different lengths.

    Args:
        kind: the column with pictures; counts: of each image_id, how many it shows.
        turns: of each, how many turns its conversation has; None for single questions.
    """
    out = []
    for number, count in enumerate(counts):
        pictures = [png(10 * number + part, size) for part in range(count)]
        for turn in range(turns[number] if turns else 2):
            row = {"question": f"token{20 + turn} token{30 + number}" + " token40" * (number % 3)}
            row |= {"answer": f"token{50 + turn}", "category": "ab"[turn % 2], "image_id": f"i{number}"}
            row |= {kind: pictures[0] if kind == "image" else pictures}
            out.append(row | ({"turn": turn} if turns else {}))
    return out


def write(folder: Path, table: list[dict[str, Any]]) -> Path:
    """The rows as a file."""
    path = folder / "task.parquet"
    pd.DataFrame(table).to_parquet(path)
    return path


def read(folder: Path, *args: Any, **kwargs: Any) -> il.Task:
    """A file of such rows, as the lab reads it."""
    return il.load_task(write(folder, rows(*args, **kwargs)))
