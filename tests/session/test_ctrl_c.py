"""Ctrl-C in a verb, at places spread over all of it: nothing stays on the model, and the next answer is right."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest
import torch
from helpers.attached import structure
from helpers.interrupts import interrupted
from helpers.labs import noise, small_lab
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

import illava_lab as il
from illava_lab.hooks.attach import is_attached

ASKED = ("token17 token20 on the table?", "token5 token6?", "token19 Why?")
PLACES = 30  # of each verb; `make fuzz` strikes anywhere, and for longer
LAB = small_lab("clip-llama")


def ask() -> str:
    return LAB.ask(noise(), ASKED[0], "illava", max_new_tokens=2).text


def ask_for_flops() -> str:
    return LAB.ask(noise(), ASKED[0], "fastv", flops=0.8, max_new_tokens=1).text


def conversation() -> list[int]:
    with il.chat(LAB, noise(), "fastv") as talk:
        talk.say(ASKED[0], max_new_tokens=2)
        return said(talk)


def compared() -> list[float]:
    task = il.load_task("test").limited(1)
    table = il.compare(LAB, ["fastv"], 0.5, task=task, timing=False, progress=False)
    return table["tokens"].tolist()


def said(talk: il.Chat) -> list[int]:
    return [] if talk.tokens is None else talk.tokens[0].tolist()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("verb", [ask, ask_for_flops, conversation, pytest.param(compared, marks=pytest.mark.slow)])
def test_everything_is_as_before(verb: Callable[[], object]) -> None:
    right = verb()
    bare, weights = structure(LAB.model), [tensor.clone() for tensor in LAB.model.state_dict().values()]
    places = interrupted(sys.maxsize, verb).seen
    assert places > PLACES
    tried = PLACES // 3 if verb is compared else PLACES
    struck = 0
    for number in range(tried):
        at = places * number // tried
        strike = interrupted(at, verb)
        struck += strike.struck  # the last places may be missing: what is remembered since makes a run shorter
        assert structure(LAB.model) == bare and not is_attached(LAB.model), at
        assert not _get_current_dispatch_mode_stack(), at
        assert torch.is_grad_enabled() and not torch.is_inference_mode_enabled(), at
    assert struck >= 0.9 * tried
    assert verb() == right
    assert all(torch.equal(*pair) for pair in zip(LAB.model.state_dict().values(), weights, strict=True))


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_turn_is_either_heard_or_was_not_asked() -> None:
    """Also where the interrupt comes between the end of the answer and whoever waits for it."""
    with il.chat(LAB, noise(), "fastv") as talk:
        untouched = []
        for question in ASKED:
            talk.say(question, max_new_tokens=2)
            untouched.append(said(talk))

    with il.chat(LAB, noise(), "fastv") as talk:
        talk.say(ASKED[0], max_new_tokens=2)

        def lost() -> None:
            talk.say(ASKED[1], max_new_tokens=2)

        places = interrupted(sys.maxsize, lost).seen
        spread = {places * number // PLACES for number in range(PLACES)}
        last = set(range(places - 40, places))  # the answer is there, and not handed over
    for at in sorted(spread | last):
        with il.chat(LAB, noise(), "fastv") as talk:
            talk.say(ASKED[0], max_new_tokens=2)
            strike = interrupted(at, lost)
            if strike.raised is not None:
                assert said(talk) == untouched[0], at
                lost()
            assert said(talk) == untouched[1], at
