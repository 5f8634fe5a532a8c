"""Modes of torch that count what runs (operations, memory, FLOPs), of which no interrupt leaves one on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TypeVar

from torch.utils._python_dispatch import TorchDispatchMode, _get_current_dispatch_mode_stack, _pop_mode
from torch.utils.flop_counter import FlopCounterMode

from illava_lab.method.blocks import block, undone

M = TypeVar("M", bound=TorchDispatchMode | FlopCounterMode)


@block
def within(mode: M) -> Iterator[M]:
    """`with mode:`, which is over when the block is, however it is left."""
    depth = len(_get_current_dispatch_mode_stack())

    def leave() -> None:
        while len(on := _get_current_dispatch_mode_stack()) > depth:
            if getattr(on[-1], "old_dispatch_mode_flags", None):
                on[-1].__exit__(None, None, None)  # type: ignore[no-untyped-call]
            else:  # an interrupt came between what its own way out does
                _pop_mode(getattr(on[-1], "_mode_key", None))
        tracker = getattr(mode, "mod_tracker", None)  # that counter also hooks every module there is
        for handle in ("_fw_pre_handle", "_fw_post_handle"):
            if hasattr(tracker, handle):
                getattr(tracker, handle).remove()

    with undone(leave):
        mode.__enter__()  # type: ignore[no-untyped-call]
        yield mode
