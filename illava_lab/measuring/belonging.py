"""What a measured row belongs to: the code, the settings and the schedule that it was computed with."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from illava_lab.measuring.digest import digest
from illava_lab.measuring.own_code import own_code
from illava_lab.measuring.rows import Row

# What a strategy notes down while it runs (a cache, a counter) is no change of its code: digest after a run -> before.
_same: dict[str, str] = {}


class Belonging:
    """Fingerprints of rows, taken before any of them runs.

    Each is of the strategy with all that its code refers to, of the schedule, and of the lab's own code, to which the
    bare model belongs that every row is compared with.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        rows = list(rows)
        self._strategies = {id(row.strategy): row.strategy for row in rows}
        self._codes = {key: _code(strategy) for key, strategy in self._strategies.items()}
        self._rows = {row: self._one(row) for row in rows}

    def of(self, row: Row) -> str:
        """The fingerprint of one of the rows."""
        return self._rows[row]

    def have_run(self) -> None:
        """Note that rows were measured just now, so that what they changed in strategies is known as that."""
        for key, strategy in self._strategies.items():
            before, after = self._codes[key], _code(strategy)
            if after != before:
                _same[after] = before

    def _one(self, row: Row) -> str:
        text = f"{self._codes[id(row.strategy)]} {row.schedule!r} {own_code()}"
        return hashlib.sha256(text.encode(errors="backslashreplace")).hexdigest()[:16]


def _code(strategy: object) -> str:
    found = digest(strategy)
    return _same.get(found, found)
