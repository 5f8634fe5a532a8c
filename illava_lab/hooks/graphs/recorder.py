"""Capturing what a function does on a device, to do it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from illava_lab.method.brought import handing_out, noting


@dataclass(frozen=True, eq=False)
class Rehearsed:
    """What came of calling a function once before it is captured.

    Attributes:
        outputs: what it returned.
        brought: tensors that were made outside.
        peak: bytes that it had allotted at its worst moment, 0 where nobody counts them.
    """

    outputs: Any
    brought: list[Any]
    peak: int


@dataclass(frozen=True, eq=False)
class Recording:
    """What was captured.

    Attributes:
        outputs: what the function returned; every replay writes to the same tensors.
        replay: does it again, with what the tensors that it reads hold then.
        size: bytes by which the memory of the graphs grew.
    """

    outputs: Any
    replay: Callable[[], None]
    size: int


class Recorder(Protocol):
    """How a kind of device captures."""

    def pool(self) -> Any:
        """What graphs of one model take their memory from: what one needs only in between, the next one uses again."""
        ...

    def rehearse(self, run: Callable[[], Any], device: torch.device) -> Rehearsed:
        """Call `run` once: kernels are compiled and chosen, constants made.

        Raises:
            Exception: whatever `run` raises.
        """
        ...

    def record(
        self, run: Callable[[], Any], device: torch.device, pool: Any, brought: list[Any], room: int
    ) -> Recording:
        """Capture `run`, which reads and writes the same tensors whenever it is called.

        Args:
            brought: of the rehearsal.
            room: bytes that it will need beyond what is free in the pool.

        Raises:
            Exception: whatever `run` raises, and what the device says where it does something that cannot be captured.
        """
        ...


class CudaRecorder:
    """Captures a CUDA graph."""

    def __init__(self) -> None:
        # The allocator keeps the memory of each stream apart: on another one, no graph could use what is free.
        self._streams: dict[torch.device, torch.cuda.Stream] = {}

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def _stream(self, device: torch.device) -> torch.cuda.Stream:
        if device not in self._streams:
            self._streams[device] = torch.cuda.Stream(device)
        return self._streams[device]

    def rehearse(self, run: Callable[[], Any], device: torch.device) -> Rehearsed:
        with torch.cuda.device(device):
            stream = self._stream(device)
            stream.wait_stream(torch.cuda.current_stream())
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            with torch.cuda.stream(stream), noting() as brought:
                outputs = run()
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            return Rehearsed(outputs, brought, torch.cuda.max_memory_allocated() - before)

    def record(
        self, run: Callable[[], Any], device: torch.device, pool: Any, brought: list[Any], room: int
    ) -> Recording:
        with torch.cuda.device(device):
            stream = self._stream(device)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # so that what is reserved from here on is the graph's
            before, graph = torch.cuda.memory_reserved(), torch.cuda.CUDAGraph()
            # Other threads may go on: only what this one does is captured.
            captures = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
            with handing_out(brought), captures:
                # In one piece, which is cut and joined again, less is lost between pieces of many sizes.
                torch.empty(room, dtype=torch.uint8, device=device)
                outputs = run()
            return Recording(outputs, graph.replay, torch.cuda.memory_reserved() - before)


# By the type of a device; where there is none, nothing can be captured.
RECORDERS: dict[str, Recorder] = {"cuda": CudaRecorder()}
