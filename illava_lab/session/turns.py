"""One call at a time: a model carries one attachment, a processor one setting of its padding."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

from torch import nn

from illava_lab.hooks.attach import attach
from illava_lab.method.strategy import Strategy
from illava_lab.schedules.plan import Plan
from illava_lab.trace.trace import Trace


class _Turn:
    """A lock that its owner may take again, and that any thread may give back: a generator may be closed by another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._owner: int | None = None

    @contextmanager
    def taken(self) -> Iterator[None]:
        me = threading.get_ident()
        if self._owner == me and self._lock.locked():
            yield
            return
        with self._lock:
            self._owner = me
            try:
                yield
            finally:
                self._owner = None


# By object, not on it: a lock can be neither copied nor pickled, and models are.
_turns: WeakKeyDictionary[Any, _Turn] = WeakKeyDictionary()
_making = threading.Lock()


def one_at_a_time(thing: Any) -> Any:
    """While the block is open, no other thread gets into such a block for the same object; it waits.

    A thread that is inside already goes on: a verb may call another one.
    """
    with _making:
        return _turns.setdefault(thing, _Turn()).taken()


def _forget() -> None:
    """In a forked process the threads that held something are gone."""
    global _turns, _making
    _turns, _making = WeakKeyDictionary(), threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


@contextmanager
def attached(model: nn.Module, strategy: Strategy, schedule: Plan, graphs: bool = False) -> Iterator[Trace]:
    """`attach`, one thread after the other.

    Raises:
        LabError: as `attach`; also where this thread is inside such a block already.
    """
    with one_at_a_time(model), attach(model, strategy, schedule, graphs=graphs) as trace:
        yield trace
