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
        size: bytes of device memory that it holds.
        brought: tensors that were made outside, and are read at every replay.
    """

    outputs: Any
    replay: Callable[[], None]
    size: int
    brought: list[Any]


class Recorder(Protocol):
    """How a kind of device captures."""

    def record(self, run: Callable[[], Any], device: torch.device) -> Recording:
        """Capture `run`, which reads and writes the same tensors whenever it is called.

        Raises:
            Exception: whatever `run` raises, and what the device says where it does something that cannot be captured.
        """
        ...


class CudaRecorder:
    """Captures a CUDA graph."""

    def record(self, run: Callable[[], Any], device: torch.device) -> Recording:
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
            with handing_out(brought), torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
                outputs = run()
            return Recording(outputs, graph.replay, torch.cuda.memory_reserved() - before, brought)


# By the type of a device; where there is none, nothing can be captured.
RECORDERS: dict[str, Recorder] = {"cuda": CudaRecorder()}
