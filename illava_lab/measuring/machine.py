"""What a table of times is worth nothing without: machine, model, versions, date."""

from __future__ import annotations

import os
import platform
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

from illava_lab.session.lab import Lab


def environment(lab: Lab) -> dict[str, Any]:
    """What a table of times is worth nothing without: model, machine, versions, date."""
    return {
        "model": lab.source,
        "dtype": str(lab.model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(lab.model.device) if lab.model.device.type == "cuda" else "cpu",
        "processor": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }


def machine() -> str:
    """Name of the processor, as far as the system tells, and its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores"
