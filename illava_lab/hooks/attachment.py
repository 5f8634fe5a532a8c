"""What an attachment is while it is open, and which call runs in this thread."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NoReturn

from illava_lab.errors import LabError, hosting
from illava_lab.method.blocks import block
from illava_lab.method.strategy import Strategy
from illava_lab.models.anatomy import Anatomy
from illava_lab.models.layout import Layout
from illava_lab.schedules.plan import Plan
from illava_lab.trace.trace import Trace

Positions = Literal["original", "packed"]
LAYOUTS = 256  # a conversation shows a few sizes of pictures, a data set many


class Running(threading.local):
    """What runs in this thread at this moment; None where nothing does.

    Attributes:
        prompt_length: tokens of the prompt that `generate` was given.
        longest: tokens that `generate` may make at most.
        read: `logits_to_keep` of the model: of how many of the last tokens it reads states, 0 for all.
        call: the forward pass of the vision-language model (a `Call`).
        encoding: the method that encodes images or videos (an `Encoding`).
    """

    prompt_length: int | None = None
    longest: int | None = None
    read: Any = 0
    call: Any = None
    encoding: Any = None

    @block
    def during(self, name: str, value: Any) -> Iterator[None]:
        """Inside the block the attribute `name` is `value`; afterwards, however it ends, what it was."""
        before = getattr(self, name)
        try:
            setattr(self, name, value)
            yield
        finally:
            setattr(self, name, before)


@dataclass(eq=False)
class Attachment:
    """A strategy on a model. Nothing in it changes while it is open: what a call learns belongs to the call.

    Attributes:
        graphs: where what can be captured is; None where nothing is to be.
        closed: set when the block is left, for caches that outlive it.
    """

    anatomy: Anatomy
    strategy: Strategy
    schedule: Plan
    positions: Positions
    trace: Trace
    graphs: Any = None  # a `Graphs`, which is of a room that knows attachments
    running: Running = field(default_factory=Running)
    closed: bool = False
    _layouts: dict[Hashable, Layout] = field(default_factory=dict)

    @cached_property
    def looks(self) -> frozenset[int]:
        """Encoder layers at which the strategy takes notes: as far as there is a reduction that may read them."""
        last = max(self.schedule.encoder, default=-1)
        with hosting(f"strategy {self.strategy.name!r}"):
            return frozenset(layer for layer in self.strategy.looks(self.anatomy.encoder_depth) if 0 <= layer <= last)

    def layout(self, key: Hashable, make: Callable[[], Layout]) -> Layout:
        """A layout, made once for each key: it depends on sizes only."""
        found = self._layouts.get(key)
        if found is None:
            if len(self._layouts) >= LAYOUTS:
                self._layouts.clear()
            found = self._layouts[key] = make()
        return found

    def __deepcopy__(self, memo: dict[int, Any]) -> NoReturn:
        raise LabError("a model cannot be copied or pickled while a strategy is attached; leave the block first")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self.__deepcopy__({})
