"""Ctrl-C at one chosen place: not at random, so that every place can be tried.

Python looks for signals where a function begins, where a generator goes on, where a loop starts over, and where a call of
C code has returned. A `Strike` raises `KeyboardInterrupt` at the n-th such place in the files that it is told.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import torch

import illava_lab

LAB = str(Path(illava_lab.__file__).parent)
HOOKS = (f"{LAB}/hooks/", contextlib.__file__, torch.nn.modules.module.__file__)


class Strike:
    """While the block is open, `KeyboardInterrupt` comes at place number `at` of the code in files that begin so.

    Attributes:
        struck: whether it came, which it does not where there are fewer places.
        raised: what arrived; None where it came in a finalizer, of which Python itself reports it.
        seen: how many places there were.
    """

    def __init__(self, at: int, files: tuple[str, ...] = HOOKS) -> None:
        self.at, self.files, self.seen, self.struck = at, files, 0, False
        self._last: dict[FrameType, int] = {}  # where each frame was
        self.raised: KeyboardInterrupt | None = None

    def __enter__(self) -> Strike:
        sys.setprofile(self._profile)
        sys.settrace(self._trace)
        return self

    def __exit__(self, *raised: Any) -> None:
        sys.settrace(None)
        sys.setprofile(None)
        self._last.clear()

    def _trace(self, frame: FrameType, event: str, _: Any) -> Callable | None:
        if not self._counts(frame):
            return None
        if event == "call":
            frame.f_trace_opcodes, self._last[frame] = True, sys.maxsize
        elif event == "opcode":
            last, self._last[frame] = self._last.get(frame, -1), frame.f_lasti
            if frame.f_lasti < last:  # begun, gone on, or jumped back
                self._place()
        elif event == "exception":  # thrown into a generator, which looks for no signals
            self._last[frame] = -1
        elif event == "return":
            self._last.pop(frame, None)
        return self._trace

    def _profile(self, frame: FrameType, event: str, _: Any) -> None:
        if event == "c_return" and self._counts(frame):
            self._place()

    def _counts(self, frame: FrameType) -> bool:
        return frame.f_code.co_filename != __file__ and frame.f_code.co_filename.startswith(self.files)

    def _place(self) -> None:
        if self.struck:
            return
        self.seen += 1
        if self.seen > self.at:
            self.struck = True
            self._last.clear()
            raise KeyboardInterrupt


def interrupted(at: int, run: Callable[[], object], files: tuple[str, ...] = HOOKS) -> Strike:
    """Run something with an interrupt at place number `at`, and hold on to its traceback, as a notebook does."""
    strike = Strike(at, files)
    try:
        with strike:
            run()
    except KeyboardInterrupt as interrupt:
        strike.raised = interrupt
    return strike
