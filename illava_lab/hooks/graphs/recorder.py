"""Capturing what a function does on a device, to do it again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from illava_lab.method.brought import handing_out, noting


@dataclass(frozen=True, eq=False)
class Recording:
    """What was captured.

    Attributes:
        outputs: what the function returned; every replay writes to the same tensors.
        replay: does it again, with what the tensors that it reads hold then.
        size: bytes by which the memory of the graphs grew.
        brought: tensors that were made outside, and are read at every replay.
    """

    outputs: Any
    replay: Callable[[], None]
    size: int
    brought: list[Any]


class Recorder(Protocol):
    """How a kind of device captures."""

    def pool(self) -> Any:
        """What graphs of one model take their memory from: what one needs only in between, the next one uses again."""
        ...

    def record(self, run: Callable[[], Any], device: torch.device, pool: Any) -> Recording:
        """Capture `run`, which reads and writes the same tensors whenever it is called.

        Raises:
            Exception: whatever `run` raises, and what the device says where it does something that cannot be captured.
        """
        ...


class CudaRecorder:
    """Captures a CUDA graph."""

    def pool(self) -> Any:
        return torch.cuda.graph_pool_handle()

    def record(self, run: Callable[[], Any], device: torch.device, pool: Any) -> Recording:
        with torch.cuda.device(device):
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream), noting() as brought:
                run()  # kernels are compiled and chosen, constants made
            torch.cuda.current_stream().wait_stream(stream)
            torch.cuda.synchronize()
            torch.cuda.empty_cache()  # so that what is reserved from here on is the graph's
            before, graph = torch.cuda.memory_reserved(), torch.cuda.CUDAGraph()
            # Other threads may go on: only what this one does is captured.
            captures = torch.cuda.graph(graph, pool=pool, stream=stream, capture_error_mode="thread_local")
            with handing_out(brought), captures:
                outputs = run()
            return Recording(outputs, graph.replay, torch.cuda.memory_reserved() - before, brought)


# By the type of a device; where there is none, nothing can be captured.
RECORDERS: dict[str, Recorder] = {"cuda": CudaRecorder()}
