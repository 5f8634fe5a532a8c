"""Run a model of any size for its shapes alone: what costs time is not computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

aten = torch.ops.aten
HEAVY = {
    aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten._scaled_dot_product_flash_attention_for_cpu,
}  # fmt: skip


class ShapesOnly(TorchDispatchMode):
    """While open, matrix products, convolutions and the CPU's fused attention return zeros of the shape that they would
    have had. Everything else runs, so a model goes its usual way; what it computes means nothing."""

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        with self:  # composite operations come whole in inference mode
            out = operation.decompose(*args, **kwargs)
        if out is not NotImplemented:
            return out
        if operation.overloadpacket not in HEAVY:
            return operation(*args, **kwargs)
        shapes = operation(*tree_map(_on("meta"), args), **tree_map(_on("meta"), kwargs))
        return tree_map(lambda x: torch.zeros_like(x, device="cpu") if isinstance(x, Tensor) else x, shapes)


def _on(device: str) -> Callable[[Any], Any]:
    return lambda x: x.to(device) if isinstance(x, Tensor) else x
