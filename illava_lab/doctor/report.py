"""What was tried, line by line. Each line is out before the next thing is tried: a crash leaves what came before."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TypeVar

from illava_lab.errors import reason, spelled

WIDTH = 120
OK, FAILED, NOTE = "ok", "FAILED", "-"

T = TypeVar("T")


class Report:
    """Prints to stdout.

    Attributes:
        failed: names of what failed.
    """

    def __init__(self) -> None:
        self.failed: list[str] = []

    def section(self, title: str) -> None:
        """A heading."""
        print(f"\n{spelled(title)}", flush=True)

    def good(self, what: str, text: str) -> None:
        """Something is as it should be."""
        self._line(OK, what, text)

    def bad(self, what: str, text: str) -> None:
        """Something is not, and the exit status says so."""
        self.failed.append(what)
        self._line(FAILED, what, text)

    def note(self, what: str, text: str) -> None:
        """Something is not here, and need not be."""
        self._line(NOTE, what, text)

    def attempt(self, what: str, do: Callable[[], T]) -> T | None:
        """What `do` gives; None where it fails in whatever way, which is reported."""
        try:
            return do()
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a damaged library may raise anything, even SystemExit
            self.bad(what, reason(error))
            return None

    def conclude(self) -> None:
        """The last line."""
        failed = f"{len(self.failed)} of these failed: {', '.join(self.failed)}" if self.failed else "Nothing failed"
        print(f"\n{failed}.", flush=True)

    def _line(self, mark: str, what: str, text: str) -> None:
        head = f"  {mark:<6}  {what:<13}  "
        lines = textwrap.wrap(spelled(text), WIDTH - len(head), break_on_hyphens=False) or [""]
        print(head + f"\n{' ' * len(head)}".join(lines), flush=True)
