"""Odd checkpoint folders from a seed: a good one with something of it missing, damaged, absurd, planted or hostile.

Of each the same is asked: within seconds it is loaded, or a `LabError` says why not in one line; and no code of it runs.
What its code would do is to make a file `CODE_RAN` in the folder.
"""

from __future__ import annotations

import json
import math
import os
import pickle
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from helpers.odd_pictures import damaged
from safetensors.numpy import load_file, save_file

MARKER = "CODE_RAN"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
PROCESSOR, TOKENIZER, TEMPLATE = "processor_config.json", "tokenizer.json", "chat_template.jinja"
JSONS = (CONFIG, PROCESSOR, "tokenizer_config.json", "generation_config.json", TOKENIZER)
CLASSES = (
    "AutoConfig", "AutoModel", "AutoModelForImageTextToText", "AutoModelForCausalLM", "AutoProcessor", "AutoTokenizer",
    "AutoImageProcessor", "AutoVideoProcessor", "AutoFeatureExtractor",
)  # fmt: skip
# Files that transformers looks for as well, which a good folder need not have.
MORE_JSONS = (
    "preprocessor_config.json", "video_preprocessor_config.json", "special_tokens_map.json", "added_tokens.json",
    "adapter_config.json", "chat_template.json", "knows.json",
)  # fmt: skip
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, 2, -1, 3, 0.5, -0.0, 10**6, 2**31, 2**40, 2**63, 2**70, 1e308, math.nan, math.inf,
    -math.inf, "", "text", "1", "\x1b[31mred\nline", "{{", "../..", [], [1], [0, 0], [[1]], {}, {"a": 1}, [None], "a" * 9999,
)  # fmt: skip
ODD_CONTENTS: tuple[bytes, ...] = (
    b"", b" ", b"null", b"[]", b"3", b'"text"', b"{", b"{}", b'{"a": }', b"\xff\xfe\x00", b"\xef\xbb\xbf{}",
    b"[" * 100_000, b'{"a":' * 50_000, b'{"model_type": "llava"}', b"NaN", b"1" * 10_000, b'{"a": "\\ud800"}', b"{}\x00",
)  # fmt: skip


def odd_folder(seed: int, good: Path, target: Path) -> Path:
    """Make `target` a copy of the checkpoint `good` with one to three odd things in it, the same ones for a seed.

    `target` must not exist. Returns it.
    """
    rng = random.Random(seed)
    shutil.copytree(good, target, ignore=shutil.ignore_patterns("README*"))
    kinds = list(KINDS)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        KINDS[rng.choice(kinds)](target, rng)
    return target


def code(folder: Path) -> str:
    """Python that says that it ran."""
    return f"open({str(folder / MARKER)!r}, 'w').close()\n"


# ---------------------------------------------------------------------------------------------- files and values
def missing(folder: Path, rng: random.Random) -> None:
    """A file is gone."""
    there = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
    if there:
        rng.choice(there).unlink()


def garbled(folder: Path, rng: random.Random) -> None:
    """A text file holds something else altogether."""
    _put(folder / rng.choice((*JSONS, *MORE_JSONS, TEMPLATE, INDEX)), rng.choice(ODD_CONTENTS))


def scratched(folder: Path, rng: random.Random) -> None:
    """A few bytes of a file are changed."""
    path = folder / rng.choice((*JSONS, TEMPLATE, WEIGHTS))
    if path.is_file():
        _put(path, damaged(path.read_bytes(), np.random.default_rng(rng.randrange(2**32))))


def replaced(folder: Path, rng: random.Random) -> None:
    """A file is a folder, a pipe, or a link to nowhere, to itself or out of the folder."""
    path = folder / rng.choice((*JSONS, *MORE_JSONS, TEMPLATE, WEIGHTS, INDEX))
    content = path.read_bytes() if path.is_file() else b"{}"
    path.unlink(missing_ok=True)
    how = rng.randrange(6 if hasattr(os, "mkfifo") else 5)
    if how == 0:
        path.mkdir(exist_ok=True)
    elif how < 4:
        outside = folder.with_name(f"{folder.name}-outside")
        outside.write_bytes(content)
        path.symlink_to(("nowhere", path.name, str(outside))[how - 1])
    elif how == 4:
        path.symlink_to("/dev/zero" if os.path.exists("/dev/zero") else "nowhere")
    else:
        os.mkfifo(path)


