"""Reading a task from its Parquet file: whatever is wrong with one is said by column and row."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from numbers import Number
from os import PathLike, fsdecode
from typing import Any, get_args

import numpy as np
import pandas as pd

from illava_lab.errors import LabError
from illava_lab.measuring.task_names import listed, missing, path_of
from illava_lab.measuring.tasks import Kind, Task
from illava_lab.models.folder import first_line
from illava_lab.paths import is_file, quoted

TEXTS = ("question", "answer", "category", "image_id")
SHOWN: tuple[Kind, ...] = get_args(Kind)
SEVERAL = {"image": "encoded picture (bytes)", "images": "list of encoded pictures", "frames": "list of encoded frames"}


def load_task(name: str | PathLike = "test") -> Task:
    """An embedded task by its name, or a Parquet file.

    Embedded are "test" and "validation" (one picture), "multi-image", "video", "fine" (a picture for crops),
    "conversation", and "multi-image-validation" and so on for each of these.

    A file has the columns question, answer, category, image_id, and exactly one of `image` (bytes: an encoded picture),
    `images` (a list of bytes: the pictures of one prompt, in order) and `frames` (a list of bytes: all frames of one
    video, in order). Rows with the same `image_id` share what they show. With a column `turn` (whole numbers from 0)
    they are the turns of one conversation; without it every question is asked for itself.

    Raises:
        LabError: no such file, one that cannot be read, columns that are missing or too many, a value that is missing,
            empty or of another type, rows with one image_id that show different things, turns that are skipped or
            given twice.
    """
    if not isinstance(name, (str, PathLike)) or not str(name):
        raise LabError(f"task must be {listed()} or a Parquet file, got {name!r:.200}")
    name = fsdecode(name)
    path = path_of(name)
    if not is_file(path):
        raise LabError(missing(name))
    try:
        table = pd.read_parquet(path)
    except Exception as error:  # readers of damaged files raise whatever they stumble over
        raise LabError(f"task {quoted(name)}: not a Parquet file that can be read ({first_line(error)})") from None
    try:
        return _task(name, table.reset_index(drop=True))
    except LabError as error:
        raise LabError(f"task {quoted(name)}{error}") from None


def _task(name: str, table: pd.DataFrame) -> Task:
    """Raises: LabError: what follows the name of the task in a sentence."""
    kind = _kind(table)
    if table.empty:
        raise LabError(" holds no questions")
    for column in TEXTS:
        _check(table, column, lambda value: isinstance(value, (str, Number)) and not pd.isna(value), "text")
    for column in ("question", "answer"):
        _check(table, column, lambda value: bool(str(value).strip()), "text that is not empty")
    encoded = table[kind].map(_encoded if kind == "image" else _list_of_encoded)
    _check(table, kind, lambda value: value is not None, SEVERAL[kind], of=encoded)
    samples = table[list(TEXTS)].astype(str)
    _check_shared(samples["image_id"], encoded)
    if "turn" in table:
        samples["turn"] = _turns(table["turn"], samples["image_id"])
    first = ~samples["image_id"].duplicated()
    return Task(name, samples, dict(zip(samples["image_id"][first], encoded[first], strict=True)), kind)


def _kind(table: pd.DataFrame) -> Kind:
    """What the table shows: its one column with pictures."""
    names = [str(column) for column in table.columns]
    twice = [column for column in (*TEXTS, *SHOWN, "turn") if names.count(column) > 1]
    if twice:
        raise LabError(f" has the column {twice[0]!r} twice")
    kinds = [column for column in SHOWN if column in names]
    shows = "; ".join(f"{kind!r} holds for each question one {what}" for kind, what in SEVERAL.items())
    if len(kinds) > 1:
        raise LabError(f" has the columns {' and '.join(map(repr, kinds))}; it needs exactly one of them: {shows}")
    lacks = [column for column in TEXTS if column not in names]
    if lacks or not kinds:
        what = repr(lacks[0]) if lacks else "'image' (or 'images', or 'frames')"
        raise LabError(f" lacks the column {what}; it needs {', '.join(TEXTS)} and one of image, images, frames")
    return kinds[0]


def _check(
    table: pd.DataFrame, column: str, usable: Callable[[Any], bool], what: str, of: pd.Series | None = None
) -> None:
    """Raise LabError at the first row whose value in a column, or in `of`, is not usable."""
    for row, value in enumerate(table[column] if of is None else of):
        if not usable(value):
            given = _plain(table[column][row])
            raise LabError(f", row {row}: the column {column!r} holds no usable value: {given!r:.60} is no {what}")


def _plain(value: Any) -> Any:
    """A value of a table without NumPy's names around it."""
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def _encoded(value: Any) -> bytes | None:
    return value if isinstance(value, bytes) and value else None


def _list_of_encoded(value: Any) -> tuple[bytes, ...] | None:
    """The same of a list, which pandas reads as an array; None where it is none, is empty or holds something else."""
    entries = tuple(value) if isinstance(value, (list, tuple, np.ndarray)) else ()
    return entries if entries and all(map(_encoded, entries)) else None


def _check_shared(image_ids: pd.Series, encoded: pd.Series) -> None:
    """Raise LabError unless rows with one image_id show the same."""
    first: dict[str, tuple[int, bytes]] = {}
    for row, (image_id, data) in enumerate(zip(image_ids, encoded, strict=True)):
        parts = (data,) if isinstance(data, bytes) else data
        shown = hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
        before = first.setdefault(image_id, (row, shown))
        if before[1] != shown:
            raise LabError(f", row {row}: image_id {image_id!r:.80} shows something else than in row {before[0]}")


def _turns(turns: pd.Series, image_ids: pd.Series) -> pd.Series:
    """Numbers of turns, checked: those of every image_id are 0, 1, 2 and so on, each once."""
    if turns.isna().any():
        row = int(np.argmax(turns.isna().to_numpy()))
        raise LabError(f", row {row}: the column 'turn' holds no value; all rows need one, or the column must go")
    if not pd.api.types.is_integer_dtype(turns):
        raise LabError(f", row 0: the column 'turn' must hold whole numbers from 0, got {_plain(turns.iloc[0])!r:.60}")
    turns = turns.astype(int)
    for image_id, own in turns.groupby(image_ids, sort=False):
        if sorted(own) != list(range(len(own))):
            row = int(own.index[0])
            raise LabError(
                f", row {row}: the turns of image_id {image_id!r:.80} must be 0 to {len(own) - 1}, each once, "
                f"got {', '.join(map(str, sorted(own)[:20]))}"
            )
    return turns
