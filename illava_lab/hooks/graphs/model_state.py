"""What a graph has taken for granted about a model: another state of the model needs other graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from illava_lab.hooks.changes import Hook
from illava_lab.models.anatomy import Anatomy


class ModelState:
    """The parameters and hooks of the modules that are captured.

    A graph reads weights where they were, and calls nobody: weights that moved and hooks that somebody added since
    must be noticed. Weights that change in place are read anew by every replay.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._tensors: list[tuple[Any, str]] = []
        self._hooks: list[Any] = []
        self.known = not hasattr(anatomy.base, "peft_config")
        modules: list[nn.Module] = [*anatomy.tower.modules(), *anatomy.language_model.modules()]
        for module in modules:
            self._tensors += [(module._parameters, name) for name, x in module._parameters.items() if x is not None]
            self._tensors += [(module._buffers, name) for name, x in module._buffers.items() if x is not None]
            self._hooks += [module._forward_pre_hooks, module._forward_hooks]
            if "_hf_hook" in vars(module) or "lora_A" in module._modules:
                self.known = False
        self.kernels = tuple(str(part.config._attn_implementation) for part in (anatomy.tower, anatomy.language_model))
        devices = {x.device for x in self._now()}
        self.device = devices.pop() if len(devices) == 1 else None
        self._counted: tuple[int, Any] = (-1, None)  # how many hooks there were, and which of them are others'

    def _now(self) -> list[Tensor]:
        return [tensors[name] for tensors, name in self._tensors]

    def _others(self) -> Any:
        """Hooks that somebody else has set. While a strategy is attached, the number tells whether one came or went."""
        count = sum(map(len, self._hooks))
        if count != self._counted[0]:
            found = [hook for hooks in self._hooks for hook in hooks.values() if not isinstance(hook, Hook)]
            self._counted = count, tuple(map(id, found))
        return self._counted[1]

    def fingerprint(self) -> tuple[Any, ...]:
        """Where the weights are, which hooks others have set, and how torch is told to compute."""
        return (
            tuple(map(Tensor.data_ptr, self._now())),
            self._others(),
            self.kernels,
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.get_float32_matmul_precision(),
        )
