"""How a checkpoint wants its answers to be made: `generation_config.json`, checked before any weight is read."""

from __future__ import annotations

from numbers import Integral, Real
from pathlib import Path
from typing import Any

from transformers import GenerationConfig, PreTrainedConfig

from illava_lab.errors import LabError
from illava_lab.models.folder import reading
from illava_lab.models.values import is_a, is_token

FILE = "generation_config.json"
_ONE_TOKEN = ("bos_token_id", "pad_token_id", "forced_bos_token_id", "decoder_start_token_id")
_TOKENS = ("eos_token_id", "forced_eos_token_id", "suppress_tokens", "begin_suppress_tokens")
# name -> the least value; of what says how likely tokens are, and how long an answer is.
_REAL: dict[str, float] = {
    "temperature": 0, "top_p": 0, "min_p": 0, "top_h": 0, "typical_p": 0, "epsilon_cutoff": 0, "eta_cutoff": 0,
    "repetition_penalty": 1e-6, "length_penalty": -1000,
}  # fmt: skip
_WHOLE: dict[str, int] = {
    "top_k": 0, "no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "max_length": 0, "max_new_tokens": 1,
    "num_beams": 1, "num_return_sequences": 1,
}  # fmt: skip
_FLAGS = (
    "do_sample", "use_cache", "early_stopping", "renormalize_logits", "remove_invalid_values", "disable_compile",
    "output_attentions", "output_hidden_states", "output_scores", "output_logits", "return_dict_in_generate",
    "low_memory",
)  # fmt: skip
# About drafts of another model, which the lab does not use, or about nothing.
_IDLE = (
    "transformers_version", "_from_model_config", "is_assistant", "num_assistant_tokens", "max_matching_ngram_size",
    "num_assistant_tokens_schedule", "assistant_confidence_threshold", "assistant_lookbehind", "target_lookbehind",
)  # fmt: skip
_SAYS_NOTHING = (None, False, 0, 1, "dynamic")


def check_answering(folder: Path, config: PreTrainedConfig) -> None:
    """Refuse settings with which `generate` would stumble, or make an answer in a way that the lab does not know.

    Raises:
        LabError: names the setting.
    """
    with reading(FILE):
        given = (
            GenerationConfig.from_pretrained(folder, local_files_only=True)
            if (folder / FILE).exists()
            else GenerationConfig.from_model_config(config)
        )
        vocabulary = config.get_text_config().vocab_size
        for name in GenerationConfig().to_dict():
            value = getattr(given, name, None)
            if name not in _IDLE and value is not None and not _good(name, value, vocabulary):
                raise LabError(f"{name}={value!r:.80} in {FILE} is nothing that the lab can make answers with")


def _good(name: str, value: Any, vocabulary: int) -> bool:
    if name in _ONE_TOKEN:
        return is_token(value, vocabulary)
    if name in _TOKENS:
        return all(is_token(one, vocabulary) for one in (value if isinstance(value, list) else [value]))
    if name == "bad_words_ids":
        return isinstance(value, list) and all(
            isinstance(word, list) and word and all(is_token(one, vocabulary) for one in word) for word in value
        )
    if name in _WHOLE:
        return is_a(value, Integral) and _WHOLE[name] <= value < 2**31
    if name in _REAL:
        return is_a(value, Real) and _REAL[name] <= value < 2**31
    return isinstance(value, bool) if name in _FLAGS else value in _SAYS_NOTHING
