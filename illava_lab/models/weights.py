"""The weights of a checkpoint, known by their headers: are they those of its model? None of them is read for that."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING

from illava_lab.errors import LabError
from illava_lab.models.folder import INDEX, WEIGHTS, check_inside, read_json, reading
from illava_lab.paths import quoted

DTYPES = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def model_class(config: PreTrainedConfig) -> Any:
    """The class of transformers that a configuration is for, found without asking the checkpoint."""
    return MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING[type(config)]


def weight_files(folder: Path) -> list[Path]:
    """The safetensors of a folder, in order.

    Raises:
        LabError: there are none, only a pickle; or its index names what is no safetensors file or lies elsewhere.
    """
    shards = indexed(read_json(folder / INDEX)) if (folder / INDEX).exists() else []
    names = [WEIGHTS] if (folder / WEIGHTS).exists() else shards
    if not names:
        if pickles := sorted((*folder.glob("*.bin"), *folder.glob("*.pt"), *folder.glob("*.pth"))):
            raise LabError(pickled(pickles[0].name))
        raise LabError(f"it has no weights: neither {WEIGHTS} nor {INDEX}")
    for name in names:
        if not (folder / name).exists():
            raise LabError(f"it lacks the weights {quoted(name)} that its index names")
        check_inside(folder / name, folder)
    return [folder / name for name in names]


def indexed(index: dict[str, Any]) -> list[str]:
    """The files that an index of weights names.

    Raises:
        LabError: one of them is no safetensors file, or would lie in another folder.
    """
    weights = index.get("weight_map")
    if not isinstance(weights, dict) or not weights or not isinstance(index.get("metadata"), dict):
        raise LabError(f"it has an index of its weights, {INDEX}, without a weight_map or without metadata")
    for name in weights.values():
        plain = isinstance(name, str) and PurePosixPath(name).name == name and "\\" not in name and "\0" not in name
        if not plain or not name.endswith(".safetensors"):
            shown = quoted(name) if isinstance(name, str) else repr(name)[:80]
            raise LabError(
                f"it has an index of its weights that names {shown}: only safetensors in its folder are loaded"
            )
    return sorted(set(weights.values()))


def pickled(file: str) -> str:
    """The sentence for weights in a pickle."""
    return (
        f"it has its weights as {quoted(file)}, a pickle that can run code; only safetensors are loaded, which "
        "save_pretrained of current transformers writes"
    )


def check_weights(config: PreTrainedConfig, folder: Path, dtype: torch.dtype) -> PreTrainedModel:
    """Compare the headers of a folder's weights with the model that its configuration describes. Returns it, hollow.

    transformers itself sorts them in, names of older releases too: on a model and with weights that have shapes only.

    Raises:
        LabError: a damaged file; weights that are missing, of another shape or no real numbers; more layers than the
            configuration has.
    """
    shapes: dict[str, torch.Tensor] = {}
    with reading("its weights"):
        files = weight_files(folder)
    for path in files:
        with reading(f"the file {quoted(path.name)} of its weights"):
            shapes |= _shapes(path)
    with reading("its weights"):
        model, report = model_class(config).from_pretrained(
            None,
            config=config,
            state_dict=shapes,
            dtype=dtype,
            device_map={"": "meta"},
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            local_files_only=True,
        )
    if wrong := sorted(report["mismatched_keys"]):
        name, there, wanted = wrong[0]
        raise LabError(
            f"it has {len(wrong)} weights of other shapes than its configuration says; the first is {quoted(name)}, "
            f"{tuple(there)} where {tuple(wanted)} is wanted"
        )
    if missing := sorted(report["missing_keys"]):
        raise LabError(f"it lacks {len(missing)} weights, the first is {quoted(missing[0])}")
    # What no layer could use, such as a head for another task, does no harm.
    kinds = {_in_any_layer(name) for name in model.state_dict()}
    if more := sorted(name for name in report["unexpected_keys"] if _in_any_layer(name) in kinds):
        raise LabError(
            f"it has weights of more layers than its configuration says: {len(more)}, the first is {quoted(more[0])}"
        )
    return model


def _in_any_layer(name: str) -> str:
    return re.sub(r"\d+", "0", name)


def _shapes(path: Path) -> dict[str, torch.Tensor]:
    """Weights without memory, as the header of a file says that they are."""
    shapes = {}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118, a file is no mapping
            part = file.get_slice(name)
            if part.get_dtype() not in DTYPES:
                continue
            shapes[name] = torch.empty(part.get_shape(), dtype=DTYPES[part.get_dtype()], device="meta")
    return shapes
