"""Threads that share a lab wait for each other: every answer is the one that a single thread gets."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from helpers.attached import structure
from helpers.labs import noise, small_lab

import illava_lab as il
from illava_lab.hooks.attach import is_attached

CALLS, THREADS = 100, 4
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


# ---------------------------------------------------------------------------------------------- attach
SCHEDULE = il.Schedule(llm={2: 0.5})


def test_threads_that_enter_attach_at_once_come_one_after_the_other() -> None:
    lab, at_once = small_lab("clip-llama"), threading.Barrier(THREADS)
    bare, open_now, most = structure(lab.model), [], []
    right = {name: lab.ask(noise(), "token5", name, max_new_tokens=2).text for name in STRATEGIES}

    def enter(name: str) -> None:
        at_once.wait(60)
        for _ in range(100):
            with il.attach(lab.model, name, SCHEDULE if name not in ("none", "tome") else None):
                open_now.append(name)
                most.append(len(open_now))
                open_now.pop()

    threads = [threading.Thread(target=enter, args=(name,)) for name in STRATEGIES]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(most) == 100 * THREADS and max(most) == 1
    assert structure(lab.model) == bare
    assert {name: lab.ask(noise(), "token5", name, max_new_tokens=2).text for name in STRATEGIES} == right


@pytest.mark.parametrize("verb", ["ask", "answer", "chat", "attach"])
def test_another_thread_waits_for_a_block_and_gets_its_own_answer(verb: str) -> None:
    lab, done, said = small_lab("clip-llama"), threading.Event(), []

    def run() -> Any:
        if verb == "ask":
            return lab.ask(noise(), "token5", max_new_tokens=3).text
        if verb == "answer":
            return lab.answer([noise()], ["token5"], max_new_tokens=3)
        if verb == "chat":
            with il.chat(lab, noise()) as talk:
                return talk.say("token5", max_new_tokens=3).text
        with il.attach(lab.model, "fastv", SCHEDULE):
            return lab.answer([noise()], ["token5"], max_new_tokens=3)

    alone = run()

    def other() -> None:
        said.append(run())
        done.set()

    with il.attach(lab.model, "random", il.Schedule(llm={1: 0.2})):
        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(0.3)
    thread.join(60)
    assert said == [alone]


@pytest.mark.parametrize("verb", ["ask", "answer", "chat", "attach"])
def test_another_task_of_the_thread_is_refused_and_the_block_goes_on(verb: str) -> None:
    lab = small_lab("clip-llama")
    reduced = lab.ask(noise(), "token5", "fastv", schedule=SCHEDULE, max_new_tokens=3).text

    async def holds(inside: asyncio.Event, leave: asyncio.Event) -> str:
        with il.attach(lab.model, "fastv", SCHEDULE):
            inside.set()
            await leave.wait()
            return lab.answer([noise()], ["token5"], max_new_tokens=3)[0]

    async def asks() -> None:
        if verb == "ask":
            lab.ask(noise(), "token5")
        elif verb == "answer":
            lab.answer([noise()], ["token5"])
        elif verb == "chat":
            with il.chat(lab, noise(), "tome"):
                pass
        else:
            with il.attach(lab.model, "tome"):
                pass

    async def both() -> str:
        inside, leave = asyncio.Event(), asyncio.Event()
        holder = asyncio.create_task(holds(inside, leave))
        await inside.wait()
        with pytest.raises(il.LabError, match="another asyncio task of this thread is using this model"):
            await asyncio.create_task(asks())
        leave.set()
        return await holder

    assert asyncio.run(both()) == reduced
    assert lab.answer([noise()], ["token5"], max_new_tokens=3) == [lab.ask(noise(), "token5", max_new_tokens=3).text]


def test_a_loop_that_runs_inside_a_block_is_inside() -> None:
    lab = small_lab("clip-llama")
    reduced = lab.ask(noise(), "token5", "fastv", schedule=SCHEDULE, max_new_tokens=3).text

    async def answered() -> str:
        return lab.answer([noise()], ["token5"], max_new_tokens=3)[0]

    with il.attach(lab.model, "fastv", SCHEDULE):
        assert asyncio.run(answered()) == reduced


def test_a_block_that_a_thread_left_open_when_it_ended_is_named() -> None:
    lab, blocks = small_lab("clip-llama"), []

    def leave_open() -> None:
        blocks.append(il.attach(lab.model, "fastv", SCHEDULE))
        blocks[0].__enter__()

    thread = threading.Thread(target=leave_open)
    thread.start()
    thread.join(60)
    with pytest.raises(il.LabError, match="a thread that has ended left a block open that uses this model"):
        lab.ask(noise(), "token5")
    blocks.clear()  # nobody holds it any more, and that closes it
    assert lab.ask(noise(), "token5", max_new_tokens=1).timing.tokens == 1


def test_an_abandoned_generator_lets_the_model_go() -> None:
    lab = small_lab("clip-llama")
    bare = structure(lab.model)

    def answers() -> Iterator[str]:
        with il.attach(lab.model, "fastv", SCHEDULE):
            while True:
                yield lab.answer([noise()], ["token5"], max_new_tokens=1)[0]

    asking = answers()
    next(asking)
    with pytest.raises(il.LabError, match="this model already has a strategy attached"):
        lab.ask(noise(), "token5")
    del asking
    assert structure(lab.model) == bare and not is_attached(lab.model)
    assert lab.ask(noise(), "token5", max_new_tokens=1).timing.tokens == 1
