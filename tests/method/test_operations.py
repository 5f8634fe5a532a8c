"""How many operations a reduction asks of the device: each costs a GPU's host as much as the next, whatever it does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor

import illava_lab as il
from illava_lab.measuring.operations import operations
from illava_lab.method import adding
from illava_lab.method.ask import ask
from illava_lab.method.keep import kept

PATCHES, TEXT, HEADS_WIDE = 576, 7, 128
LSE = {"score": "lse"}

# (stage, strategy, settings, kept, most operations). What published presets run comes first, with their settings.
LIMITS: list[tuple[str, str, dict[str, Any], float | int, int]] = [
    ("encoder", "illava", {}, 484, 17),
    ("encoder", "illava-2026", LSE, 0.85, 35),
    ("encoder", "tome", {}, 560, 36),
    ("encoder", "tally", {}, 560, 60),
    ("encoder", "visionzip", {}, 64, 38),
    ("llm", "fastv", {}, 0.25, 7),
    ("llm", "illava", {}, 0.7, 16),
    ("llm", "tally", {}, 0.7, 12),
    ("llm", "illava-2026", LSE, 0.7, 34),
    ("encoder", "illava", {"ramp": "size"}, 484, 19),
    ("encoder", "illava-2026", {"mode": "drop"}, 484, 8),
    ("encoder", "illava-2026", {"mode": "shift"}, 484, 21),
    ("encoder", "illava-2026", {"mode": "nearest"}, 484, 34),
    ("encoder", "illava-2026", {"groups": True}, 484, 66),
    ("encoder", "tome", {"order": "raster"}, 560, 39),
    ("encoder", "tome", {"sizes": "reset"}, 560, 51),
    ("encoder", "visionzip", {"merge": "mean"}, 64, 43),
    ("encoder", "visionzip", {"contextual": 0}, 64, 8),
    ("encoder", "prumerge", {}, 64, 56),
    ("encoder", "prumerge+", {}, 64, 143),
    ("encoder", "pool", {}, 144, 19),
    ("encoder", "pool", {"bins": "disjoint"}, 144, 31),
    ("encoder", "divprune", {}, 56, 3 * 57 + 36),
    ("encoder", "fastervlm", {}, 64, 8),
    ("encoder", "vispruner", {}, 64, 1237),
    ("encoder", "holov", {}, 64, 80),
    ("encoder", "flowcut", {}, 64, 8),
    ("encoder", "vscan", {}, 96, 80),
    ("encoder", "scope", {}, 8, 13 * 9 + 40),
    ("encoder", "stride", {}, 144, 7),
    ("encoder", "random", {}, 144, 9),
    ("llm", "pyramiddrop", {}, 0.5, 7),
    ("llm", "sparsevlm", {}, 309, 24),
    ("llm", "sparsevlm", {"recycle": True}, 309, 72),
    ("llm", "dart", {}, 124, 65),
    ("llm", "stride", {}, 144, 4),
]


def given(batch: int, count: int, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every statistic, as plain tensors: what computes them is not counted here."""
    draw = torch.Generator().manual_seed(0)
    rand = lambda *shape: torch.randn(batch, *shape, generator=draw).to(dtype)
    scores = ("attention_received", "cls_attention", "text_attention", "next_text_attention", "wide_cls_attention")
    out = {name: rand(count).float().softmax(1) for name in scores}
    out |= {name: rand(count, 64) for name in ("hidden", "keys", "normed_hidden", "embeddings")}
    out |= {"noted": rand(count).float().softmax(1)}
    out |= {name: rand(TEXT, 64) for name in ("text_normed_hidden", "text_embeddings")}
    wide = {"wide_keys": rand(count, HEADS_WIDE), "text_wide_keys": rand(TEXT, HEADS_WIDE)}
    return out | wide | {"lse": rand(count).float(), "text_rows": rand(TEXT, count).float().softmax(2)}


@pytest.mark.parametrize(("stage", "name", "settings", "keep", "most"), LIMITS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("batch", [1, 4])
def test_a_reduction_asks_few_operations_of_an_accelerator(
    monkeypatch: pytest.MonkeyPatch,
    batch: int,
    dtype: torch.dtype,
    stage: Any,
    name: str,
    settings: dict[str, Any],
    keep: float | int,
    most: int,
) -> None:
    monkeypatch.setattr(adding, "ADD_IN_ORDER", set())
    strategy, cls = il.get_strategy(name)(**settings), int(stage == "encoder")
    statistics, position = given(batch, PATCHES + cls, dtype), torch.arange(-cls, PATCHES).expand(batch, -1)
    hidden, size, protected = statistics.pop("hidden"), torch.ones(batch, PATCHES + cls), position < 0

    def run() -> None:
        tokens = il.Tokens(
            stage, hidden, size=size, position=position, protected=protected if cls else None, protected_count=cls,
            grid=(24, 24), **statistics,
        )  # fmt: skip
        reduction = ask(strategy, tokens, kept(keep, PATCHES, "") + cls)
        reduction.apply(hidden)
        if name == "tome":  # proportional attention needs them
            reduction.sizes(size)

    with torch.no_grad():
        run()  # numbers of the host are brought once
        counted = operations(run)
    assert sum(counted.values()) <= most, Counter(counted).most_common()
