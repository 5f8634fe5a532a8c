"""How the checks of the chapters' exercises are tried: each with the right answer and with typical wrong ones."""

from __future__ import annotations

from collections.abc import Iterable
from types import ModuleType
from typing import Any


def says_what_is_wrong(said: str, fault: str | None) -> None:
    """The check accepts, if `fault` is None, or names the fault."""
    if fault is None:
        assert said.startswith("Right: ")
    else:
        assert said.startswith("Not yet: ") and fault in said, said


def each_was_tried(answers: Iterable[tuple[Any, ...]], *modules: ModuleType) -> None:
    """Every check of these modules had three wrong answers and an empty one: `answers` are (check, ..., fault)."""
    answers = list(answers)
    for module in modules:
        checks = [value for name, value in vars(module).items() if name.startswith("check_")]
        own = [check for check in checks if check.__module__ == module.__name__]
        assert own, module.__name__
        for check in own:
            assert len({row[-1] for row in answers if row[0] is check and row[-1]}) >= 4, check.__name__
