"""What a graph has taken for granted about a model: another state of the model needs other graphs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from illava_lab.hooks.changes import Hook
from illava_lab.models.families import Anatomy


class ModelState:
    """The parameters and hooks of the modules that are captured.

    A graph reads weights where they were, and calls nobody: weights that moved and hooks that somebody added since
    must be noticed. Weights that change in place are read anew by every replay.
    """

    def __init__(self, anatomy: Anatomy) -> None:
        self._tensors: list[tuple[Any, str]] = []
        self._hooks: list[Any] = []
        self.known = hasattr(anatomy.base, "peft_config") is False
        modules: list[nn.Module] = [*anatomy.tower.modules(), *anatomy.language_model.modules()]
        for module in modules:
            self._tensors += [(module._parameters, name) for name in module._parameters]
            self._tensors += [(module._buffers, name) for name in module._buffers]
            self._hooks += [module._forward_pre_hooks, module._forward_hooks]
            if hasattr(module, "_hf_hook") or hasattr(module, "lora_A"):
                self.known = False
        self.kernels = tuple(str(part.config._attn_implementation) for part in (anatomy.tower, anatomy.language_model))
        devices = {x.device for _, x in self._now()}
        self.device = devices.pop() if len(devices) == 1 else None

    def _now(self) -> list[tuple[int, Tensor]]:
        held = (tensors[name] for tensors, name in self._tensors)
        return [(x.data_ptr(), x) for x in held if x is not None]

    def fingerprint(self) -> tuple[Any, ...]:
        """Where the weights are, which hooks others have set, and how torch is told to compute."""
        return (
            hash(tuple(place for place, _ in self._now())),
            tuple(id(hook) for hooks in self._hooks for hook in hooks.values() if not isinstance(hook, Hook)),
            torch.are_deterministic_algorithms_enabled(),
            torch.backends.cuda.flash_sdp_enabled(),
            torch.backends.cuda.mem_efficient_sdp_enabled(),
            torch.backends.cuda.math_sdp_enabled(),
            torch.get_float32_matmul_precision(),
        )
