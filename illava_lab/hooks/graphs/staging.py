"""Where graphs read their inputs. They run one after another, so all of them read from the same memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

ALIGNED = 256  # bytes


@dataclass(frozen=True, eq=False)
class Padded:
    """A tensor (B, L, ...) and `more` zeros behind it, along L."""

    value: Tensor
    more: int

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        batch, length, *rest = self.value.shape
        return batch, length + self.more, *rest


Input = Tensor | Padded


class Staging:
    """Memory for the inputs of one graph at a time. Graphs go on reading where they did when it becomes larger.

    Args:
        wanted: bytes that will be needed, as far as is known.
    """

    def __init__(self, device: torch.device, wanted: int = 0) -> None:
        self.device, self.wanted = device, wanted
        self.memory = torch.empty(0, dtype=torch.uint8, device=device)

    def want(self, inputs: Sequence[Input]) -> None:
        """Some day these will be read: whoever needs memory next takes enough for them, too."""
        self.wanted = max(self.wanted, sum(_size(x) for x in inputs))

    def views(self, inputs: Sequence[Input]) -> list[Tensor]:
        """Tensors of these shapes, one behind another."""
        self.want(inputs)
        if len(self.memory) < self.wanted:
            self.memory = torch.empty(self.wanted, dtype=torch.uint8, device=self.device)
        out, at = [], 0
        for x in inputs:
            length = prod(x.shape) * x.dtype.itemsize
            out.append(self.memory[at : at + length].view(x.dtype).view(tuple(x.shape)))
            at += _size(x)
        return out


def write(own: Tensor, given: Input) -> None:
    """Bring a new value to where a graph reads it."""
    if isinstance(given, Tensor):
        own.copy_(given)
        return
    length = given.value.shape[1]
    own[:, :length].copy_(given.value)
    own[:, length:].zero_()


def _size(x: Input) -> int:
    return -(-prod(x.shape) * x.dtype.itemsize // ALIGNED) * ALIGNED