def one_value(folder: Path, rng: random.Random) -> None:
    """A value anywhere in a JSON file is odd, or gone, or there are more."""
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        _change(folder, rng.choice((CONFIG, CONFIG, *JSONS)), lambda content: _set_any(content, rng))


def new_key(folder: Path, rng: random.Random) -> None:
    """A setting that transformers knows and the checkpoint does not have, with an odd value."""
    keys = (
        "quantization_config", "attn_implementation", "_attn_implementation", "experts_implementation", "dtype", "torch_dtype",
        "sliding_window", "layer_types", "rope_scaling", "rope_parameters", "use_cache", "pruned_heads", "architectures",
        "trust_remote_code", "custom_generate", "tokenizer_class", "processor_class", "image_processor_type", "chat_template",
        "video_processor", "feature_extractor_type", "added_tokens_decoder", "extra_special_tokens", "model_input_names",
        "cache_implementation", "num_beams", "max_length", "bad_words_ids", "image_grid_pinpoints", "auto_map", "dtype_plan",
        "tp_plan", "device_map", "_name_or_path", "id2label", "num_labels", "output_hidden_states", "return_dict", "use_kernels",
    )  # fmt: skip

    def add(content: Any) -> None:
        inner = [content, *(value for value in content.values() if isinstance(value, dict))]
        rng.choice(inner)[rng.choice(keys)] = rng.choice(
            (*ODD_VALUES, "../mine", "kernels-community/flash-attn", {"quant_method": "gptq", "bits": 4}, "float16")
        )

    _change(folder, rng.choice(JSONS), add)


def absurd(folder: Path, rng: random.Random) -> None:
    """A size in the configuration is far too large or makes no sense."""
    where = rng.choice(("text_config", "vision_config"))
    key = rng.choice((
        "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "vocab_size",
        "head_dim", "image_size", "patch_size", "num_channels", "max_position_embeddings", "depth", "embed_dim",
    ))  # fmt: skip
    value = rng.choice((0, 1, -1, 7, 10**4, 10**6, 10**9, 2**31, 2**62, 2**63, 10**30, math.nan, math.inf, 1.5))
    _change(folder, CONFIG, lambda content: content[where].__setitem__(key, value))


# ---------------------------------------------------------------------------------------------- weights
def other_weights(folder: Path, rng: random.Random) -> None:
    """Weights that are missing, too many, of another shape or type, or no numbers."""
    if not (folder / WEIGHTS).is_file():
        return
    try:
        tensors = load_file(folder / WEIGHTS)
    except Exception:  # an earlier oddity got at them
        return
    for _ in range(rng.choice((1, 2, 30))):
        name = rng.choice(sorted(tensors) or ["only"])
        tensor = tensors.get(name, np.zeros(3, np.float32))
        change = rng.randrange(8)
        if change == 0:
            tensors.pop(name, None)
        elif change == 1:
            tensors[f"{name}.more"] = tensor
        else:
            other = (
                tensor[:1], tensor[None], tensor.reshape(-1), np.zeros(tensor.shape, np.int64), tensor * np.nan,
                np.zeros((0, *tensor.shape[1:]), tensor.dtype),
            )  # fmt: skip
            tensors[name] = np.ascontiguousarray(other[change - 2])
    (folder / WEIGHTS).unlink()
    save_file(tensors, folder / WEIGHTS, metadata=rng.choice(({"format": "pt"}, {"format": "tf"}, None)))


def odd_header(folder: Path, rng: random.Random) -> None:
    """A safetensors file whose header lies."""
    header: Any = rng.choice((
        {}, [], {"a": 1}, {"a": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]}}, {"a": {"dtype": "F9", "shape": [1], "data_offsets": [0, 4]}},
        {"a": {"dtype": "F32", "shape": [1], "data_offsets": [4, 0]}}, {"\x1b[2J": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}},
        {f"layer{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20_000)},
    ))  # fmt: skip
    text = json.dumps(header).encode()
    length = rng.choice((len(text), len(text), len(text), 0, 2**40, 2**64 - 1, len(text) + 100))
    _put(folder / WEIGHTS, struct.pack("<Q", length) + text + bytes(4))


