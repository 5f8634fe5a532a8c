"""The loop by hand: as many tokens at every layer as the strategy's trace reports, and the arithmetic of these."""

from __future__ import annotations

from contextlib import ExitStack

import pytest
import torch
from conftest import KINDS, Prompt, make_inputs, shared_llava
from helpers.qwen import PACKED, QWENS
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import illava_lab as il
from illava_lab.measuring import by_hand, measure
from illava_lab.models.families import describe
from illava_lab.schedules.flops import prefill_flops

LLAVAS = [kind for kind in KINDS if kind not in ("smolvlm", *PACKED)]
RANDOM, NONE = il.get_strategy("random")(), il.get_strategy("none")()
SCHEDULE = il.Schedule(encoder={1: 30, 2: 20}, llm={2: 0.5, 3: 0.7})
ALIKE = [Prompt(), Prompt()]


def seen_by_the_tower(model: torch.nn.Module, run) -> list[tuple[int, int]]:
    """Tokens that come to the attention and to the MLP of each encoder layer."""
    anatomy, seen = describe(model), {}
    with ExitStack() as undo:
        for index, layer in enumerate(anatomy.encoder_layers):
            for name in (anatomy.layer_parts.attention, anatomy.layer_parts.mlp):

                def look(module, args, kwargs, index=index, name=name):
                    hidden = args[0] if args else kwargs["hidden_states"]
                    seen[index, name] = hidden.shape[1]

                undo.callback(getattr(layer, name).register_forward_pre_hook(look, with_kwargs=True).remove)
        run()
    names = anatomy.layer_parts.attention, anatomy.layer_parts.mlp
    return [tuple(seen[index, name] for name in names) for index in range(len(anatomy.encoder_layers))]


SHOWN = [(kind, ALIKE) for kind in LLAVAS] + [
    ("onevision", [Prompt(images=0, videos=1)] * 2),
    ("clip-llama", [Prompt(images=2)] * 2),
]


@pytest.mark.parametrize(("kind", "prompts"), SHOWN)
@pytest.mark.parametrize("schedule", [il.Schedule(), SCHEDULE, il.Schedule(llm={1: 3})])
def test_every_layer_has_as_many_tokens_as_the_trace_says(
    kind: str, prompts: list[Prompt], schedule: il.Schedule
) -> None:
    model, inputs = shared_llava(kind), make_inputs(prompts, kind)
    loop = by_hand.prefill(model, inputs, RANDOM, schedule)
    logits, kept = loop()
    assert logits.shape == (len(prompts), 1, model.config.text_config.vocab_size) and logits.isfinite().all()

    with il.attach(model, RANDOM, schedule) as trace:
        cache = measure.prefill(model, inputs).past_key_values
        attached = seen_by_the_tower(model, lambda: measure.prefill(model, inputs))
    by_loop = seen_by_the_tower(model, loop)
    assert by_loop == attached
    assert [kept.layers[i][0].shape for i in range(len(cache.layers))] == [own.keys.shape for own in cache.layers]

    # And these are the steps that the trace shows.
    anatomy, text, images = describe(model), measure.text_tokens(model, inputs), trace.images_per_row[0]
    for step in trace.steps:
        if step.stage == "llm":
            markers = trace.layout().slots - trace.layout().tokens
            assert kept.layers[step.layer][0].shape[2] == text + images * (markers + step.after)
        else:
            per_cell = anatomy.patches_of_token
            expected = tuple(anatomy.cls_tokens + count * per_cell for count in (step.before, step.after))
            assert by_loop[step.layer] == expected


@pytest.mark.parametrize("kind", LLAVAS)
@pytest.mark.parametrize("schedule", [il.Schedule(), SCHEDULE])
def test_its_flops_are_those_of_the_closed_form(kind: str, schedule: il.Schedule) -> None:
    model, inputs = shared_llava(kind), make_inputs([Prompt()], kind)
    loop = by_hand.prefill(model, inputs, RANDOM, schedule)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        loop()
    with il.attach(model, RANDOM, schedule) as trace:
        measure.prefill(model, inputs)
    formula = prefill_flops(model, schedule=schedule, text_tokens=measure.text_tokens(model, inputs), trace=trace)
    assert counter.get_total_flops() == pytest.approx(formula, rel=0.01)


WHOLE = [
    ("clip-llama", ALIKE),
    ("clip-llama", [Prompt(images=2)]),
    ("siglip-qwen2", ALIKE),
    ("onevision", [Prompt(images=0, videos=1)] * 2),
]


@pytest.mark.parametrize(("kind", "prompts"), WHOLE)
def test_with_nothing_reduced_it_computes_what_the_model_computes(kind: str, prompts: list[Prompt]) -> None:
    model, inputs = shared_llava(kind), make_inputs(prompts, kind)
    logits, kept = by_hand.prefill(model, inputs, NONE, il.Schedule())()
    bare = measure.prefill(model, inputs)
    torch.testing.assert_close(logits, bare.logits)
    torch.testing.assert_close(kept.layers[3][1], bare.past_key_values.layers[3].values)


def test_it_is_refused_where_it_would_not_be_what_it_says(model) -> None:
    refused = pytest.raises(il.LabError, match="there is no loop by hand where")
    with refused:
        by_hand.prefill(shared_llava(QWENS[0]), make_inputs([Prompt()], QWENS[0]), NONE, il.Schedule())
    with refused:  # padding
        by_hand.prefill(model, make_inputs([Prompt(), Prompt(text_after=3)]), NONE, il.Schedule())
    for kind, prompts in (("smolvlm", [Prompt()]), ("next-video", [Prompt(images=0, videos=1)])):
        with refused:
            by_hand.prefill(shared_llava(kind), make_inputs(prompts, kind), NONE, il.Schedule())
    with refused:  # tiles of two pictures, of different numbers
        by_hand.prefill(shared_llava("internvl"), make_inputs([Prompt(images=2)], "internvl"), NONE, il.Schedule())
    with refused:
        by_hand.prefill(model, make_inputs([Prompt()]), il.get_strategy("downsample")(), il.Schedule(image=9))
