"""What must hold before times mean anything; `gpu.py` checks it on the model that it is going to time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

import illava_lab as il
from illava_lab.measuring import measure
from illava_lab.measuring.bench_case import QUESTION
from illava_lab.measuring.rows import Row
from illava_lab.measuring.speed import WARM_UP

OTHER = "How many people are in it, and what are they doing?"
# Rounding in another order is no fault: the bare model's own differences are the measure of it.
TIMES_BARE, FLOOR = 3.0, 1e-5


class Check(NamedTuple):
    """One of them, and what was seen."""

    name: str
    passed: bool
    seen: str

    def __str__(self) -> str:
        return f"{'pass' if self.passed else 'FAIL'}  {self.name:<58} {self.seen}"


def checks(lab: il.Lab, image: Any, rows: list[Row], graphs: bool) -> Iterator[Check]:
    """Identity, the same bits twice, a batch against its prompts alone, cached against plain decoding; with graphs, the
    answer against that without."""
    one, both = lab.inputs([image], [QUESTION]), lab.inputs([image, image], [QUESTION, OTHER])
    bare = _logits(lab, one, None)
    none = il.get_strategy("none")(), il.Schedule()
    yield Check("none attached is the bare model, bit for bit", torch.equal(_logits(lab, one, none, graphs), bare), "")
    usual = {"batch": _batch(lab, both, one, None), "plain": _plain(lab, one, None)}
    words = {"batch": "a prompt in a batch as alone", "plain": "a step with the cache as without"}
    for row in rows:
        name = f"{row.name} {row.given}"
        if isinstance(row.schedule, Exception):
            yield Check(name, False, str(row.schedule))
            continue
        own = row.strategy, row.schedule
        try:
            with measure.attached(lab.model, own, graphs):
                runs = [_run(lab, one) for _ in range(WARM_UP + 3)]
            last, *others = reversed(runs[WARM_UP if graphs else 0 :])
            yield Check(f"{name}: the same bits again", all(torch.equal(last, other) for other in others), "")
            if graphs:
                seen, allowed = _apart(last, _logits(lab, one, own)), _allowed(usual["batch"])
                yield Check(f"{name}: with graphs as without", seen <= allowed, f"{seen:.1e} of {allowed:.1e}")
            differences = {"batch": _batch(lab, both, one, own), "plain": _plain(lab, one, own)}
            for what, seen in differences.items():
                allowed = _allowed(usual[what])
                yield Check(f"{name}: {words[what]}", seen <= allowed, f"{seen:.1e} of {allowed:.1e}")
        except Exception as error:  # the others are checked all the same
            yield Check(name, False, f"{type(error).__name__}: {error}")


def _allowed(bare: float) -> float:
    return max(TIMES_BARE * bare, FLOOR)


def _run(lab: il.Lab, inputs: measure.Inputs) -> Tensor:
    """(B, V) logits of the first token, as they are now; a graph writes over its own."""
    logits: Tensor = measure.prefill(lab.model, inputs).logits[:, -1]
    return logits.clone()


def _logits(lab: il.Lab, inputs: measure.Inputs, own: measure.Configuration, graphs: bool = False) -> Tensor:
    with measure.attached(lab.model, own, graphs):
        return _run(lab, inputs)


def _batch(lab: il.Lab, both: measure.Inputs, one: measure.Inputs, own: measure.Configuration) -> float:
    """How far the first prompt of a padded batch is from the same prompt alone."""
    return _apart(_logits(lab, both, own)[:1], _logits(lab, one, own))


@torch.inference_mode()
def _plain(lab: il.Lab, inputs: measure.Inputs, own: measure.Configuration) -> float:
    """How far the second token's logits are from those of a model that reads everything again."""
    seen = []
    with measure.attached(lab.model, own):
        for use_cache in (True, False):
            out = lab.model.generate(
                **inputs, max_new_tokens=2, min_new_tokens=2, do_sample=False, use_cache=use_cache, output_logits=True,
                return_dict_in_generate=True,
            )  # fmt: skip
            seen.append(out.logits[1])
    return _apart(*seen)


def _apart(first: Tensor, second: Tensor) -> float:
    """The largest difference, as a share of the largest logit."""
    return float((first.float() - second.float()).abs().max() / second.float().abs().max())
