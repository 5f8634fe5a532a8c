"""What a promise is, and the list of all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from illava_lab.errors import reason, spelled
from illava_lab.testing.cases import Case

Outcome = Literal["passed", "broken", "not applicable"]


class Broken(Exception):
    """Found while a promise is checked: it is broken, for the reason that is the text."""


class Elsewhere(Exception):
    """This case says nothing about this promise; another one reports what is wrong."""


@dataclass(frozen=True)
class Result:
    """One promise of one strategy: the smallest `case` that breaks it; what is wrong, or why it was not asked."""

    strategy: str
    promise: str
    says: str
    outcome: Outcome
    message: str = ""
    case: str = ""


@dataclass(frozen=True)
class Promise:
    """One promise: `check` says of each of its `cases` what is wrong, until one breaks it."""

    name: str
    says: str
    cases: Callable[[Any], Iterable[Any]]
    check: Callable[[Any, Any], str | None]

    def result(self, subject: Any) -> Result:
        """Passed, broken with the first case that breaks it, or not applicable; `subject` is a `subject.Subject`."""
        answer = (subject.label, self.name, self.says)
        asked, why = 0, "there is no such case in the stages of this strategy"
        case = None
        try:
            for case in self.cases(subject):
                try:
                    wrong = self.check(subject, case)
                except Elsewhere as elsewhere:
                    why = str(elsewhere)
                    continue
                except Broken as broken:
                    wrong = str(broken)
                asked += 1
                if wrong:
                    return Result(*answer, "broken", spelled(wrong), str(case) if isinstance(case, Case) else "")
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a stranger's strategy may fail in any way, wherever it is looked at
            told = f"looking at it fails with {reason(error)}"
            return Result(*answer, "broken", told, str(case) if isinstance(case, Case) else "")
        return Result(*answer, "passed") if asked else Result(*answer, "not applicable", spelled(why))


PROMISES: dict[str, Promise] = {}


def promise(cases: Callable[[Any], Iterable[Any]]) -> Callable:
    def add(check: Callable[[Any, Any], str | None]) -> Callable:
        name = check.__name__.strip("_")
        PROMISES[name] = Promise(name, " ".join((check.__doc__ or "").split()), cases, check)
        return check

    return add
