"""How much memory a piece of code needs at its worst moment, on any device: torch counts that on accelerators only."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While open, counts the bytes of all tensors that were made inside and are still alive.

    What an operation allocates and frees within itself, such as the work space of a kernel, is not seen.

    Attributes:
        now: bytes alive; peak: the most there ever were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: weakref.WeakSet[torch.UntypedStorage] = weakref.WeakSet()

    def __torch_dispatch__(self, operation: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None) -> Any:
        with self:  # composite operations come whole in inference mode, and would hide what they make on the way
            out = operation.decompose(*args, **kwargs or {})
        if out is not NotImplemented:
            return out
        before = {id(leaf.untyped_storage()) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)}
        out = operation(*args, **kwargs or {})
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and id(storage := leaf.untyped_storage()) not in before:  # a view is no new memory
                self._count(storage)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._freed, storage.nbytes())

    def _freed(self, size: int) -> None:
        self.now -= size
