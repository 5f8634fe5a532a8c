"""A trained model as transformers saves it, in half the bytes."""

from __future__ import annotations

import json
from pathlib import Path

from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin
from words import known


def halved(module: nn.Module) -> dict[str, Tensor]:
    """Weights in float16. The configuration says float32, which is what they are loaded as."""
    return {name: weight.half().contiguous() for name, weight in module.state_dict().items()}


def save(model: PreTrainedModel, processor: ProcessorMixin, out: Path) -> None:
    model.save_pretrained(out, state_dict=halved(model))
    processor.save_pretrained(out)
    (out / "knows.json").write_text(json.dumps(known(), indent=2) + "\n", encoding="utf-8")