def odd_index(folder: Path, rng: random.Random) -> None:
    """An index of weights that leads somewhere else: to a pickle, out of the folder, nowhere."""
    outside = folder.with_name(f"{folder.name}-weights.safetensors")
    if (folder / WEIGHTS).is_file():
        shutil.copyfile(folder / WEIGHTS, outside)
    _put(folder / "pytorch_model.bin", pickled(folder))
    link = "linked.safetensors"
    shards: tuple[Any, ...] = (
        "pytorch_model.bin", "./pytorch_model.bin", f"../{outside.name}", str(outside), link, "none.safetensors", "",
        ".", "..", WEIGHTS, f"./{WEIGHTS}", f"x/../{WEIGHTS}", "a\x00.safetensors", "\x1b[2J.safetensors", 3, None, [],
        {}, "https://example.org/model.safetensors", "model.safetensors\n", "MODEL.SAFETENSORS", "a" * 5000 + ".safetensors",
    )  # fmt: skip
    names = ["model.language_model.norm.weight", "lm_head.weight", "another"]
    maps: tuple[Any, ...] = (
        {name: rng.choice(shards) for name in names}, dict.fromkeys(names, rng.choice(shards)), {}, [], None, "text",
    )  # fmt: skip
    content: Any = {"metadata": {"total_size": 1}, "weight_map": rng.choice(maps[:2] * 4 + maps)}
    if rng.random() < 0.1:
        content = rng.choice(({}, [], {"weight_map": {}}, {"metadata": 3}))
    _put(folder / rng.choice((INDEX, INDEX, INDEX, "pytorch_model.bin.index.json")), json.dumps(content).encode())
    if f'"{link}"' in json.dumps(content) and not (folder / link).is_symlink():
        (folder / link).symlink_to(outside)
    how = rng.randrange(4)
    if how and (folder / WEIGHTS).is_file():
        weights = folder / WEIGHTS
        weights.unlink() if how == 1 else weights.rename(folder / "model-00001-of-00001.safetensors")


def pickles(folder: Path, rng: random.Random) -> None:
    """Weights that are a pickle, by its own name or under a better one."""
    name = rng.choice(("pytorch_model.bin", WEIGHTS, "model.bin", "adapter_model.bin", "tokenizer.model", "model.pt"))
    _put(folder / name, pickled(folder))
    if rng.random() < 0.7 and name != WEIGHTS:
        (folder / WEIGHTS).unlink(missing_ok=True)


class _Obeyed:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return open, (self.path, "w")


def pickled(folder: Path) -> bytes:
    """A pickle that says that it was obeyed."""
    return pickle.dumps({"a": _Obeyed(str(folder / MARKER))}, protocol=2)


# ---------------------------------------------------------------------------------------------- code
def foreign_code(folder: Path, rng: random.Random) -> None:
    """Code of its own, named in any JSON file for any class."""
    chosen = rng.sample(CLASSES, rng.randint(1, len(CLASSES)))
    for name in chosen:
        (folder / f"mine_{name.lower()}.py").write_text(code(folder), encoding="utf-8")
    module = rng.choice(("mine_{}.Mine", "other/repo--mine_{}.Mine", "./mine_{}.Mine", "../mine_{}.Mine"))
    auto_map: Any = {name: module.format(name.lower()) for name in chosen}
    if "AutoTokenizer" in auto_map and rng.random() < 0.5:
        auto_map["AutoTokenizer"] = [auto_map["AutoTokenizer"], None]
    file = rng.choice((CONFIG, PROCESSOR, "tokenizer_config.json", "generation_config.json", *MORE_JSONS[:3]))
    nested = rng.random() < 0.3

    def add(content: Any) -> None:
        inner = [value for value in content.values() if isinstance(value, dict)]
        (rng.choice(inner) if nested and inner else content)["auto_map"] = auto_map
        if rng.random() < 0.3:
            content[rng.choice(("model_type", "processor_class", "tokenizer_class", "image_processor_type"))] = "Mine"
        if rng.random() < 0.3:
            content["trust_remote_code"] = True

    if not (folder / file).exists():
        _put(folder / file, b"{}")
    _change(folder, file, add)


def foreign_generate(folder: Path, rng: random.Random) -> None:
    """A way to generate of its own."""
    (folder / "custom_generate").mkdir(exist_ok=True)
    (folder / "custom_generate" / "generate.py").write_text(code(folder) + "def generate(model, **_): return None\n")
    value = rng.choice(("custom_generate", str(folder), True, "."))
    file = rng.choice(("generation_config.json", CONFIG))
    _change(folder, file, lambda content: content.__setitem__("custom_generate", value))


