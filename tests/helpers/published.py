"""Checkpoints laid out as published ones are, and small: names of files and weights, keys, ids, templates and classes."""

from __future__ import annotations

import copy
import json
from functools import cache
from pathlib import Path
from typing import Any

from helpers.layouts import PUBLISHED, Published
from safetensors.torch import load_file, save_file
from tokenizers.pre_tokenizers import ByteLevel
from transformers import AutoConfig, LlamaTokenizer, PreTrainedTokenizerBase, Qwen2Tokenizer

from illava_lab.models.random_models import random_model


def publish(name: str, folder: Path) -> Path:
    """Write one of `PUBLISHED` into a folder, with random weights in several files. Returns it."""
    spec = PUBLISHED[name]
    folder.mkdir(parents=True, exist_ok=True)
    config = AutoConfig.for_model(**copy.deepcopy(spec.config))
    model = random_model(config, "cpu", spec.dtype)
    model.save_pretrained(folder, max_shard_size="4MB")
    _name_as_published(folder, spec)
    _tokenizer(spec).save_pretrained(folder)
    where, template = spec.template
    files = {
        "config.json": spec.config,
        "tokenizer_config.json": _tokenizer_config(spec, template),
        **({} if where.endswith(".jinja") else {where: {"chat_template": template}}),
        **spec.files,
    }
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content), encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    if where.endswith(".jinja"):
        (folder / where).write_text(template, encoding="utf-8")
    return folder


def _name_as_published(folder: Path, spec: Published) -> None:
    """transformers saves under the names of then, but for a level of the towers that it has no more."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    for file in set(index["weight_map"].values()):
        weights = {_older(name, spec): weight for name, weight in load_file(folder / file).items()}
        save_file(weights, folder / file, metadata={"format": "pt"})
    index["weight_map"] = {_older(name, spec): file for name, file in index["weight_map"].items()}
    assert all(name.startswith(spec.weights) for name in index["weight_map"])
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _older(name: str, spec: Published) -> str:
    level = "vision_tower.vision_model."
    return name if name.startswith(level) or level[:-1] not in spec.weights else name.replace("vision_tower.", level, 1)


def _tokenizer(spec: Published) -> PreTrainedTokenizerBase:
    """Every letter and byte is a token, all other ids below the special ones stand for nothing."""
    first = min(index for index in spec.special.values() if index > 1000)
    tokenizer = _letters(spec, first)
    late = [token for token in sorted(spec.special, key=spec.special.__getitem__) if spec.special[token] >= first]
    tokenizer.add_tokens(late, special_tokens=True)
    assert tokenizer.convert_tokens_to_ids(late) == [spec.special[token] for token in late]
    return tokenizer


def _letters(spec: Published, size: int) -> PreTrainedTokenizerBase:
    kind = spec.tokenizer["tokenizer_class"]
    early = tuple((token, index) for token, index in spec.special.items() if index < size)
    vocabulary = dict(_vocabulary(kind, size, early))
    if kind == "LlamaTokenizer":
        named = {name: spec.tokenizer[name] for name in ("bos_token", "eos_token", "unk_token")}
        return LlamaTokenizer(vocab=vocabulary, merges=[], **named)
    return Qwen2Tokenizer(vocab=vocabulary, merges=[], unk_token=None, eos_token=None, pad_token=None)


@cache
def _vocabulary(kind: str, size: int, early: tuple[tuple[str, int], ...]) -> tuple[tuple[str, int], ...]:
    if kind == "LlamaTokenizer":
        words = [*(f"<0x{byte:02X}>" for byte in range(256)), "▁", *map(chr, range(33, 127))]
    else:
        words = sorted(ByteLevel.alphabet())
    words += [f"token{number}" for number in range(size)]
    for token, index in sorted(early, key=lambda pair: pair[1]):
        words.insert(index, token)
    return tuple((word, number) for number, word in enumerate(words[:size]))


def _tokenizer_config(spec: Published, template: str) -> dict[str, Any]:
    decoder = {
        str(index): {"content": token, "lstrip": False, "normalized": False, "rstrip": False, "single_word": False,
                     "special": True}
        for token, index in spec.special.items()
    }  # fmt: skip
    return {"added_tokens_decoder": decoder, "clean_up_tokenization_spaces": False, **spec.tokenizer}
