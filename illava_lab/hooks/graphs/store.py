"""The graphs of one model: few, the last used ones, and never one that does not fit what is asked for.

They outlive attachments, so that a question costs a capture once and not every time. Everything that cannot be
captured is told by None, and goes the plain way.
"""

from __future__ import annotations

import threading
import warnings
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.graphs.buffers import Buffers, Shape, Slot
from illava_lab.hooks.graphs.counted import nbytes
from illava_lab.hooks.graphs.model_state import ModelState
from illava_lab.hooks.graphs.recorder import RECORDERS, Recording
from illava_lab.hooks.graphs.staging import Input, Staging, write
from illava_lab.models.anatomy import Anatomy

GRAPHS = 24  # at most so many of a model
MEMORY_SHARE = 0.2  # of the device's memory, for all of them, their inputs and the buffers of caches
SEEN = 256
TIMES = 3  # so often is one captured that had to go, unless the model has changed

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Captured:
    """One graph, the tensors that it reads, and the slot of the buffers in which it works, if it does."""

    inputs: list[Tensor]
    recording: Recording
    brought: list[Any]
    slot: Slot | None


class Held(NamedTuple):
    """Bytes that stay allotted on the device.

    Attributes:
        graphs: their pool, in which their outputs lie, with what they need in between.
        inputs: the memory from which they read, and what was brought for them once.
        caches: the buffers for keys and values.
    """

    graphs: int
    inputs: int
    caches: int


class Graphs:
    """The graphs of one model."""

    def __init__(self, state: ModelState) -> None:
        assert state.device is not None
        self.state, self.device = state, state.device
        self.recorder = RECORDERS[self.device.type]
        self.lock = threading.RLock()
        self.buffers = Buffers(self.device, self._drop_stale)
        self._staging = Staging(self.device)
        self._kept: OrderedDict[Hashable, Captured] = OrderedDict()
        self._seen: OrderedDict[Hashable, None] = OrderedDict()
        self._refused: dict[Hashable, str] = {}
        self._times: Counter[Hashable] = Counter()  # how often each was captured
        self.notes: set[Hashable] = set()  # what was learned about strategies
        self._fingerprint: Any = None
        self._grown, self._pool = 0, self.recorder.pool()
        self._done: Any = None  # a CUDA event: replays of two streams must not overlap

    def replay(
        self,
        key: Hashable,
        inputs: Sequence[Input],
        run: Callable[[list[Tensor], Slot | None], Any],
        take: Callable[[Any, Slot | None], T],
        through: type[Exception] | tuple[type[Exception], ...] = (),
        needs: Callable[[Any], Shape] | None = None,
        slot: Slot | None = None,
    ) -> T | None:
        """What `take` makes of what `run` gives, computed by a graph; None where it must be computed plainly.

        Args:
            key: says everything that decides what `run` does, but for the values of `inputs`.
            inputs: tensors on the device.
            run: computes on tensors of the same shapes, and in the slot that its keys and values go to. The graph is
                captured when a key comes for the second time.
            take: copies what it needs of the outputs: the next replay of any graph may write over the inputs, and that
                of this one writes to the outputs again.
            through: exceptions of `run` that are the caller's.
            needs: tells from what `run` gives without a slot which buffers it would write to; None where it writes to
                none, or to those of `slot`. Whose cache is there is moved out before anything is written.
        """
        if torch.is_grad_enabled() or torch.is_autocast_enabled(self.device.type):
            return None
        with self.lock:
            self._check()
            key = (key, tuple((tuple(x.shape), x.dtype) for x in inputs))
            if not self._captures(key, inputs) or (needs is not None and not self.buffers.vacate()):
                return None
            captured = self._captured(key, inputs, run, through, needs, slot)
            if captured is None:
                return None
            with self._in_turn():
                for own, given in zip(captured.inputs, inputs, strict=True):
                    write(own, given)
                captured.recording.replay()
                return take(captured.recording.outputs, captured.slot)

    def _check(self) -> None:
        """Forget graphs of a model that has changed since."""
        now = self.state.fingerprint()
        if now != self._fingerprint:
            wanted = self._staging.wanted
            self._forget_graphs()
            self._staging.wanted = wanted
            self._refused.clear()
            self._times.clear()
            self._fingerprint = now

    def _captures(self, key: Hashable, inputs: Sequence[Input]) -> bool:
        """Whether there is a graph, or one is to be captured now."""
        if key in self._kept:
            return True
        if key in self._refused:
            return False
        if key not in self._seen:
            self._seen[key] = None
            self._staging.want(inputs)
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
            return False
        if self._times[key] >= TIMES:
            self._refuse(key, f"there is no room to keep it: it had to go {TIMES} times")
            return False
        return True

    def _captured(
        self,
        key: Hashable,
        inputs: Sequence[Input],
        run: Callable[[list[Tensor], Slot | None], Any],
        through: type[Exception] | tuple[type[Exception], ...],
        needs: Callable[[Any], Shape] | None,
        slot: Slot | None,
    ) -> Captured | None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        try:
            with torch.inference_mode(False), torch.no_grad():
                captured = self._record(inputs, run, needs, slot)
        except LabError:
            return None  # the plain way says it too
        except through:
            raise
        except torch.OutOfMemoryError as error:
            self._forget_graphs()
            self._refuse(key, error)
            return None
        except Exception as error:
            self._refuse(key, error)
            return None
        size = captured.recording.size
        if size > self.most:
            self._forget_graphs()
            self._refuse(key, f"it needs {size / 2**30:.1f} GiB, {self.most / 2**30:.1f} are allowed")
            return None
        self._times[key] += 1
        self._grown += size
        self._kept[key] = captured
        self.make_room()
        return captured  # also where all graphs had to go: it still runs once

    def _record(
        self,
        inputs: Sequence[Input],
        run: Callable[[list[Tensor], Slot | None], Any],
        needs: Callable[[Any], Shape] | None,
        slot: Slot | None,
    ) -> Captured:
        own = self._staging.views(inputs)
        for x, given in zip(own, inputs, strict=True):
            write(x, given)
        rehearsed = self.recorder.rehearse(lambda: run(own, slot), self.device)
        brought, peak, shape = rehearsed.brought, rehearsed.peak, None if needs is None else needs(rehearsed.outputs)
        del rehearsed
        if shape is not None:
            if shape.nbytes > self.most:
                raise MemoryError(
                    f"its cache needs {shape.nbytes / 2**30:.1f} GiB, {self.most / 2**30:.1f} are allowed"
                )
            slot = self.buffers.slot(shape)
        written = nbytes([one.recording.outputs for one in self._kept.values()])
        room = max(0, peak - (self._grown - written))  # what these do not hold is free in the pool
        recording = self.recorder.record(lambda: run(own, slot), self.device, self._pool, brought, room)
        return Captured(own, recording, brought, slot)

    def _refuse(self, key: Hashable, why: Any) -> None:
        self._refused[key] = str(why).splitlines()[0] if str(why) else type(why).__name__
        warnings.warn(f"graphs: this cannot be captured, and runs without ({self._refused[key]})", stacklevel=2)

    def make_room(self) -> None:
        """The graphs that were used longest ago go; and all of them, who share their memory, where it is too much."""
        while len(self._kept) > GRAPHS:
            self._kept.popitem(last=False)
        if self.memory > self.most:
            self._forget_graphs()

    def _drop_stale(self) -> None:
        """Graphs that work in buffers which are gone go, too: no fault of theirs."""
        for key, one in list(self._kept.items()):
            if one.slot is not None and not self.buffers.knows(one.slot):
                del self._kept[key]
                self._times[key] -= 1

    @property
    def most(self) -> float:
        """Bytes that graphs, inputs and buffers may hold."""
        if self.device.type != "cuda":
            return float("inf")
        return MEMORY_SHARE * torch.cuda.get_device_properties(self.device).total_memory

    @property
    def held(self) -> Held:
        """Bytes of the device that stay allotted."""
        read = [[own.inputs, own.brought] for own in self._kept.values()]
        written = nbytes([own.recording.outputs for own in self._kept.values()])
        return Held(max(self._grown, written), nbytes([self._staging.memory, read]), self.buffers.nbytes)

    @property
    def memory(self) -> int:
        """All of them."""
        return sum(self.held)

    def _forget_graphs(self) -> None:
        self._kept.clear()
        self._staging = Staging(self.device)
        self._grown, self._pool = 0, self.recorder.pool()

    def _in_turn(self) -> Any:
        return _Turn(self) if self.device.type == "cuda" else self.lock

    def forget(self) -> None:
        """Give their memory back."""
        with self.lock:
            self._forget_graphs()
            self._seen.clear()
            self.buffers = Buffers(self.device, self._drop_stale)


