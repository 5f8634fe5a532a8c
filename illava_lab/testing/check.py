"""`check_strategy`: does a strategy keep its promises? From Python, from pytest, or as `illava-lab check`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from illava_lab.errors import LabError, one_of
from illava_lab.method.registry import load_file, make_strategy
from illava_lab.method.strategy import Strategy

# Importing one of these declares its promises, in the order in which they are asked and reported.
from illava_lab.testing import promises_of_class, promises_of_maps, promises_of_unusual_cases, promises_of_computing  # isort: skip # noqa: F401
from illava_lab.testing.examples import example_tokens
from illava_lab.testing.promise import PROMISES, Result
from illava_lab.testing.promises_of_class import variants
from illava_lab.testing.subject import Subject

__all__ = [
    "PROMISES", "BrokenPromise", "Report", "Result", "check_strategies", "check_strategy", "example_tokens",
    "parametrize_with_checks", "variants",
]  # fmt: skip

AnyStrategy = str | Path | Strategy | type[Strategy]


@dataclass(frozen=True, repr=False)
class Report:
    """What `check_strategy` found, one `Result` for each promise of each strategy."""

    results: tuple[Result, ...]

    @property
    def passed(self) -> bool:
        """Whether no promise is broken."""
        return not self.broken

    @property
    def broken(self) -> tuple[Result, ...]:
        return tuple(result for result in self.results if result.outcome == "broken")

    def __repr__(self) -> str:
        names = list(dict.fromkeys(result.strategy for result in self.results))
        return "\n".join(self._lines(name, every=len(names) == 1) for name in names)

    def _lines(self, name: str, every: bool) -> str:
        """One line of counts, one for each promise (or only for broken ones), two more where one is broken."""
        mine = [result for result in self.results if result.strategy == name]
        outcomes = [result.outcome for result in mine]
        kinds = [kind for kind in ("passed", "broken", "not applicable") if kind in outcomes]
        counts = [f"{outcomes.count(kind)} {kind}" for kind in kinds]
        lines = [f"{name}: {', '.join(counts)}"]
        for result in mine:
            if result.outcome == "broken":
                lines.append(f"  BROKEN  {result.promise}: {result.message}")
                lines += [f"          smallest case: {result.case}"] if result.case else []
            elif every:
                mark, note = ("passed", result.says) if result.outcome == "passed" else ("-     ", result.message)
                lines.append(f"  {mark}  {result.promise}: {note}")
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        rows = [
            (r.strategy, r.promise, r.outcome, r.message or r.says, r.case)
            for r in sorted(self.results, key=lambda r: r.outcome != "broken")
        ]
        table = pd.DataFrame(rows, columns=["strategy", "promise", "outcome", "", "smallest failing case"])
        with pd.option_context("display.max_colwidth", None):
            return table.to_html(index=False, escape=True, border=0)


class BrokenPromise(LabError):
    """A strategy breaks a promise; `report` has all of them."""

    def __init__(self, report: Report) -> None:
        lines = [f"{r.strategy}: {r.promise}: {r.message} ({r.case or 'the class'})" for r in report.broken]
        super().__init__("\n".join(lines))
        self.report = report


def check_strategy(strategy: AnyStrategy, *, raises: bool = True, only: str | None = None) -> Report:
    """Check every promise that a strategy makes, on small tensors, without a model; a second or two.

    Args:
        strategy: a registered name, a class, an instance, or a Python file (a path that ends in .py), of which every
            strategy that it registers is checked. A class and a name are checked with their default settings.
        raises: whether a broken promise raises.
        only: the name of one promise; all when None.

    Raises:
        BrokenPromise: a promise is broken; its `report` is what is returned otherwise.
        LabError: no such strategy, file or promise, or a file that cannot be loaded.
    """
    return check_strategies([strategy], raises=raises, only=only)


def check_strategies(strategies: Iterable[AnyStrategy], *, raises: bool = True, only: str | None = None) -> Report:
    """`check_strategy` for several, in one report."""
    if not isinstance(raises, bool):
        raise LabError(f"raises must be True or False, got {raises!r}")
    if only is not None:
        one_of("only", only, tuple(PROMISES))
    promises = [promise for name, promise in PROMISES.items() if only in (None, name)]
    subjects = [Subject(each) for one in strategies for each in _strategies(one)]
    report = Report(tuple(promise.result(subject) for subject in subjects for promise in promises))
    if raises and report.broken:
        raise BrokenPromise(report)
    return report


def parametrize_with_checks(strategies: Iterable[AnyStrategy]) -> Any:
    """For pytest: one test for each strategy and promise, such as ``test[illava-batch_equals_single]``.

    ::

        @parametrize_with_checks(["illava", MyStrategy])
        def test(strategy, check):
            check(strategy)
    """
    import pytest

    subjects = [each for one in strategies for each in _strategies(one)]
    return pytest.mark.parametrize(
        ("strategy", "check"),
        [
            pytest.param(strategy, partial(check_strategy, only=name), id=f"{Subject(strategy).label}-{name}")
            for strategy in subjects
            for name in PROMISES
        ],
    )


def _strategies(strategy: AnyStrategy) -> list[Strategy]:
    if isinstance(strategy, Path) or (isinstance(strategy, str) and (strategy.endswith(".py") or "/" in strategy)):
        return [make_strategy(cls) for cls in load_file(strategy)]
    return [make_strategy(strategy)]
