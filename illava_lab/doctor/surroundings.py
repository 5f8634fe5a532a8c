"""Versions, devices and memory, of a whole installation or of one in which not even torch can be imported."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
from importlib import metadata, util

from illava_lab.doctor.report import Report
from illava_lab.errors import reason
from illava_lab.paths import clone_dir

PROJECT = "illava-lab"
SHOWN = ("torch", "transformers", "numpy", "accelerate", "safetensors")
# What needs them.
OPTIONAL = {"bitsandbytes": "quantize", "av": "films such as mp4", "peft": "adapters", "triton": "kernels on a GPU"}


def look_around(report: Report) -> None:
    """Report everything that is not about a model."""
    report.section("Versions")
    report.good("python", f"{platform.python_version()}, {platform.platform()}")
    report.attempt("illava-lab", lambda: _versions(report))
    report.section("Devices")
    report.attempt("cpu", lambda: _cpu(report))
    report.attempt("memory", lambda: _memory(report))
    report.attempt("cuda", lambda: _gpus(report))


def _versions(report: Report) -> None:
    import illava_lab

    place = "a clone" if clone_dir() else "an installed package"
    report.good("illava-lab", f"{illava_lab.__version__}, from {place}")
    from packaging.requirements import Requirement

    others, asked = 0, [Requirement(line) for line in metadata.requires(PROJECT) or ()]
    for needed in asked:
        if needed.marker is not None and not needed.marker.evaluate({"extra": ""}):
            continue
        found = _version(needed.name)
        if found is None:
            report.bad(needed.name, f"is not installed; the lab needs {needed}")
        elif not needed.specifier.contains(found, prereleases=True):
            report.bad(needed.name, f"{found}; the lab needs {needed}")
        elif needed.name in SHOWN:
            report.good(needed.name, f"{found} (needs {needed.specifier})")
        else:
            others += 1
    report.good("others", f"{others} more are in the ranges that the lab needs")
    for name, what in OPTIONAL.items():
        found = _version(name)
        report.note(name, f"{found} ({what})" if found else f"is not installed ({what})")
    if util.find_spec("torchvision") is not None:
        report.note("torchvision", _torchvision())


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _torchvision() -> str:
    """The lab needs none; one of another build than torch is there is in the way of transformers."""
    try:
        return f"{importlib.import_module('torchvision').__version__} (not needed)"
    except Exception as error:
        return f"cannot be imported ({reason(error)}); it is not needed, and better removed than broken"


def _cpu(report: Report) -> None:
    import torch

    from illava_lab.measuring.machine import machine

    policy = os.environ.get("OMP_WAIT_POLICY", "not set")
    report.good("cpu", f"{machine()}; torch uses {torch.get_num_threads()}, OMP_WAIT_POLICY {policy}")


def _memory(report: Report) -> None:
    import psutil

    memory = psutil.virtual_memory()
    report.good("memory", f"{memory.available / 1e9:.1f} of {memory.total / 1e9:.1f} GB free")


def _gpus(report: Report) -> None:
    import torch

    if not torch.cuda.is_available():
        build = "is built without CUDA" if torch.version.cuda is None else f"is built for CUDA {torch.version.cuda}"
        driver = "nvidia-smi is there" if shutil.which("nvidia-smi") else "there is no nvidia-smi"
        report.note("cuda", f"torch {torch.__version__} finds no GPU: it {build}, and {driver}")
    for number in range(torch.cuda.device_count()):
        card = torch.cuda.get_device_properties(number)
        free, total = torch.cuda.mem_get_info(number)
        report.good(
            f"cuda:{number}",
            f"{card.name}, {free / 1e9:.1f} of {total / 1e9:.1f} GB free, compute capability "
            f"{card.major}.{card.minor}, CUDA {torch.version.cuda}",
        )
