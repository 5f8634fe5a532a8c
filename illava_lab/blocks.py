"""`with` blocks that an interrupt (Ctrl-C) cannot leave open, whenever it comes.

What `contextlib.contextmanager` makes has two gaps: behind the generator's `yield`, before `with` knows of the block,
and at the call that leaves it, before its first line. A block that is left through one stays open as long as the
traceback lives: in a notebook until the next error.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import GEN_CREATED, GEN_SUSPENDED, getgeneratorstate
from typing import Any, Generic, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
T = TypeVar("T")
TRIES = 9


def block(make: Callable[P, Iterator[T]]) -> Callable[P, Block[T]]:
    """`contextlib.contextmanager` without the gaps."""
    managed = contextmanager(make)

    @functools.wraps(make)
    def enter(*args: P.args, **kwargs: P.kwargs) -> Block[T]:
        return Block(managed(*args, **kwargs))

    return enter


class _Exit(functools.partial):
    """What `with` calls in the end. If that call is cut short, nothing else holds this object, and its end is the exit.

    No method of Python could do that: the traceback would hold its `self`.
    """

    def __del__(self) -> None:
        generator = self.func.__self__.gen  # type: ignore[attr-defined]
        if getgeneratorstate(generator) == GEN_SUSPENDED:
            generator.close()


class _Door:
    """`__exit__` of a block. `with` looks it up before it enters: what is looked up later only leaves when called."""

    def __get__(self, entered: Block | None, owner: type[Block]) -> Callable[..., Any]:
        if entered is None:
            return lambda entered, *raised: entered._inside.__exit__(*raised)
        leave = entered._inside.__exit__
        return _Exit(leave) if getgeneratorstate(entered._inside.gen) == GEN_CREATED else leave


class Block(Generic[T]):
    """What `block` makes; use it in a `with` statement, once."""

    def __init__(self, inside: Any) -> None:
        self._inside = inside

    def __enter__(self) -> T:
        try:
            return self._inside.__enter__()
        except BaseException:
            self._inside.gen.close()
            raise

    __exit__ = _Door()


def gradients_kept() -> Block[None]:
    """Whether torch records for gradients is afterwards as before: an interrupt can stop torch's own way back, too."""
    before = torch.is_grad_enabled()
    return undone(lambda: torch.set_grad_enabled(before))


@block
def inference_mode(on: bool = True) -> Iterator[None]:
    """`torch.inference_mode`, of which an interrupt leaves nothing behind."""
    mode = torch.inference_mode(on)

    def leave() -> None:
        guard = getattr(mode, "_inference_mode_context", None)  # of C++: it puts things back when it goes, even late
        if guard is not None:
            guard.__exit__(None, None, None)

    with gradients_kept(), undone(leave):
        mode.__enter__()
        yield


@block
def undone(undo: Callable[[], object]) -> Iterator[None]:
    """However the block is left, `undo` runs to its end; it may run again, so it must look at what is there.

    An interrupt while it runs is passed on when it has ended.
    """
    try:
        try:
            yield
        finally:
            _to_its_end(undo)
    finally:  # the call of the line above can be cut short before its first line
        _to_its_end(undo)


def _to_its_end(undo: Callable[[], object], tries: int = TRIES) -> None:
    try:
        undo()
    except BaseException:
        if tries > 1:
            _to_its_end(undo, tries - 1)
        raise
