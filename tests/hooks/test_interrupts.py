"""An interrupt leaves nothing on the model, whenever it comes: every place is tried, not some at random."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import pytest
import torch
from conftest import Prompt, make_inputs, shared_llava
from helpers.attached import forward, structure
from helpers.interrupts import interrupted

import illava_lab as il
from illava_lab.blocks import block, undone
from illava_lab.hooks import turns
from illava_lab.hooks.attach import is_attached
from illava_lab.hooks.changes import Changes
from illava_lab.models.families import describe

FAMILIES = ("clip-llama", "onevision", "qwen2.5-vl")
SCHEDULE = il.Schedule({1: 0.7}, {2: 0.5})


def holding(model: torch.nn.Module) -> bool:
    """Whether somebody has the model's turn."""
    turn = turns._turns.get(describe(model).base)
    return turn is not None and turn._lock.locked()


def quietly() -> None:
    pass


def stopped(*_: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("family", "inside"),
    [
        ("clip-llama", quietly),
        ("clip-llama", stopped),
        pytest.param("onevision", quietly, marks=pytest.mark.slow),
        pytest.param("qwen2.5-vl", stopped, marks=pytest.mark.slow),
    ],
)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_at_every_place_on_entering_and_on_leaving(family: str, inside: Callable[[], None]) -> None:
    """Also while what an interrupt in the block left is taken back: then it is a second one."""
    model, inputs = shared_llava(family), make_inputs([Prompt()], family)
    logits, bare = forward(model, inputs), structure(model)

    def run() -> None:
        with il.attach(model, "illava", SCHEDULE):
            inside()

    interrupted(sys.maxsize, run)  # what is imported late is imported now
    at = 0
    while (strike := interrupted(at, run)).struck:
        assert structure(model) == bare, f"place {at} leaves something behind"
        assert not is_attached(model) and not holding(model), f"place {at}"
        if at % 100 == 0:
            assert torch.equal(forward(model, inputs), logits)
        at += 1
    assert at > 500 and strike.seen == at
    assert torch.equal(forward(model, inputs), logits)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_many_interrupts_leave_goes_with_the_next_block(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, inputs = shared_llava(family), make_inputs([Prompt()], family)
    logits, bare = forward(model, inputs), structure(model)
    with il.attach(model, "illava", SCHEDULE):
        reduced = forward(model, inputs)
    with monkeypatch.context() as patched:
        patched.setattr(Changes, "undo", stopped)  # as often as it is tried
        with pytest.raises(KeyboardInterrupt), il.attach(model, "illava", SCHEDULE):
            assert torch.equal(forward(model, inputs), reduced)
    assert structure(model) != bare and not is_attached(model)
    with il.attach(model, "illava", SCHEDULE):
        assert torch.equal(forward(model, inputs), reduced)
    assert structure(model) == bare
    assert torch.equal(forward(model, inputs), logits)


# ---------------------------------------------------------------------------------------------- blocks
def test_a_block_is_open_until_with_leaves_it_whatever_is_looked_up() -> None:
    seen = []

    @block
    def made() -> Iterator[str]:
        seen.append("in")
        try:
            yield "value"
        finally:
            seen.append("out")

    entered = made()
    assert hasattr(entered, "__exit__")  # which makes one, and drops it
    with entered as value:
        assert hasattr(entered, "__exit__") and value == "value" and seen == ["in"]
    assert seen == ["in", "out"]
    with ExitStack() as stack:
        stack.enter_context(made())
        assert seen == ["in", "out", "in"]
    assert seen == ["in", "out"] * 2
    with pytest.raises(ZeroDivisionError), made():
        raise ZeroDivisionError
    assert seen == ["in", "out"] * 3


def test_undo_that_fails_is_reported() -> None:
    def fail() -> None:
        raise ValueError("deliberate")

    with pytest.raises(ValueError, match="deliberate"), undone(fail):
        pass


def test_the_ordinary_way_would_fail_this_test() -> None:
    """Else it would show nothing: what `contextlib.contextmanager` makes is left open by some interrupts."""
    opened = []

    @contextmanager
    def ordinary() -> Iterator[None]:
        opened.append(True)
        try:
            yield
        finally:
            opened.pop()

    def run() -> None:
        with ordinary():
            pass

    at, left = 0, 0
    while (strike := interrupted(at, run, (contextlib.__file__,))).struck:
        left += len(opened)
        strike.raised = None
        opened.clear()
        at += 1
    assert left > 0
