"""What lies in a checkpoint's folder: looked through before transformers reads any of it.

Whoever made the folder is not trusted: code that it names is refused, links lead nowhere else, and its JSON is read
once here, so that what is no JSON, or has absurd numbers in it, is named.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

from illava_lab.errors import LabError
from illava_lab.paths import quoted

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
# All that transformers reads of a checkpoint of the families here, besides weights and chat templates (.jinja).
JSONS = (
    CONFIG, "generation_config.json", "processor_config.json", "preprocessor_config.json", "tokenizer_config.json",
    "video_preprocessor_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json", "vocab.json",
    "chat_template.json", "knows.json", INDEX,
)  # fmt: skip
TEXTS = ("merges.txt", "vocab.txt", "tokenizer.model", "chat_template.jinja")
SUFFIXES = (".json", ".jinja", ".txt", ".model", ".safetensors")
MOST_BYTES = 2**27
"""Of a JSON file: the largest tokenizers have 35 million."""
MOST_LAYERS = 1000
MOST_NUMBER = 2**31
_CODE = ("auto_map", "trust_remote_code", "custom_generate", "custom_pipelines")
_ATTENTION = (
    "attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation",
    "_experts_implementation", "_experts_implementation_internal",
)  # fmt: skip
_PLAIN_ATTENTION = ("eager", "sdpa", "flex_attention")
# What would have the weights come from elsewhere or be packed in a way that only another package reads.
_ELSEWHERE = ("transformers_weights", "quantization_config", "use_kernels", "kernel_config")


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Whatever a reader of foreign data stumbles over becomes one sentence about `what`.

    Raises:
        LabError: "`what` cannot be used", and why; one that was raised within goes on as it is.
    """
    try:
        yield
    except LabError:
        raise
    except BaseException as error:
        # tokenizers is written in Rust, whose panics are no Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise LabError(f"{what} cannot be used: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Why, in one line of at most 300 characters."""
    said = " ".join(str(error).strip().split("\n\n")[0].split())[:300]
    if isinstance(error, MemoryError):
        return "there is not enough memory for it"
    # A bare name or number tells nothing without the kind of mistake.
    return said if len(said.split()) > 2 else f"{type(error).__name__} {said}".strip()


def check_folder(folder: Path) -> dict[str, Any]:
    """Look through a folder before anything is made of it. Returns what its `config.json` says.

    Raises:
        LabError: no configuration; a file that is none, cannot be read or lies elsewhere; bad JSON; code, adapters,
            quantised weights or attention from elsewhere that it asks for; absurd numbers.
    """
    with reading("the folder"):
        entries = sorted(folder.iterdir())
        if not any(path.name == CONFIG for path in entries):
            raise LabError("it is no checkpoint: the folder has no config.json")
        if any(path.name.startswith("adapter_") for path in entries):
            raise LabError("it is an adapter of another model (PEFT), not a checkpoint: merge it into that one first")
        templates = folder / "additional_chat_templates"
        if templates.is_symlink():
            raise LabError(f"it has a link that leads elsewhere: {quoted(templates.name)}")
        entries += sorted(templates.iterdir()) if templates.is_dir() else []
        for path in entries:
            if path.suffix in SUFFIXES:
                check_inside(path, folder)
        contents = {name: read_json(folder / name) for name in JSONS if (folder / name).exists()}
        others = (path for path in entries if path.suffix == ".json" and path.name not in JSONS)
    for name, content in contents.items():
        _check_trust(name, content)
    for path in others:  # not read by anybody now; a later transformers might
        if b'"auto_map"' in path.read_bytes()[:MOST_BYTES]:
            _refuse_code(path.name, "auto_map")
    check_numbers(contents[CONFIG])
    return contents[CONFIG]


def check_inside(path: Path, folder: Path) -> None:
    """Refuse what is no file, and a link out of the folder. The hub's cache keeps the contents beside its snapshots.

    Raises:
        LabError: names the file.
    """
    if not path.is_file():
        raise LabError(f"it has something that is no file, or a link to nothing, in the place of {quoted(path.name)}")
    real, home = path.resolve(), folder.resolve()
    blobs = home.parent.parent / "blobs" if home.parent.name == "snapshots" else home
    if not (real.is_relative_to(home) or real.is_relative_to(blobs)):
        raise LabError(f"it has a link that leads elsewhere: {quoted(path.name)}")


def read_json(path: Path) -> dict[str, Any]:
    """The object that a JSON file holds.

    Raises:
        LabError: too large, no JSON, numbers that are none (NaN, infinite), or something other than an object.
    """
    shown = quoted(path.name)
    try:
        if path.stat().st_size > MOST_BYTES:
            raise LabError(f"it has a file {shown} of more than {MOST_BYTES} bytes")
        content = json.loads(path.read_bytes().decode(), parse_constant=_no_number, parse_float=_float)
    except (ValueError, RecursionError) as error:
        if isinstance(error, LabError):
            raise
        said = "it is nested too deeply" if isinstance(error, RecursionError) else first_line(error)
        raise LabError(f"it has a file {shown} that is no JSON: {said}") from None
    except OSError as error:
        raise LabError(f"it has a file {shown} that cannot be read: {error.strerror}") from None
    if not isinstance(content, dict):
        raise LabError(f"it has a file {shown} that must hold a JSON object, and holds {type(content).__name__}")
    return content


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is no number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is too large")
    return value


def _check_trust(file: str, content: Any) -> None:
    if isinstance(content, list):
        for value in content:
            _check_trust(file, value)
    if not isinstance(content, dict):
        return
    for key, value in content.items():
        if key in _CODE and value:
            _refuse_code(file, key)
        if key in _ATTENTION and value is not None:
            _check_attention(file, key, value)
        if key in _ELSEWHERE and value:
            raise LabError(
                f"it asks for {key!r} in {file}, which the lab does not follow: it loads plain weights from the "
                "folder, and quantises them itself (quantize='4bit')"
            )
        _check_trust(file, value)


def _refuse_code(file: str, key: str) -> NoReturn:
    raise LabError(f"it brings code of its own, which the lab never runs ({key!r} in {quoted(file)})")


def _check_attention(file: str, key: str, value: Any) -> None:
    if value in _PLAIN_ATTENTION or (value in ("flash_attention_2", "flash_attention_3") and find_spec("flash_attn")):
        return
    raise LabError(
        f"it asks for {key}={value!r:.80} in {file}, which the lab never fetches; "
        f"what it may ask for: {', '.join(_PLAIN_ATTENTION)}"
    )


def check_numbers(content: Any, name: str = "") -> None:
    """Refuse sizes in a configuration for which lists or models would be made for minutes.

    Raises:
        LabError: names the value and what is allowed.
    """
    if isinstance(content, dict):
        for key, value in content.items():
            check_numbers(value, f"{name}.{key}".strip("."))
    elif isinstance(content, list):
        for value in content:
            check_numbers(value, name)
    elif isinstance(content, (int, float)) and not isinstance(content, bool):
        layers = name.endswith(("layers", "depth", "num_labels"))
        most = MOST_LAYERS if layers else MOST_NUMBER
        if abs(content) > most:
            raise LabError(f"{name:.80} may be at most {most} in its configuration, got {content:.6g}")
