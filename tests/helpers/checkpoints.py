"""Small checkpoints, made on the spot."""

from __future__ import annotations

import copy

import pytest
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from illava_lab.models import random_models


def scaled_down(name: str) -> dict:
    """A published configuration with few and narrow layers; picture sizes, ids and vocabulary stay."""
    spec = copy.deepcopy(random_models._read(name))
    text, vision = spec["config"]["text_config"], spec["config"]["vision_config"]
    text |= dict(
        hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, num_key_value_heads=2
    )
    small = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=2)
    small |= dict(depth=3, embed_dim=32, num_heads=2, out_hidden_size=32)
    small |= dict(deepstack_visual_indexes=[0, 1], fullatt_block_indexes=[1])
    vision |= {key: value for key, value in small.items() if key in vision}
    small = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, linear_num_key_heads=2)
    small |= dict(linear_num_value_heads=4, linear_key_head_dim=8, linear_value_head_dim=8)
    text |= {key: value for key, value in small.items() if key in text}
    if "head_dim" in text:
        text["head_dim"] = round(8 / text.get("rope_parameters", {}).get("partial_rotary_factor", 1))
    if "layer_types" in text:
        text["layer_types"] = text["layer_types"][2:4] * 2
    if "mrope_section" in text.get("rope_parameters", ()):
        text["rope_parameters"] |= {"mrope_section": [2, 1, 1], "partial_rotary_factor": 1.0}
    return spec


def skip_without_torchvision() -> None:
    """Skip a test of SmolVLM where this transformers makes its pictures with torchvision alone, which is not here."""
    try:
        transformers.SmolVLMImageProcessorPil()
    except ImportError:
        pytest.skip(f"in transformers {transformers.__version__} SmolVLM's pictures need torchvision")


def trained_tokenizer(special: list[str]) -> PreTrainedTokenizerFast:
    """A real byte-pair tokenizer, learned from a few sentences."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, special_tokens=["<unk>", "<pad>", *special], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())  # fmt: skip
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(["What is on the table?", "What happens in the film, and why?"] * 9, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<pad>",
        additional_special_tokens=special,
    )
