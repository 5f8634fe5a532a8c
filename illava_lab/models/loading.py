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
from huggingface_hub import constants as hub
from huggingface_hub import errors
from safetensors import SafetensorError
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
from illava_lab.models.families import check_supported
from illava_lab.models.processors import load_processor

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
    where = _where(name, folder)
    try:
        # trust_remote_code stays off: no code of a checkpoint is ever run.
        config = AutoConfig.from_pretrained(where, revision=revision, trust_remote_code=False)
        check_supported(config)
        processor = load_processor(where, config, revision)
        kind = resolve_dtype(dtype, config)
        check_memory(name, config, kind, device, device_map, quantize)
        with _quiet(folder.is_dir()):
            model, report = AutoModelForImageTextToText.from_pretrained(
                where,
                dtype=kind,
                revision=revision,
                use_safetensors=True,
                trust_remote_code=False,
                output_loading_info=True,
                **_placement(device, device_map, quantize, kind),
            )
    except LabError as error:
        raise LabError(f"{name}: {error}") from None
    except (OSError, ValueError, ImportError, SafetensorError, errors.HfHubHTTPError) as error:
        raise LabError(f"{name} cannot be loaded: {_reason(name, revision, error)}") from error
    if report["missing_keys"]:
        # transformers would go on with random numbers in their place.
        missing = sorted(report["missing_keys"])
        raise LabError(f"{name} lacks {len(missing)} weights, the first is {missing[0]}")
    return model.eval(), processor


def check_arguments(device: str, dtype: str, device_map: Any, quantize: str | None) -> None:
    """Refuse what cannot be, before anything is read.

    Raises:
        LabError: an unknown dtype or quantisation, a device that is not there, a package that is missing.
    """
    if dtype not in (*DTYPES, "auto"):
        raise LabError(f"dtype must be one of {', '.join(DTYPES)}, auto, got {dtype!r}")
    try:
        wanted = torch.device(device)
    except RuntimeError:
        raise LabError(f"device must be cpu, cuda or cuda:N, got {device!r}") from None
    if wanted.type == "cuda":
        _check_cuda(wanted, device)
    if device_map is not None and not (device_map == "auto" or isinstance(device_map, dict)):
        raise LabError(f"device_map must be 'auto' or a dict of module names and devices, got {device_map!r}")
    if quantize is not None:
        if quantize not in QUANTIZED_BYTES:
            raise LabError(f"quantize must be one of {', '.join(QUANTIZED_BYTES)}, got {quantize!r}")
        if importlib.util.find_spec("bitsandbytes") is None:
            raise LabError(f'quantize={quantize!r} needs bitsandbytes: pip install "illava-lab[quantize]"')
        if not torch.cuda.is_available() or (wanted.type != "cuda" and device_map is None):
            raise LabError(f"quantize={quantize!r} needs an NVIDIA GPU and device='cuda' or device_map='auto'")
    if (device_map is not None or quantize) and importlib.util.find_spec("accelerate") is None:
        raise LabError("device_map and quantize need accelerate: pip install accelerate")


def _check_cuda(wanted: torch.device, device: str) -> None:
    if not torch.cuda.is_available():
        raise LabError(f"device {device!r} is not there: torch {torch.__version__} finds no CUDA GPU; use device='cpu'")
    if (wanted.index or 0) >= torch.cuda.device_count():
        raise LabError(f"device {device!r} is not there: this machine has {torch.cuda.device_count()} CUDA GPUs")


def resolve_dtype(dtype: str, config: PreTrainedConfig) -> torch.dtype:
    """The wanted dtype; "auto" is the one that the checkpoint was published in."""
    if dtype != "auto":
        return DTYPES[dtype]
    own = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    return own if isinstance(own, torch.dtype) else DTYPES.get(str(own), torch.float32)


# ---------------------------------------------------------------------------------------------- memory
def check_memory(
    name: str,
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


def _where(name: str, folder: Path) -> str:
    """What `from_pretrained` is given: a folder with a configuration and safetensors, or a hub id."""
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise LabError(f"{name} is no checkpoint: the folder has no config.json")
        if not any(folder.glob("*.safetensors")) and (pickles := sorted(folder.glob("*.bin"))):
            raise LabError(
                f"{name} has its weights as {pickles[0].name}, a pickle that can run code; only safetensors are "
                "loaded, "
                "which save_pretrained of current transformers writes"
            )
        return str(folder)
    if folder.exists():
        raise LabError(
            f"{name} is a file; give the folder of a checkpoint or a hub id such as llava-hf/llava-1.5-7b-hf"
        )
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise LabError(f"{name} is neither a folder nor a hub id such as llava-hf/llava-1.5-7b-hf")
    return name


def _reason(name: str, revision: str | None, error: BaseException) -> str:
    """One sentence for a person. transformers wraps what the hub answered, so the whole chain of causes is asked."""
    chain: list[BaseException] = [error]
    while (cause := chain[-1].__cause__ or chain[-1].__context__) is not None:
        chain.append(cause)

    def caused_by(*kinds: type[BaseException]) -> bool:
        return any(isinstance(link, kinds) for link in chain)

    if caused_by(errors.GatedRepoError):
        return f"it is gated: accept its licence at {hub.ENDPOINT}/{name}, then log in here with: hf auth login"
    if caused_by(errors.RevisionNotFoundError):
        return f"it has no revision {revision!r}"
    if caused_by(errors.RepositoryNotFoundError):
        return "there is no such model on the hub, or it is private: check the name, or log in with: hf auth login"
    if hub.HF_HUB_OFFLINE or caused_by(errors.OfflineModeIsEnabled):
        return "it is not in the local cache, and HF_HUB_OFFLINE forbids to fetch it"
    if caused_by(ConnectionError, errors.LocalEntryNotFoundError) or any(
        "connect" in str(link).lower() for link in chain
    ):
        return (
            f"it is not in the local cache, and {hub.ENDPOINT} cannot be reached: check the network, or give a folder"
        )
    if any("trust_remote_code" in str(link) for link in chain):
        return "it brings code of its own, which the lab never runs"
    return str(error).strip().split("\n")[0] or type(error).__name__


@contextmanager
def _quiet(local: bool) -> Iterator[None]:
    """No progress bar for the second that reading local weights takes; downloads keep theirs."""
    shown = logging.is_progress_bar_enabled()
    if local:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