def foreign_kernels(folder: Path, rng: random.Random) -> None:
    """Attention or layers from somewhere else."""
    value = rng.choice(
        ("kernels-community/flash-attn", f"{folder}:mine", "mine", "flash_attention_2", "paged|mine", {"": "a/b"})
    )
    key = rng.choice(("_attn_implementation", "attn_implementation", "_attn_implementation_internal", "experts_implementation"))  # fmt: skip
    (folder / "mine.py").write_text(code(folder))

    def add(content: Any) -> None:
        rng.choice([content, *(value for value in content.values() if isinstance(value, dict))])[key] = value

    _change(folder, CONFIG, add)


TEMPLATES = (
    "{% for m in messages %}", "{{ messages[0].nothing.at.all }}", "{{ 1 / 0 }}", "{{ raise_exception('no\x1b[2J\n!') }}", "",
    "{{ messages }}", "no image at all", "{% include 'x' %}", "{% extends 'x' %}", "{% import 'os' as os %}", "{{ '<image>' * 1000 }}",
    "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", "{{ 'x' * 10 ** 9 }}", "{{ 10 ** 10 ** 9 }}",
    "{% for a in range(99999) %}{{ 'x' * 1000 }}{% endfor %}", "{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", "{{ '\ud83d\ude00' }}",
    "{{ cycler.__init__.__globals__.os.open(MARKER, 65) }}", "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ messages.append(1) }}", "{{ self.__init__.__globals__.__builtins__.open(MARKER, 'w') }}", "{% set x = namespace() %}{{ x.y.z }}",
    "{{ lipsum.__globals__['os'].system('touch ' ~ MARKER) }}", "{{ '{0.__class__}'.format(messages) }}", "{{ messages|map('x')|list }}",
)  # fmt: skip


def odd_template(folder: Path, rng: random.Random) -> None:
    """A chat template that is broken, endless, or tries to get out."""
    text = rng.choice(TEMPLATES).replace("MARKER", repr(str(folder / MARKER)))
    where = rng.randrange(4)
    if where == 0:
        (folder / TEMPLATE).unlink(missing_ok=True)
        _change(folder, "tokenizer_config.json", lambda content: content.__setitem__("chat_template", text))
    elif where == 1:
        (folder / TEMPLATE).unlink(missing_ok=True)
        _put(folder / "chat_template.json", json.dumps({"chat_template": text}).encode())
    elif where == 2:
        (folder / "additional_chat_templates").mkdir(exist_ok=True)
        name = rng.choice(("default", "other", "a\x1b"))
        _put(folder / "additional_chat_templates" / f"{name}.jinja", text.encode("utf-8", "surrogatepass"))
    else:
        _put(folder / TEMPLATE, text.encode("utf-8", "surrogatepass"))


KINDS: dict[str, Callable[[Path, random.Random], None]] = {
    kind.__name__: kind
    for kind in (
        missing, garbled, scratched, replaced, one_value, new_key, absurd, other_weights, odd_header, odd_index, pickles,
        foreign_code, foreign_generate, foreign_kernels, odd_template,
    )
}  # fmt: skip


# ---------------------------------------------------------------------------------------------- details
def _put(path: Path, content: bytes) -> None:
    """A new file in the place of whatever was there: nothing is written through a link."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def _change(folder: Path, file: str, change: Callable[[Any], Any]) -> None:
    """Change what a JSON file says, if an earlier oddity left it one."""
    path = folder / file
    try:
        content = json.loads(path.read_bytes()) if path.is_file() else None
        if isinstance(content, dict):
            change(content)
            _put(path, json.dumps(content).encode())
    except (ValueError, KeyError, RecursionError, TypeError):
        return


def _set_any(content: Any, rng: random.Random) -> None:
    """An odd value somewhere in nested dicts and lists."""
    while True:
        if not content:
            return
        key = rng.choice(sorted(content)) if isinstance(content, dict) else rng.randrange(len(content))
        inner = content[key]
        if isinstance(inner, (dict, list)) and inner and rng.random() < 0.8:
            content = inner
            continue
        if rng.random() < 0.15:
            del content[key]
        else:
            content[key] = rng.choice(ODD_VALUES)
        return
