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
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.hooks.graphs.model_state import ModelState
from illava_lab.hooks.graphs.recorder import RECORDERS, Recording
from illava_lab.models.families import Anatomy

GRAPHS = 24  # at most so many of a model
MEMORY_SHARE = 0.2  # of the device's memory, for all of them and the buffers of caches
SEEN = 256
TIMES = 3  # so often is one captured that had to go, unless the model has changed

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Captured:
    """One graph, the tensors that it reads, and the buffers that it writes to besides."""

    inputs: list[Tensor]
    recording: Recording
    about: Any = None


class Graphs:
    """The graphs of one model."""

    def __init__(self, state: ModelState) -> None:
        assert state.device is not None
        self.state, self.device = state, state.device
        self.recorder = RECORDERS[self.device.type]
        self.lock = threading.RLock()
        self.slots: OrderedDict[Hashable, list[Any]] = OrderedDict()  # buffers for caches, by their sizes
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
        inputs: Sequence[Tensor],
        run: Callable[[list[Tensor]], Any],
        take: Callable[[Any], T],
        through: type[Exception] | tuple[type[Exception], ...] = (),
        about: Any = None,
    ) -> T | None:
        """What `take` makes of what `run(inputs)` gives, computed by a graph; None where it must be computed plainly.

        Args:
            key: says everything that decides what `run` does, but for the values of `inputs`.
            inputs: tensors on the device.
            run: computes on tensors of the same shapes. The graph is captured when a key comes for the second time.
            take: copies what it needs: the next replay writes to the outputs again.
            through: exceptions of `run` that are the caller's.
            about: buffers that it writes to; when these go, it goes.
        """
        if torch.is_grad_enabled() or torch.is_autocast_enabled(self.device.type):
            return None
        with self.lock:
            self._check()
            key = (key, tuple((tuple(x.shape), x.dtype) for x in inputs))
            captured = self._captured(key, inputs, run, through, about)
            if captured is None:
                return None
            with self._in_turn():
                for own, given in zip(captured.inputs, inputs, strict=True):
                    own.copy_(given)
                captured.recording.replay()
                return take(captured.recording.outputs)

    def _check(self) -> None:
        """Forget graphs of a model that has changed since."""
        now = self.state.fingerprint()
        if now != self._fingerprint:
            self._forget_graphs()
            self._refused.clear()
            self._times.clear()
            self._fingerprint = now

    def _captured(
        self,
        key: Hashable,
        inputs: Sequence[Tensor],
        run: Callable[[list[Tensor]], Any],
        through: type[Exception] | tuple[type[Exception], ...],
        about: Any,
    ) -> Captured | None:
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        if key in self._refused:
            return None
        if key not in self._seen:
            self._seen[key] = None
            if len(self._seen) > SEEN:
                self._seen.popitem(last=False)
            return None
        if self._times[key] >= TIMES:
            self._refuse(key, f"there is no room to keep it: it had to go {TIMES} times")
            return None
        try:
            with torch.inference_mode(False), torch.no_grad():
                own = [x.clone() for x in inputs]  # that may be written to in every mode
                recording = self.recorder.record(lambda: run(own), self.device, self._pool)
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
        if recording.size > self.most:
            self._forget_graphs()
            self._refuse(key, f"it needs {recording.size / 2**30:.1f} GiB, {self.most / 2**30:.1f} are allowed")
            return None
        self._times[key] += 1
        self._grown += recording.size + sum(x.numel() * x.element_size() for x in own)
        captured = self._kept[key] = Captured(own, recording, about)
        self.make_room()
        return captured  # also where all graphs had to go: it still runs once

    def _refuse(self, key: Hashable, why: Any) -> None:
        self._refused[key] = str(why).splitlines()[0] if str(why) else type(why).__name__
        warnings.warn(f"graphs: this cannot be captured, and runs without ({self._refused[key]})", stacklevel=2)

    def make_room(self) -> None:
        """Buffers that were used longest ago go, but for the newest; then all graphs, which share their memory."""
        while len(self._kept) > GRAPHS:
            self._kept.popitem(last=False)
        while self.memory > self.most and len(self.slots) > 1:
            _, gone = self.slots.popitem(last=False)
            for key in [key for key, one in self._kept.items() if one.about in gone]:
                del self._kept[key]
        if self.memory > self.most:
            self._forget_graphs()

    @property
    def most(self) -> float:
        """Bytes that graphs and buffers may hold."""
        if self.device.type != "cuda":
            return float("inf")
        return MEMORY_SHARE * torch.cuda.get_device_properties(self.device).total_memory

    @property
    def memory(self) -> int:
        """Bytes of the device that graphs and buffers hold."""
        slots = [slot for slots in self.slots.values() for slot in slots]
        return self._grown + sum(x.numel() * x.element_size() for slot in slots for x in (*slot.keys, *slot.values))

    def _forget_graphs(self) -> None:
        self._kept.clear()
        self._grown, self._pool = 0, self.recorder.pool()

    def _in_turn(self) -> Any:
        return _Turn(self) if self.device.type == "cuda" else self.lock

    def forget(self) -> None:
        """Give their memory back."""
        with self.lock:
            self._forget_graphs()
            self._seen.clear()
            self.slots.clear()


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
