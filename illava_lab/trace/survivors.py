"""Which visual tokens are left: the one record that both stages, the connectors and the trace share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from illava_lab.method.token_map import TokenMap


@dataclass(frozen=True, eq=False)
class Survivors:
    """What is left of R rows of tokens, in the order in which the model has it.

    Attributes:
        place: (R, M) long, in whose place each stands; -1 for CLS.
        make_size: makes `size`; not called before somebody reads it.
    """

    place: Tensor
    make_size: Callable[[], Tensor]

    @staticmethod
    def everything(first: int, rows: int, count: int, device: torch.device) -> Survivors:
        """All of `count` tokens in each row, which stand in the places `first`, `first` + 1, ..., of size 1."""
        place = torch.arange(first, first + count, dtype=torch.long, device=device).expand(rows, -1)
        one = torch.ones((1, 1), dtype=torch.float32, device=device)
        return Survivors(place, lambda: one.expand(rows, count))

    @cached_property
    def size(self) -> Tensor:
        """(R, M) float32, how many patches each stands for."""
        return self.make_size()

    @property
    def count(self) -> int:
        return self.place.shape[1]

    def after(self, reduction: TokenMap) -> Survivors:
        """What a reduction of these tokens leaves."""
        return Survivors(self.place.gather(1, reduction.anchor), lambda: reduction.sizes(self.size))

    def at(self, index: Tensor) -> Survivors:
        """Those at (R, m) positions of each row."""
        return Survivors(self.place.gather(1, index), lambda: self.size.gather(1, index))

    def rows(self, index: Sequence[int]) -> Survivors:
        """Some of the rows."""
        return Survivors(self.place[list(index)], lambda: self.size[list(index)])

    def to(self, device: torch.device) -> Survivors:
        """The same on another device."""
        if device == self.place.device:
            return self
        return Survivors(self.place.to(device), lambda: self.size.to(device))

    def alive(self, places: int) -> Tensor:
        """(R, places) bool, the places in which one stands; none of them may be CLS."""
        empty = torch.zeros((len(self.place), places), dtype=torch.bool, device=self.place.device)
        return empty.scatter_(1, self.place, True)

    def spread(self, places: int) -> Tensor:
        """(R, places) float32, the size of the one in each place, 0 where there is none; none of them may be CLS."""
        empty = torch.zeros((len(self.place), places), dtype=torch.float32, device=self.place.device)
        return empty.scatter_(1, self.place, self.size)
