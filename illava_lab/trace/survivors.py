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
        count: M, tokens in each row.
        device: where they are.
        make_place, make_size: make `place` and `size`; not called before somebody reads these.
    """

    count: int
    device: torch.device
    make_place: Callable[[], Tensor]
    make_size: Callable[[], Tensor]

    @staticmethod
    def everything(first: int, rows: int, count: int, device: torch.device) -> Survivors:
        """All of `count` tokens in each row, which stand in the places `first`, `first` + 1, ..., of size 1."""

        def place() -> Tensor:
            return torch.arange(first, first + count, dtype=torch.long, device=device).expand(rows, -1)

        return Survivors(count, device, place, lambda: torch.ones((rows, count), dtype=torch.float32, device=device))

    @cached_property
    def place(self) -> Tensor:
        """(R, M) long, in whose place each stands; -1 for CLS."""
        return self.make_place()

    @cached_property
    def size(self) -> Tensor:
        """(R, M) float32, how many patches each stands for."""
        return self.make_size()

    def after(self, reduction: TokenMap) -> Survivors:
        """What a reduction of these tokens leaves."""
        return Survivors(
            reduction.slots,
            self.device,
            lambda: self.place.gather(1, reduction.anchor),
            lambda: reduction.sizes(self.size),
        )

    def at(self, index: Tensor) -> Survivors:
        """Those at (R, m) positions of each row."""
        return type(self)(
            index.shape[1], self.device, lambda: self.place.gather(1, index), lambda: self.size.gather(1, index)
        )

    def rows(self, index: Sequence[int]) -> Survivors:
        """Some of the rows."""
        own = list(index)
        return type(self)(self.count, self.device, lambda: self.place[own], lambda: self.size[own])

    def behind(self, first: int) -> Survivors:
        """Those from position `first` on."""
        if not first:
            return self
        return type(self)(self.count - first, self.device, lambda: self.place[:, first:], lambda: self.size[:, first:])

    def to(self, device: torch.device) -> Survivors:
        """The same on another device."""
        if device == self.device:
            return self
        return type(self)(self.count, device, lambda: self.place.to(device), lambda: self.size.to(device))

    def alive(self, places: int) -> Tensor:
        """(R, places) bool, the places in which one stands; none of them may be CLS."""
        empty = torch.zeros((len(self.place), places), dtype=torch.bool, device=self.device)
        return empty.scatter_(1, self.place, True)

    def spread(self, places: int) -> Tensor:
        """(R, places) float32, the size of the one in each place, 0 where there is none; none of them may be CLS."""
        empty = torch.zeros((len(self.place), places), dtype=torch.float32, device=self.device)
        return empty.scatter_(1, self.place, self.size)


class Uneven(Survivors):
    """Rows that differ in how many are left. Shorter ones are filled up with some that stand beside the places.

    Where there are P places, the place of those is P and their size is 0; they come last.
    """

    def alive(self, places: int) -> Tensor:
        return super().alive(places + 1)[:, :places].contiguous()

    def spread(self, places: int) -> Tensor:
        return super().spread(places + 1)[:, :places].contiguous()
