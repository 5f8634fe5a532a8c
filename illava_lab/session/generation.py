"""What `generate` may be told where an answer is to be timed, decoded and gone on from."""

from __future__ import annotations

from typing import Any

from illava_lab.errors import LabError

# How an answer is made: one continuation, token by token, on a cache that grows.
ALWAYS: dict[str, Any] = {"use_cache": True, "num_beams": 1, "num_return_sequences": 1}

# What would make it otherwise, and has no value that says "not at all": the model's own defaults are looked at as well.
NEVER = (
    "cache_implementation", "cache_config", "prompt_lookup_num_tokens", "penalty_alpha", "dola_layers",
    "num_beam_groups", "prefill_chunk_size", "constraints", "force_words_ids", "assistant_early_exit",
)  # fmt: skip
HARMLESS = {"cache_implementation": ("dynamic", "dynamic_full"), "num_beam_groups": (1,), "penalty_alpha": (0,)}

# What only says which token comes next, and when to stop.
CHOOSING = frozenset({
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "repetition_penalty", "no_repeat_ngram_size", "bad_words_ids", "suppress_tokens", "begin_suppress_tokens",
    "sequence_bias", "exponential_decay_length_penalty", "renormalize_logits", "remove_invalid_values",
    "forced_bos_token_id", "forced_eos_token_id", "eos_token_id", "pad_token_id", "min_new_tokens", "max_time",
    "stopping_criteria", "logits_processor", "prefix_allowed_tokens_fn",
})  # fmt: skip


def check_defaults(model: Any) -> None:
    """Refuse a model whose own `generation_config` asks for answers that the lab cannot make.

    Raises:
        LabError: names the setting.
    """
    for name in NEVER:
        value = getattr(model.generation_config, name, None)
        if value is not None and value not in HARMLESS.get(name, ()):
            raise LabError(f"{name} must be None in model.generation_config for the lab to answer, got {value!r}")


def check_given(given: dict[str, Any]) -> None:
    """Refuse arguments of `generate` with which a conversation could not go on.

    Raises:
        LabError: names the first one, and what can be given.
    """
    for name, value in given.items():
        if name in ALWAYS:
            if value is not None and value != ALWAYS[name]:
                raise LabError(f"{name} must be {ALWAYS[name]} in a conversation, which goes on from one answer "
                               f"on its cache; got {value!r}")  # fmt: skip
        elif name in NEVER:
            if value is not None and value not in HARMLESS.get(name, ()):
                raise LabError(f"{name} must be left out in a conversation, got {value!r}")
        elif name not in CHOOSING:
            raise LabError(f"{name} cannot be given in a conversation; what can: {', '.join(sorted(CHOOSING))}")
