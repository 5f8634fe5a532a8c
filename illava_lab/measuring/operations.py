"""How many operations a call asks of the device: what a GPU's host pays for, whatever the machine that counts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from torch.utils._python_dispatch import TorchDispatchMode

from illava_lab.method.modes import within


class CountOperations(TorchDispatchMode):
    """While open, every operation that reaches the dispatcher is counted by its name, views included.

    Attributes:
        count: operations by name, such as "aten.mm.default".
    """

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operation: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        self.count[str(operation)] += 1
        return operation(*args, **(kwargs or {}))


def operations(run: Callable[[], Any]) -> Counter[str]:
    """The operations that `run` dispatches, by name. Call it under `torch.no_grad()`: inference mode hides some."""
    with within(CountOperations()) as counted:
        run()
    return counted.count