class _Turn:
    """What another stream does with the same tensors comes before, and is waited for on the device."""

    def __init__(self, graphs: Graphs) -> None:
        self.graphs = graphs

    def __enter__(self) -> None:
        if self.graphs._done is not None:
            torch.cuda.current_stream(self.graphs.device).wait_event(self.graphs._done)

    def __exit__(self, *_: Any) -> None:
        if self.graphs._done is None:
            self.graphs._done = torch.cuda.Event()
        self.graphs._done.record(torch.cuda.current_stream(self.graphs.device))


_stores: WeakKeyDictionary[nn.Module, Graphs] = WeakKeyDictionary()
_making = threading.Lock()


def graphs_of(anatomy: Anatomy) -> Graphs | None:
    """The graphs of a model; None, with a warning that says why, where nothing can be captured."""
    state = ModelState(anatomy)
    why = None
    if state.device is None:
        why = "the model lies on several devices"
    elif state.device.type not in RECORDERS:
        why = f"it changes nothing on a {state.device.type} device, only on cuda"
    elif not state.known:
        why = "adapters and offloaded weights cannot be captured"
    elif any(kernel not in ("sdpa", "flash_attention_2", "flash_attention_3") for kernel in state.kernels):
        why = f"the attention must be sdpa or flash attention, it is {', '.join(sorted(set(state.kernels)))}"
    if why is not None:
        warnings.warn(f"graphs=True: {why}", stacklevel=4)
        return None
    with _making:
        found = _stores.get(anatomy.base)
        if found is None or found.device != state.device:
            found = _stores[anatomy.base] = Graphs(state)
        found.state = state  # modules may have come and gone
        return found
