"""Every strategy with every setting that changes its way, and what it may be asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

import illava_lab as il
from illava_lab.method.declared import declared
from illava_lab.testing import variants
from illava_lab.testing.cases import Case
from illava_lab.testing.subject import Subject

NUMBERS = {
    "dart": [{"pivot_text_token": 0}, {"pivot_image_token": 1}],
    "illava-2026": [{"recycling": 0.3}, {"mode": "nearest", "score": "lse"}, {"groups": True, "mode": "drop"}],
    "prumerge": [{"neighbours": 3}],
    "prumerge+": [{"neighbours": 0, "merge": "mean"}],
    "tome": [{"sizes": "reset", "order": "raster", "attention": "plain"}],
    "visionzip": [{"contextual": 0}, {"contextual": 4, "merge": "mean"}, {"contextual": 1.0}],
    "vispruner": [{"important_ratio": 0.0}],
}


def of_pictures() -> list[str]:
    """Names of the strategies that reduce pictures, and not videos alone."""
    return [name for name, cls in il.strategies().items() if "image" in declared(cls, "media")]


def every() -> list[il.Strategy]:
    """The lab's own strategies, with every choice and the numbers above."""
    own = [make for make in il.strategies().values() if make.__module__.startswith("illava_lab.strategies.")]
    return [
        strategy for make in own for strategy in [*variants(make()), *(make(**n) for n in NUMBERS.get(make.name, []))]
    ]


def cases(strategy: il.Strategy, patches: int = 36, batch: int = 2) -> Iterator[Case]:
    """Everywhere the strategy may be, with and without CLS, after another reduction, among line ends."""
    for case in Subject(strategy).cases(patches, keeps=(0.6,), batch=batch):
        yield case
        if case.stage == "llm":
            yield replace(case, newlines=3, keep=case.keep + 3)


in_every_strategy = pytest.mark.parametrize("strategy", every(), ids=lambda strategy: strategy.label)
