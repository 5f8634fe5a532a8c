"""Opening checkpoints: where they come from, whether they fit, and a sentence for everything that can go wrong."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    BitsAndBytesConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ProcessorMixin,
)
from transformers.utils import logging

from illava_lab.errors import LabError
from illava_lab.models.answering import check_answering
from illava_lab.models.families import check_supported
from illava_lab.models.folder import check_folder, reading
from illava_lab.models.hub import Source
from illava_lab.models.processors import load_processor
from illava_lab.models.rehearsal import rehearse
from illava_lab.models.values import check_parts, check_values
from illava_lab.models.vocabulary import known_words
from illava_lab.models.weights import check_weights, model_class
from illava_lab.paths import is_file, is_folder, quoted

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUANTIZED_BYTES = {"4bit": 0.5, "8bit": 1.0}
ROOM = 0.1
"""What must be free beyond the weights, as a fraction of them: for activations and the KV cache."""


def open_checkpoint(
    name: str, folder: Path, device: str, dtype: str, device_map: Any, quantize: str | None, revision: str | None
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Model and processor of a folder or a hub id. `illava_lab.load` says what the arguments mean.

    Raises:
        LabError: see `illava_lab.load`.
    """
    try:
        if (source := _source(name, folder, revision)) is not None:
            folder = source.small_files()
        with _quiet():
            config = _read_config(folder)
            check_answering(folder, config)
            processor, asked = _read_processor(folder, config)
            kind = resolve_dtype(dtype, config)
            with reading("its configuration"):
                check_memory(config, kind, device, device_map, quantize)
        if source is not None:
            source.weights()
        with _quiet():
            hollow = check_weights(config, folder, kind)
            with reading("its configuration"), torch.no_grad():
                check_parts(hollow, asked)
            with reading("its weights"):
                model = model_class(config).from_pretrained(
                    folder,
                    config=config,
                    dtype=kind,
                    use_safetensors=True,
                    trust_remote_code=False,
                    local_files_only=True,
                    **_placement(device, device_map, quantize, kind),
                )
    except LabError as error:
        raise LabError(f"{quoted(name)} cannot be loaded: {error}") from error
    return model.eval(), processor


def _source(name: str, folder: Path, revision: str | None) -> Source | None:
    """Where the folder comes from: None for one that is here, otherwise the hub."""
    if name and is_folder(folder):
        return None
    if is_file(folder):
        raise LabError("it is a file; give the folder of a checkpoint or a hub id such as llava-hf/llava-1.5-7b-hf")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise LabError("it is neither a folder nor a hub id such as llava-hf/llava-1.5-7b-hf")
    return Source(name, revision)


