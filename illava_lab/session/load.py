"""Load a lab: an embedded model, a checkpoint, or a published size with random weights."""

from __future__ import annotations

from os import PathLike, fsdecode
from pathlib import Path
from typing import Any

from illava_lab.errors import LabError
from illava_lab.models import random_models
from illava_lab.models.loading import check_arguments, open_checkpoint
from illava_lab.paths import EMBEDDED, data_dir, embedded_model, quoted
from illava_lab.session.lab import Lab


def load(
    source: str | PathLike | None = None,
    device: str = "cpu",
    dtype: str = "float32",
    *,
    device_map: str | dict[str, Any] | None = None,
    quantize: str | None = None,
    revision: str | None = None,
) -> Lab:
    """A lab with the embedded model (no argument: CPU, no download), a checkpoint folder, or a hub id.

    The embedded model is a small LLaVA-1.5, which learned to look at one picture. "embedded:onevision" is another that
    needs no download, a small LLaVA-OneVision: crops, several pictures, videos, conversations.

    Only safetensors inside its folder are read, and no code of a checkpoint is ever run: one that names code of its
    own, as `auto_map` in any of its files does, is refused, and so are adapters and quantised weights. Of a hub id
    only the files that are read are fetched. What is wrong with a checkpoint is found before its weights are read: by
    their headers, and by preparing a first question.

    "random:llava-1.5-7b" builds a published configuration with random weights, for measuring speed and memory without
    a download; `data/configs/` has the names, and the path of a JSON file laid out like those works as well.

    Args:
        device: "cpu", "cuda" or "cuda:1".
        dtype: "float32", "bfloat16", "float16", or "auto", which is what the checkpoint was published in.
        device_map: "auto" spreads the layers over all GPUs, and main memory if those are full, through accelerate;
            `device` is then not used. A dict of module names and devices is transformers' own.
        quantize: "4bit" or "8bit" weights through bitsandbytes, on NVIDIA GPUs.
        revision: branch, tag or commit of a hub id, so that results can be repeated.

    Raises:
        LabError: an embedded model that is not there; a folder that is no checkpoint, holds no safetensors, files that
            are damaged or lead elsewhere, weights that are not those of its configuration, or a processor that prepares
            no question for its model; code of its own; an unsupported family; a hub id that cannot be fetched (unknown,
            gated, no network); too little memory (says how much is needed and how much there is); an unknown dtype, or
            a device or package that is not there.
    """
    check_arguments(device, dtype, device_map, quantize)
    if source is not None and not isinstance(source, (str, PathLike)):
        raise LabError(f"source must be a folder, a hub id or a name such as 'random:llava-1.5-7b', got {source!r:.80}")
    if revision is not None and not isinstance(revision, str):
        raise LabError(f"revision must be the name of a branch, a tag or a commit, got {revision!r:.80}")
    name = "embedded" if source is None else fsdecode(source)
    if name.startswith(random_models.PREFIX):
        if device_map is not None or quantize or revision:
            raise LabError(f"{quoted(name)} is built on one device, without device_map, quantize and revision")
        return Lab(*random_models.build(name.removeprefix(random_models.PREFIX), device, dtype), name)
    if source is None:
        folder = data_dir() / "model"
    else:
        folder = embedded_model(name) if name.startswith(EMBEDDED) else Path(name)
    return Lab(*open_checkpoint(name, folder, device, dtype, device_map, quantize, revision), name)
