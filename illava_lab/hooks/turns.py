"""One call at a time: a model carries one attachment, a processor one setting of its padding."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from illava_lab.blocks import Block, block
from illava_lab.errors import LabError
from illava_lab.models.families import describe


@dataclass(frozen=True, eq=False)
class _Holder:
    thread: threading.Thread
    task: asyncio.Task[Any] | None


class _Turn:
    """A lock that its owner may take again, and that any thread may give back: a generator may be closed by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._holder: _Holder | None = None

    @block
    def taken(self) -> Iterator[None]:
        me, holder = _Holder(threading.current_thread(), _task()), self._holder
        if holder is not None and self._lock.locked():
            if holder.thread is me.thread:
                _check_task(holder.task, me.task)
                yield
                return
            self._check_thread(holder)
        with self._lock:
            try:
                self._holder = me
                yield
            finally:
                self._holder = None

    def _check_thread(self, holder: _Holder) -> None:
        """Nobody waits for a thread that has ended."""
        if not holder.thread.is_alive():
            gc.collect()  # a block that nobody can reach any more is left now
            if self._holder is holder:
                raise LabError("a thread that has ended left a block open that uses this model; close that block")


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no event loop runs in this thread
        return None


def _check_task(holding: asyncio.Task[Any] | None, mine: asyncio.Task[Any] | None) -> None:
    """Tasks share a thread, and waiting would stop both."""
    if holding is not None and holding is not mine and not holding.done():
        raise LabError(
            "another asyncio task of this thread is using this model; let one await the other, or use a thread for each"
        )


# By object, not on it: a lock can be neither copied nor pickled, and models are.
_turns: WeakKeyDictionary[Any, _Turn] = WeakKeyDictionary()
_making = threading.Lock()


def one_at_a_time(thing: Any) -> Block[None]:
    """While the block is open, no other thread gets into such a block for the same object; it waits.

    Who is inside already goes on: a verb may call another one. A model is the same in every wrapper.

    Raises:
        LabError: on entering, where waiting would never end: another asyncio task of this thread is inside, or a thread
            that has ended.
    """
    key = describe(thing).base if isinstance(thing, nn.Module) else thing
    with _making:
        return _turns.setdefault(key, _Turn()).taken()


def _forget() -> None:
    """In a forked process the threads that held something are gone."""
    global _turns, _making
    _turns, _making = WeakKeyDictionary(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