def _read_config(folder: Path) -> PreTrainedConfig:
    """The configuration of a folder that holds nothing to be afraid of, for a model that the hooks know."""
    check_folder(folder)
    with reading("its configuration"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        check_supported(config)
        check_values(config)
    return config


def _read_processor(folder: Path, config: PreTrainedConfig) -> tuple[ProcessorMixin, Any]:
    """The processor, and what it makes of a first question."""
    with reading("its processor or tokenizer"):
        processor = load_processor(folder, config)
        known_words(processor.tokenizer)
        return processor, rehearse(processor, config)


def check_arguments(device: str, dtype: str, device_map: Any, quantize: str | None) -> None:
    """Refuse what cannot be, before anything is read.

    Raises:
        LabError: an unknown dtype or quantisation, a device that is not there, a package that is missing.
    """
    if not isinstance(dtype, str) or dtype not in (*DTYPES, "auto"):
        raise LabError(f"dtype must be one of {', '.join(DTYPES)}, auto, got {dtype!r:.80}")
    wanted = _check_device("device", device)
    if isinstance(device_map, dict):
        for part, place in device_map.items():
            if not isinstance(part, str):
                raise LabError(f"device_map must have names of modules as its keys, got {part!r:.80}")
            if place != "disk":
                _check_device(f"device_map[{part!r:.80}]", f"cuda:{place}" if type(place) is int else place)
    elif device_map is not None and not (isinstance(device_map, str) and device_map == "auto"):
        raise LabError(f"device_map must be 'auto' or a dict of module names and devices, got {device_map!r:.80}")
    if quantize is not None:
        if not isinstance(quantize, str) or quantize not in QUANTIZED_BYTES:
            raise LabError(f"quantize must be one of {', '.join(QUANTIZED_BYTES)}, got {quantize!r:.80}")
        if not torch.cuda.is_available() or (wanted.type != "cuda" and device_map is None):
            raise LabError(f"quantize={quantize!r} needs an NVIDIA GPU and device='cuda' or device_map='auto'")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise LabError(f'quantize={quantize!r} needs bitsandbytes: pip install "illava-lab[quantize]"')
    if (device_map is not None or quantize) and importlib.util.find_spec("accelerate") is None:
        raise LabError("device_map and quantize need accelerate: pip install accelerate")


def _check_device(argument: str, device: Any) -> torch.device:
    try:
        wanted = torch.device(device) if isinstance(device, (str, torch.device)) else None
    except (RuntimeError, ValueError):  # UnicodeEncodeError is one of these
        wanted = None
    if wanted is None or wanted.type not in ("cpu", "cuda") or (wanted.type == "cpu" and wanted.index):
        raise LabError(f"{argument} must be cpu, cuda or cuda:N, got {device!r:.80}")
    if wanted.type == "cuda" and not torch.cuda.is_available():
        raise LabError(
            f"{argument} {device!r} is not there: torch {torch.__version__} finds no CUDA GPU; use device='cpu'"
        )
    if wanted.type == "cuda" and (wanted.index or 0) >= torch.cuda.device_count():
        raise LabError(f"{argument} {device!r} is not there: this machine has {torch.cuda.device_count()} CUDA GPUs")
    return wanted


def resolve_dtype(dtype: str, config: PreTrainedConfig) -> torch.dtype:
    """The wanted dtype; "auto" is the one that the checkpoint was published in."""
    if dtype != "auto":
        return DTYPES[dtype]
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return DTYPES.get(str(own).removeprefix("torch."), torch.float32)


# ---------------------------------------------------------------------------------------------- memory
def check_memory(
    config: PreTrainedConfig,
    dtype: torch.dtype,
    device: str,
    device_map: Any = None,
    quantize: str | None = None,
) -> None:
    """Refuse a model that does not fit, before its weights are read or drawn.

    Raises:
        LabError: states what is needed and what is free.
    """
    weights = weights_bytes(config, dtype, quantize)
    needed = weights * (1 + ROOM)
    free, place = free_bytes(device, device_map)
    if needed > free:
        form = f"{quantize} and {str(dtype)[6:]}" if quantize else str(dtype)[6:]
        raise LabError(
            f"too little memory: needs {needed / 1e9:.2f} GB ({weights / 1e9:.2f} GB of weights in {form} and a tenth "
            f"more for activations and the KV cache), but {free / 1e9:.2f} GB is free {place}"
        )


def weights_bytes(config: PreTrainedConfig, dtype: torch.dtype, quantize: str | None = None) -> int:
    """Bytes of all weights of a model, counted on one that is built without memory."""
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(copy.deepcopy(config), dtype=dtype)
    sizes = {id(tensor): tensor.numel() * tensor.element_size() for tensor in model.parameters()}
    if quantize:
        # bitsandbytes replaces every linear layer but the output layer.
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not model.get_output_embeddings():
                sizes[id(module.weight)] = int(module.weight.numel() * QUANTIZED_BYTES[quantize])
    return sum(sizes.values())


def free_bytes(device: str, device_map: Any = None) -> tuple[int, str]:
    """Free memory where the model would go, and the name of that place."""
    gpus = range(torch.cuda.device_count())
    if device_map is not None:
        free = psutil.virtual_memory().available + sum(torch.cuda.mem_get_info(gpu)[0] for gpu in gpus)
        return free, f"on {len(gpus)} GPUs and in main memory together"
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info(device)[0], f"on {device}"
    return psutil.virtual_memory().available, "in main memory"


# ---------------------------------------------------------------------------------------------- details
def _placement(device: str, device_map: Any, quantize: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Where `from_pretrained` puts the weights. On the CPU it needs no accelerate."""
    arguments: dict[str, Any] = {}
    if device_map is not None or torch.device(device).type != "cpu":
        arguments["device_map"] = device_map if device_map is not None else {"": device}
    if quantize == "4bit":
        arguments["quantization_config"] = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype=dtype)
    elif quantize == "8bit":
        arguments["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    return arguments


@contextmanager
def _quiet() -> Iterator[None]:
    """What transformers would say of a checkpoint is said in one sentence by the lab, or is not worth one."""
    shown, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(max(level, logging.CRITICAL))
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if shown:
            logging.enable_progress_bar()
