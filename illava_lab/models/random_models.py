"""Models of a published size with random weights, for measuring speed and memory where no checkpoint is at hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, pre_tokenizers, processors
from tokenizers.models import WordLevel
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)
from transformers.initialization import no_init_weights

from illava_lab.errors import LabError
from illava_lab.models.families import check_supported
from illava_lab.models.folder import check_numbers, read_json, reading
from illava_lab.models.loading import check_memory, resolve_dtype
from illava_lab.models.processors import build_processor
from illava_lab.models.rehearsal import rehearse
from illava_lab.models.values import check_values
from illava_lab.paths import data_dir, is_file, quoted

PREFIX = "random:"
SEED = 0


def configurations() -> list[str]:
    """The names that can stand behind "random:"."""
    return sorted(path.stem for path in (data_dir() / "configs").glob("*.json"))


def build(name: str, device: str, dtype: str) -> tuple[PreTrainedModel, Any]:
    """Model and processor of a configuration in `data/configs/`, or of a JSON file laid out like those.

    The weights are drawn on the device in the wanted dtype, with a fixed seed; nothing is downloaded. The processor
    prepares images and videos as the published one does. Its tokenizer has the published special tokens, but no words:
    each word of a question becomes the same unknown token, and answers are names of token ids.

    Raises:
        LabError: an unknown name, a file of another layout, an unsupported family, too little memory.
    """
    spec = _read(name)
    try:
        with reading("its configuration"):
            config = _config(spec)
            kind = resolve_dtype(dtype, config)
            check_memory(config, kind, device)
        model = random_model(config, device, kind)
        with reading("its processor or tokenizer"):
            processor = _processor(spec, model)
            rehearse(processor, config)
    except LabError as error:
        raise LabError(f"{quoted(PREFIX + name)} cannot be built: {error}") from None
    return model, processor


def hollow(name: str, dtype: str = "bfloat16") -> tuple[PreTrainedModel, Any]:
    """The same on the CPU without weights: small ones are 0, of large ones memory is reserved and never written to.

    A model of any size fits. It is for counting what depends on shapes alone; what it computes means nothing.

    Raises:
        LabError: an unknown name, a file of another layout, an unsupported family.
    """
    spec = _read(name)
    config = _config(spec)
    with no_init_weights():
        model = AutoModelForImageTextToText.from_config(config, dtype=resolve_dtype(dtype, config)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.numel() < 2**22:  # norms, biases, positions: what is left in memory could be NaN
                parameter.zero_()
    return model, _processor(spec, model)


def _processor(spec: dict[str, Any], model: PreTrainedModel) -> Any:
    """The processor of a configuration; the model learns where its answers end."""
    tokenizer = _tokenizer(model.config.get_text_config().vocab_size, **spec["tokenizer"])
    model.generation_config.update(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    return build_processor(model.config, spec["processor"], tokenizer, spec["chat_template"])


def random_model(config: PreTrainedConfig, device: str, dtype: torch.dtype, seed: int = SEED) -> PreTrainedModel:
    """A model with weights from N(0, 0.02), norms at 1 and biases at 0, made in place: no second copy in any dtype."""
    with torch.device(device), no_init_weights():
        model = AutoModelForImageTextToText.from_config(config, dtype=dtype)
    model.tie_weights()
    draw = torch.Generator(device).manual_seed(seed)
    with torch.no_grad():
        for module in model.modules():
            norm = isinstance(module, nn.LayerNorm) or "RMSNorm" in type(module).__name__
            for name, parameter in module.named_parameters(recurse=False):
                if name == "bias":
                    parameter.zero_()
                elif norm:
                    parameter.fill_(1.0)
                else:
                    parameter.normal_(0.0, 0.02, generator=draw)
    return model.eval()


def _read(name: str) -> dict[str, Any]:
    path = Path(name) if name.endswith(".json") else data_dir() / "configs" / f"{name}.json"
    if not is_file(path):
        raise LabError(
            f"no configuration for {quoted(PREFIX + name)}; there are {', '.join(configurations())}, or give the path "
            "of a JSON file"
        )
    try:
        spec = read_json(path)
    except LabError as error:
        raise LabError(f"{quoted(path)} is not laid out like the files in data/configs: {error}") from None
    if missing := {"config", "processor", "chat_template", "tokenizer"} - set(spec):
        raise LabError(f"{quoted(path)} lacks {', '.join(sorted(missing))}; the files in data/configs show the layout")
    return spec


def _config(spec: dict[str, Any]) -> PreTrainedConfig:
    check_numbers(spec["config"])
    config = AutoConfig.for_model(**spec["config"])
    check_supported(config)
    check_values(config)
    return config


def _tokenizer(
    vocabulary: int,
    special: dict[str, int],
    bos: str | None,
    eos: str,
    pad: str,
    starts_with_bos: bool,
    named: dict[str, str] | None = None,
) -> PreTrainedTokenizerFast:
    """One token a word, and the special tokens at their published ids.

    Args:
        named: attribute of the tokenizer -> token, for what its processor looks up there.
    """
    names = {index: token for token, index in special.items()}
    words = {names.get(index, f"token{index}"): index for index in range(vocabulary)}
    unknown = next(token for token, index in words.items() if index not in names)
    tokenizer = Tokenizer(WordLevel(words, unk_token=unknown))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    if starts_with_bos and bos is not None:
        tokenizer.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, special[bos])]
        )
    made = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad, padding_side="left",
        **({"extra_special_tokens": named} if named else {"additional_special_tokens": list(special)}),
    )  # fmt: skip
    made.add_tokens(list(special), special_tokens=True)  # named or not, each is one token
    return made
