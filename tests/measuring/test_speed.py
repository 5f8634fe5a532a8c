"""Clocks and answers: for their shape, not their value."""

from __future__ import annotations

import time

import pytest
import torch
from conftest import Prompt, make_inputs

import illava_lab as il
from illava_lab.measuring import by_hand, measure
from illava_lab.measuring.clock import busy, timed
from illava_lab.measuring.largest import largest_batch, largest_that_fits
from illava_lab.measuring.speed import answer_seconds

CPU = torch.device("cpu")
RANDOM, SCHEDULE = il.get_strategy("random")(), il.Schedule(encoder={1: 20}, llm={2: 0.5})


def test_host_and_device_are_told_apart() -> None:
    out, span = timed(lambda: time.sleep(0.02) or 7, CPU)
    assert out == 7 and 0.02 <= span.host <= span.wall < 0.2
    assert span.device != span.device and busy(lambda: None, CPU) != busy(lambda: None, CPU)  # NaN


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device, which works while the host goes on")
def test_a_device_works_on_when_the_call_has_returned() -> None:
    one = torch.ones(8192, 8192, device="cuda")
    _, span = timed(lambda: [one @ one for _ in range(20)], one.device)
    assert span.host < span.device / 2 and span.device == pytest.approx(span.wall, rel=0.2)
    assert busy(lambda: one @ one, one.device) == pytest.approx(span.device / 20, rel=0.5)


def test_a_loop_by_hand_is_timed_beside_the_others(model) -> None:
    inputs = make_inputs([Prompt(), Prompt()])
    loop = by_hand.prefill(model, inputs, RANDOM, SCHEDULE)
    by, own = measure.speeds(model, inputs, [loop, (RANDOM, SCHEDULE)], rounds=3, new_tokens=2)
    assert len(by.prefill) == len(own.prefill) == 3 and min(by.prefill + own.prefill + own.decode) > 0
    assert all(seconds != seconds for seconds in by.decode)  # it has no decoding


@pytest.mark.parametrize("own", [None, (RANDOM, SCHEDULE)])
def test_answers_are_as_long_as_was_asked_for(model, own: measure.Configuration) -> None:
    inputs, calls = make_inputs([Prompt()]), []
    handle = model.register_forward_pre_hook(lambda *_: calls.append(time.perf_counter()))
    try:
        seconds = answer_seconds(model, inputs, own, [1, 2, 5])
    finally:
        handle.remove()
    assert len(calls) == 5  # the prefill gives the first token
    assert seconds == sorted(seconds) and seconds[1] >= calls[1] - calls[0] and seconds[2] >= calls[4] - calls[0]


@pytest.mark.parametrize("most", [1, 5, 16, 300])
def test_the_largest_batch_is_one_that_fitted(most: int) -> None:
    for limit in range(0, 320, 7):
        tried: list[int] = []
        found = largest_that_fits(lambda batch, limit=limit, tried=tried: tried.append(batch) or batch <= limit, most)
        best = min(limit, most)
        assert found <= best and best - found <= max(0, found // 16)
        assert (found == 0 or found in tried) and max(tried) <= most and len(tried) == len(set(tried))


def test_nothing_is_said_of_the_largest_batch_on_a_cpu(model) -> None:
    found = largest_batch(model, make_inputs([Prompt()]), None, 4)
    assert found != found
