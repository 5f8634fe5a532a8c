"""What `generate` may be told: an answer is right, or refused before any work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from helpers.labs import noise, small_lab
from transformers import GenerationConfig, LogitsProcessorList, TextStreamer

import illava_lab as il

FIRST, NEXT = "token17 token20 on the table?", "token19 token44 Why?"


@pytest.fixture
def lab() -> Iterator[il.Lab]:
    lab = small_lab("clip-llama")
    own = lab.model.generation_config
    lab.model.generation_config = GenerationConfig(**own.to_diff_dict())
    yield lab
    lab.model.generation_config = own


CANNOT: list[tuple[str, Any, str]] = [
    ("use_cache", False, "use_cache must be True in a conversation, .* got False"),
    ("num_beams", 2, "num_beams must be 1 in a conversation, .* got 2"),
    ("num_return_sequences", 2, "num_return_sequences must be 1 in a conversation, .* got 2"),
    *(
        ("cache_implementation", name, f"cache_implementation must be left out in a conversation, got '{name}'")
        for name in ("paged", "static", "quantized", "offloaded", "offloaded_static", "sliding_window")
    ),
    ("prompt_lookup_num_tokens", 3, "prompt_lookup_num_tokens must be left out in a conversation, got 3"),
    ("penalty_alpha", 0.6, "penalty_alpha must be left out in a conversation"),
    ("assistant_model", "itself", "assistant_model cannot be given in a conversation; what can: .*temperature"),
    ("return_dict_in_generate", True, "return_dict_in_generate cannot be given"),
    ("past_key_values", None, "past_key_values cannot be given"),
    ("inputs_embeds", None, "inputs_embeds cannot be given"),
    ("input_ids", None, "input_ids cannot be given"),
    ("attention_mask", None, "attention_mask cannot be given"),
    ("pixel_values", None, "pixel_values cannot be given"),
    ("streamer", TextStreamer, "streamer cannot be given"),
    ("max_length", 9, "max_length cannot be given"),
    ("generation_config", GenerationConfig(), "generation_config cannot be given"),
    ("temprature", 2.0, "temprature cannot be given"),
    ("stream", "print", "stream must be a function that takes a piece of text, got 'print'"),
    ("max_new_tokens", 0, "max_new_tokens must be a whole number of at least 1, got 0"),
    ("max_new_tokens", -3, "max_new_tokens must be a whole number of at least 1, got -3"),
    ("max_new_tokens", 2.0, "max_new_tokens must be a whole number of at least 1, got 2.0"),
    ("max_new_tokens", True, "max_new_tokens must be a whole number of at least 1, got True"),
    ("max_new_tokens", None, "max_new_tokens must be a whole number of at least 1, got None"),
    ("max_new_tokens", 10**9, r"max_new_tokens must be from 1 to [\d,]+, got 1000000000: .* of the 4,096 positions"),
]


@pytest.mark.parametrize("strategy", ["none", "fastv"])
@pytest.mark.parametrize(("name", "value", "says"), CANNOT)
def test_what_a_conversation_cannot_go_on_with_is_refused_before_any_work(
    lab: il.Lab, monkeypatch: pytest.MonkeyPatch, strategy: str, name: str, value: Any, says: str
) -> None:
    keep = None if strategy == "none" else 0.5
    with il.chat(lab, noise(), strategy, keep) as talk, monkeypatch.context() as patch:
        patch.setattr(type(lab.model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
        with pytest.raises(il.LabError, match=says):
            talk.say(FIRST, **{name: lab.model if value == "itself" else value})


def test_what_says_which_token_comes_next_can_be_given(lab: il.Lab) -> None:
    with il.chat(lab, noise(), "fastv", 0.5) as talk:
        talk.say(FIRST, max_new_tokens=4)
        plain = talk.say(NEXT, max_new_tokens=4, use_cache=True, num_beams=1, cache_implementation="dynamic").text
        assert talk.say(NEXT, max_new_tokens=4, logits_processor=LogitsProcessorList()).timing.tokens == 4
    with il.chat(lab, noise(), "fastv", 0.5) as talk:
        talk.say(FIRST, max_new_tokens=4)
        assert talk.say(NEXT, max_new_tokens=4, do_sample=True, top_k=1).text == plain


DEFAULTS: list[tuple[str, Any]] = [
    ("cache_implementation", "paged"),
    ("cache_implementation", "static"),
    ("cache_implementation", "quantized"),
    ("prompt_lookup_num_tokens", 3),
    ("prefill_chunk_size", 8),
]


@pytest.mark.parametrize(("name", "value"), DEFAULTS)
def test_defaults_of_a_checkpoint_that_the_lab_cannot_follow_are_refused(
    lab: il.Lab, monkeypatch: pytest.MonkeyPatch, name: str, value: Any
) -> None:
    setattr(lab.model.generation_config, name, value)
    monkeypatch.setattr(type(lab.model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    says = f"{name} must be None in model.generation_config for the lab to answer, got {value!r}"
    for strategy in ("none", "fastv"):
        with pytest.raises(il.LabError, match=says):
            lab.ask(noise(), FIRST, strategy)
        with il.chat(lab, noise(), strategy) as talk, pytest.raises(il.LabError, match=says):
            talk.say(FIRST)
    with pytest.raises(il.LabError, match=says):
        lab.answer([noise()], [FIRST])


@pytest.mark.parametrize(
    ("name", "value"), [("use_cache", False), ("num_beams", 3), ("return_dict_in_generate", True), ("do_sample", True)]
)
def test_other_defaults_of_a_checkpoint_change_no_answer(lab: il.Lab, name: str, value: Any) -> None:
    def answers() -> list[str]:
        with il.chat(lab, noise(), "fastv", 0.5) as talk:
            said = [talk.say(question, max_new_tokens=5).text for question in (FIRST, NEXT)]
        asked = [lab.ask(noise(), FIRST, strategy, max_new_tokens=5).text for strategy in ("none", "fastv")]
        return said + asked + lab.answer([noise()], [NEXT], max_new_tokens=5)

    before = answers()
    setattr(lab.model.generation_config, name, value)
    assert answers() == before


@pytest.mark.parametrize("count", [0, -1, 1.5, True, "4", None, 10**12])
def test_an_answer_has_at_least_one_token_and_fits_the_model(
    lab: il.Lab, monkeypatch: pytest.MonkeyPatch, count: Any
) -> None:
    monkeypatch.setattr(type(lab.model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    says = "max_new_tokens must be .*, got "
    for verb in (
        lambda: lab.ask(noise(), FIRST, "fastv", max_new_tokens=count),
        lambda: lab.answer([noise()], [FIRST], max_new_tokens=count),
        lambda: il.fidelity(lab, [noise()], [FIRST], "fastv", max_new_tokens=count),
    ):
        with pytest.raises(il.LabError, match=says):
            verb()
