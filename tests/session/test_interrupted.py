"""A turn that is interrupted leaves a conversation as if its question had not been asked, wherever the interrupt comes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from conftest import QUICK_KINDS
from helpers.every import of_pictures
from helpers.labs import LAB_KINDS, noise, small_lab
from torch import Tensor

import illava_lab as il
from illava_lab.models.families import describe

FIRST, LOST, NEXT = "token17 token20 on the table?", "token5 token6 token7 token8?", "token19 token44 Why?"
LENGTH = 4  # new tokens of an answer
STRATEGIES = [name for name in of_pictures() if name not in ("none", "downsample")]


class Stop(Exception):
    """What somebody's `stream` raises."""


@contextmanager
def interrupted(lab: il.Lab, forward: int, layer: int) -> Iterator[None]:
    """Ctrl-C comes before a layer of the LLM in one of the forward passes; pass 0 reads the question."""
    passes = iter(range(100))

    def strike(*_: object) -> None:
        if next(passes) == forward:
            raise KeyboardInterrupt

    handle = describe(lab.model).llm_layers[layer].register_forward_pre_hook(strike)
    try:
        with pytest.raises(KeyboardInterrupt):
            yield
    finally:
        handle.remove()


def conversation(lab: il.Lab, strategy: str, lose: Callable[[il.Chat], object], at: int = 1) -> Tensor:
    """All tokens of a conversation of two questions; `lose` asks one in between, or before the first (at=0)."""
    keep = None if strategy == "none" else 0.5
    with il.chat(lab, noise(), strategy, keep) as talk:
        for turn, question in enumerate((FIRST, NEXT)):
            if turn == at:
                before = talk.tokens
                lose(talk)
                assert talk.tokens is before
            talk.say(question, max_new_tokens=LENGTH)
    assert talk.tokens is not None
    return talk.tokens


def lost_at(lab: il.Lab, forward: int, layer: int, stream: bool) -> Callable[[il.Chat], object]:
    def lose(talk: il.Chat) -> None:
        with interrupted(lab, forward, layer):
            talk.say(LOST, max_new_tokens=LENGTH, stream=(lambda piece: None) if stream else None)

    return lose


@pytest.mark.parametrize("strategy", ["none", "illava", "fastv", "tome"])
@pytest.mark.parametrize("kind", LAB_KINDS)
def test_ctrl_c_at_any_token_and_inside_the_prefill(kind: str, strategy: str) -> None:
    lab = small_lab(kind)
    untouched = conversation(lab, strategy, lambda talk: None)
    for number, forward in enumerate(range(LENGTH)):
        for layer in (0, 2):  # between layers whose caches are of different lengths then
            lose = lost_at(lab, forward, layer, stream=number % 2 == 0)
            assert torch.equal(conversation(lab, strategy, lose), untouched), (forward, layer)
    assert torch.equal(conversation(lab, strategy, lost_at(lab, 0, 2, False), at=0), untouched)
    assert torch.equal(conversation(lab, strategy, lost_at(lab, 2, 1, True), at=0), untouched)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_strategy(strategy: str) -> None:
    lab = small_lab("clip-llama")
    untouched = conversation(lab, strategy, lambda talk: None)
    assert torch.equal(conversation(lab, strategy, lost_at(lab, 2, 2, False)), untouched)
    assert torch.equal(conversation(lab, strategy, lost_at(lab, 0, 1, False)), untouched)


@pytest.mark.parametrize("kind", QUICK_KINDS)
def test_a_stream_that_fails_at_any_piece(kind: str) -> None:
    lab = small_lab(kind)
    untouched = conversation(lab, "illava", lambda talk: None)
    for last in range(1, 4):
        pieces: list[str] = []

        def stream(piece: str, last: int = last, pieces: list[str] = pieces) -> None:
            pieces.append(piece)
            if len(pieces) == last:
                raise Stop

        def lose(talk: il.Chat, stream: Callable[[str], None] = stream) -> None:
            with pytest.raises(Stop):
                talk.say(LOST, max_new_tokens=LENGTH, stream=stream)

        assert torch.equal(conversation(lab, "illava", lose), untouched)
        assert len(pieces) == last


def test_turns_that_are_refused_change_nothing() -> None:
    lab = small_lab("clip-llama")

    def lose(talk: il.Chat) -> None:
        for question, arguments in ((" ", {}), (LOST, {"use_cache": False}), (LOST, {"max_new_tokens": 0})):
            with pytest.raises(il.LabError):
                talk.say(question, **arguments)

    assert torch.equal(conversation(lab, "fastv", lose), conversation(lab, "fastv", lambda talk: None))


@pytest.mark.parametrize("kind", ["qwen2-vl", "qwen2.5-vl", "clip-llama"])
def test_other_prompts_in_between_do_not_move_a_conversation(kind: str) -> None:
    """Qwen-VL keeps on the model how far positions are from the number of tokens."""
    lab = small_lab(kind)

    def lose(talk: il.Chat) -> None:
        lab.answer([noise(200, 300)], ["token9"], max_new_tokens=2)

    assert torch.equal(conversation(lab, "fastv", lose), conversation(lab, "fastv", lambda talk: None))


def test_one_answer_at_a_time() -> None:
    lab, said = small_lab("clip-llama"), []
    with il.chat(lab, noise(), "fastv", 0.5) as talk:
        with pytest.raises(il.LabError, match="this conversation is in the middle of an answer"):
            talk.say(FIRST, max_new_tokens=LENGTH, stream=lambda piece: talk.say(NEXT, max_new_tokens=1))
        askers = [
            threading.Thread(target=lambda: said.append(talk.say(FIRST, max_new_tokens=LENGTH).text)) for _ in range(3)
        ]
        for asker in askers:
            asker.start()
        for asker in askers:
            asker.join()
    with il.chat(lab, noise(), "fastv", 0.5) as again:
        assert [again.say(FIRST, max_new_tokens=LENGTH).text for _ in range(3)] == said
