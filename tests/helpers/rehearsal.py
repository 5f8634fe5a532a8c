"""Stand-ins for a CUDA graph, which a CPU has not: what is captured is called again, on the same tensors."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from illava_lab.hooks.graphs import store
from illava_lab.hooks.graphs.recorder import Recording, Rehearsed
from illava_lab.method.brought import handing_out, noting


def tensors_in(value: Any, seen: set[int] | None = None) -> list[Tensor]:
    """All tensors that something holds, through lists, dicts and objects of the lab, in one order."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return []
    seen.add(id(value))
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, dict):
        return [x for part in value.values() for x in tensors_in(part, seen)]
    if isinstance(value, (list, tuple)):
        return [x for part in value for x in tensors_in(part, seen)]
    if type(value).__module__.startswith("illava_lab") and hasattr(value, "__dict__"):
        return [x for _, part in sorted(vars(value).items()) for x in tensors_in(part, seen)]
    return []


class Rehearsal:
    """Calls the function again, and writes what it gives into the tensors of the first time, as a graph does.

    Attributes:
        captured, replayed: how often each happened.
    """

    def __init__(self) -> None:
        self.captured = self.replayed = 0

    def pool(self) -> None:
        return None

    def rehearse(self, run: Callable[[], Any], device: torch.device) -> Rehearsed:
        with noting() as brought:
            return Rehearsed(run(), brought, 0)

    def record(
        self, run: Callable[[], Any], device: torch.device, pool: Any, brought: list[Any], room: int
    ) -> Recording:
        with handing_out(brought):
            outputs = run()
        constant = {id(x) for x in tensors_in(brought)}
        into = tensors_in(outputs)
        for x in into:  # what is not written again must not look right
            if id(x) not in constant:
                x.data = (
                    torch.full(x.shape, torch.nan) if x.is_floating_point() else torch.zeros(x.shape, dtype=x.dtype)
                )
        self.captured += 1

        def replay() -> None:
            with torch.no_grad(), handing_out(brought):
                again = tensors_in(run())
            assert [x.shape for x in again] == [x.shape for x in into]
            for x, now in zip(into, again, strict=True):
                if id(x) not in constant:
                    x.data.copy_(now)
            self.replayed += 1

        return Recording(outputs, replay, 0)


@contextmanager
def rehearsing(recorder: Any = None) -> Iterator[Any]:
    """While open, a CPU captures too."""
    recorder = Rehearsal() if recorder is None else recorder
    store.RECORDERS["cpu"] = recorder
    store._stores.clear()
    try:
        yield recorder
    finally:
        del store.RECORDERS["cpu"]
        store._stores.clear()


class Proved(Exception):
    """What was to be captured ran without a value."""


class WithoutValues:
    """Runs what is to be captured on tensors without values: who asks for one is named.

    Attributes:
        proved: how often that went well; failures: what asked for a value, with the line of ours that did.
    """

    def __init__(self) -> None:
        self.proved = 0
        self.failures: list[str] = []

    def pool(self) -> None:
        return None

    def rehearse(self, run: Callable[[], Any], device: torch.device) -> Rehearsed:
        with noting() as brought:
            return Rehearsed(run(), brought, 0)

    def record(
        self, run: Callable[[], Any], device: torch.device, pool: Any, brought: list[Any], room: int
    ) -> Recording:
        try:
            with handing_out(brought), FakeTensorMode(allow_non_fake_inputs=True):
                run()
        except Exception as error:
            frames = traceback.extract_tb(error.__traceback__)
            ours = [frame for frame in frames if "site-packages" not in frame.filename]
            self.failures.append(f"{ours[-1].filename}:{ours[-1].lineno}: {ours[-1].line} ({type(error).__name__})")
            raise
        self.proved += 1
        raise Proved
