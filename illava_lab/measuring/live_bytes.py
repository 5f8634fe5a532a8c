"""How much memory a piece of code needs at its worst moment, on any device: torch counts that on accelerators only."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While open, counts the bytes of all tensors that were made inside and are still alive.

    What an operation allocates and frees within itself, such as the work space of a kernel, is not seen.

    Attributes:
        peak: the most bytes there ever were.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        # No callbacks when one dies: an interrupt that arrives while Python runs one is printed and lost.
        self._made: list[weakref.ref[torch.UntypedStorage]] = []

    @property
    def now(self) -> int:
        """Bytes alive."""
        return sum(storage.nbytes() for storage in self._alive())

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        with self:  # composite operations come whole in inference mode, and would hide what they make on the way
            out = operation.decompose(*args, **kwargs or {})
        if out is not NotImplemented:
            return out
        known = [*_storages((args, kwargs)), *self._alive()]  # a view is no new memory
        out = operation(*args, **kwargs or {})
        seen = set(map(id, known))
        for storage in _storages(out):
            if id(storage) not in seen:
                seen.add(id(storage))
                self._made.append(weakref.ref(storage))
        self.peak = max(self.peak, self.now)
        return out

    def _alive(self) -> list[torch.UntypedStorage]:
        alive = [storage for made in self._made if (storage := made()) is not None]
        self._made = [weakref.ref(storage) for storage in alive]
        return alive


def _storages(tree: Any) -> list[torch.UntypedStorage]:
    return [leaf.untyped_storage() for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
