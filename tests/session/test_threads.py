"""Threads that share a lab wait for each other: every answer is the one that a single thread gets."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers.labs import noise, small_lab

import illava_lab as il
from illava_lab.hooks.attach import is_attached

CALLS, THREADS = 200, 4
STRATEGIES = ("none", "fastv", "illava", "tome")


@pytest.mark.parametrize("kind", ["clip-llama", "qwen2-vl"])
def test_calls_from_four_threads_are_each_right(kind: str) -> None:
    lab, draw = small_lab(kind), random.Random(0)
    pictures = [noise(60, 60 + 30 * i, seed=i) for i in range(3)]

    def one(asked: tuple[str, int, int, str]) -> Any:
        strategy, picture, number, verb = asked
        image, question = pictures[picture], " ".join(f"token{number + i}" for i in range(number + 2))
        if verb == "answer":
            return lab.answer([image], [question], max_new_tokens=4)
        if verb == "chat":
            with il.chat(lab, image, strategy) as talk:
                return [talk.say(question, max_new_tokens=3).text for _ in range(2)]
        answer = lab.ask(image, question, strategy, max_new_tokens=4)
        return answer.text, [(step.stage, step.layer, step.after) for step in answer.trace.steps]

    every = [
        (strategy, picture, number, verb)
        for strategy in STRATEGIES
        for picture in range(len(pictures))
        for number in range(3)
        for verb in ("ask", "ask", "ask", "answer", "chat")
    ]
    alone = {asked: one(asked) for asked in set(every)}
    calls = [draw.choice(every) for _ in range(CALLS)]
    with ThreadPoolExecutor(THREADS) as pool:
        together = list(pool.map(one, calls))
    assert [asked for asked, got in zip(calls, together, strict=True) if got != alone[asked]] == []
    assert not is_attached(lab.model)


def test_a_call_waits_for_a_conversation_of_another_thread_and_not_for_its_own() -> None:
    lab, done = small_lab("clip-llama"), threading.Event()
    alone = lab.ask(noise(), "token5", "fastv", max_new_tokens=3).text
    said: list[str] = []

    def ask() -> None:
        said.append(lab.ask(noise(), "token5", "fastv", max_new_tokens=3).text)
        done.set()

    with il.chat(lab, noise(), "illava") as talk:
        other = threading.Thread(target=ask)
        other.start()
        talk.say("token6", max_new_tokens=3)
        assert not done.wait(0.3)
        with pytest.raises(il.LabError, match="this model already has a strategy attached"):
            lab.ask(noise(), "token5", "fastv")
        with pytest.raises(il.LabError, match="this model already has a strategy attached"):
            il.chat(lab, noise(), "fastv").__enter__()
        assert not done.is_set()
    other.join(60)
    assert said == [alone]


def test_a_failed_call_lets_the_next_one_in() -> None:
    lab = small_lab("clip-llama")
    for _ in range(3):
        with pytest.raises(il.LabError):
            lab.ask(noise(), "token5", "fastv", keep=0.5, max_new_tokens=10**6)
        with pytest.raises(ZeroDivisionError), il.chat(lab, noise(), "fastv"):
            raise ZeroDivisionError
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lab.ask, noise(), "token5", max_new_tokens=1).result(60).timing.tokens == 1


def test_a_conversation_that_another_thread_ends_lets_the_next_call_in() -> None:
    """A generator that nobody holds any more is closed by whichever thread collects it."""
    lab = small_lab("clip-llama")
    block = il.chat(lab, noise(), "fastv")
    block.__enter__()
    ending = threading.Thread(target=block.__exit__, args=(None, None, None))
    ending.start()
    ending.join(60)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(lab.ask, noise(), "token5", max_new_tokens=1).result(60).timing.tokens == 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_process_does_not_wait_for_threads_that_it_does_not_have() -> None:
    lab, inside, leave = small_lab("clip-llama"), threading.Event(), threading.Event()

    def hold() -> None:
        with il.chat(lab, noise()):
            inside.set()
            leave.wait(60)

    holder = threading.Thread(target=hold)
    holder.start()
    assert inside.wait(60)
    child = os.fork()
    if child == 0:
        try:
            lab.inputs([noise()], ["token5"])
            os._exit(0 if is_attached(lab.model) else 1)
        finally:
            os._exit(2)
    leave.set()
    holder.join(60)
    assert os.waitpid(child, 0)[1] == 0
