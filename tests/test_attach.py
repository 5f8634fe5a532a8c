"""What must be true of every attachment: identity, cache, batch, restoration, mass, positions, refusals."""

from __future__ import annotations

import copy

import pytest
import reference
import torch
import transformers
from conftest import IMAGE_TOKEN, PATCHES, Prompt, make_inputs, random_llava
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packaging.version import Version

import illava_lab as il

# (strategy, schedule): both stages, several layers, counts and fractions
REDUCTIONS = {
    "illava": il.Schedule({0: 0.7, 2: 16}, {1: 0.6, 3: 0.5}),
    "tome": il.Schedule({0: 28, 1: 20, 2: 15}),
    "fastv": il.Schedule(llm={2: 0.5, 3: 0.4}),
    "random": il.Schedule({1: 0.5}, {2: 0.5}),
}
BATCHES = {
    "one": [Prompt()],
    "left padding": [Prompt(text_after=3, seed=1), Prompt(text_after=9, seed=2)],
    "several images": [Prompt(2, 4, seed=3), Prompt(0, 6, seed=4), Prompt(1, 9, seed=5)],
}
GREEDY = dict(do_sample=False, suppress_tokens=[IMAGE_TOKEN], eos_token_id=None, pad_token_id=0)


@pytest.fixture(params=list(BATCHES))
def inputs(request) -> dict:
    return make_inputs(BATCHES[request.param])


@pytest.fixture(params=list(REDUCTIONS))
def reduction(request) -> tuple[str, il.Schedule]:
    return request.param, REDUCTIONS[request.param]


def keep_everything(schedule: il.Schedule) -> il.Schedule:
    return il.Schedule(dict.fromkeys(schedule.encoder, 1.0), dict.fromkeys(schedule.llm, 1.0))


@torch.no_grad()
def forward(model, inputs) -> torch.Tensor:
    return model(**inputs).logits[inputs["attention_mask"].bool()]


# ---------------------------------------------------------------------------------------------- identity
def test_keeping_everything_is_the_bare_model(model, inputs, reduction):
    name, schedule = reduction
    logits, tokens = forward(model, inputs), model.generate(**inputs, max_new_tokens=4, **GREEDY)
    with il.attach(model, name, keep_everything(schedule)):
        assert torch.equal(forward(model, inputs), logits)
        assert torch.equal(model.generate(**inputs, max_new_tokens=4, **GREEDY), tokens)


def test_strategy_none_leaves_the_model_untouched(model, inputs):
    logits = forward(model, inputs)  # also lets transformers install its own lazy hooks
    bare = structure(model)
    with il.attach(model, "none") as trace:
        added = structure(model) - bare
        watched = ("_illava_attached", "model.get_image_features", "_forward_pre_hooks:")
        assert all(any(known in name for known in watched) for name in added), "a mark, and hooks that only look"
        assert torch.equal(forward(model, inputs), logits)
    assert trace.steps == []
    assert torch.equal(trace.sources(0).weights, torch.eye(PATCHES).double())


# ---------------------------------------------------------------------------------------------- against the reference
@pytest.mark.parametrize("positions", ["original", "packed"])
@pytest.mark.parametrize(
    ("rule", "encoder", "llm"),
    [
        ("illava", {0: 28, 2: 20}, {1: 14, 3: 6}),
        ("tome", {0: 25, 1: 18, 2: 12}, {}),
        ("fastv", {}, {2: 18, 3: 7}),
    ],
)
def test_generation_with_cache_equals_recomputation_by_hand(model, rule, encoder, llm, positions):
    """Every step of cached generation equals a forward pass without hooks or cache, by an independent reference."""
    inputs = make_inputs([Prompt(seed=11)])
    prompt = inputs["input_ids"].shape[1]
    with il.attach(model, rule, il.Schedule(encoder, llm), positions=positions):
        out = model.generate(**inputs, max_new_tokens=4, return_dict_in_generate=True, output_logits=True, **GREEDY)
    for step, got in enumerate(out.logits):
        ids = out.sequences[0, : prompt + step].tolist()
        want = reference.logits(model, ids, inputs["pixel_values"], prompt=prompt, image_token=IMAGE_TOKEN,
                                encoder=encoder, llm=llm, rule=rule, packed=positions == "packed")  # fmt: skip
        torch.testing.assert_close(got[0], want, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- cache
def test_each_cache_layer_is_as_long_as_what_the_layer_saw(model):
    inputs = make_inputs([Prompt(seed=1)])
    text = inputs["input_ids"].shape[1] - PATCHES
    with il.attach(model, "illava", il.Schedule({1: 20}, {1: 12, 3: 5})), torch.no_grad():
        cache = model(**inputs).past_key_values
        assert [cache.layers[i].keys.shape[2] for i in range(4)] == [text + n for n in (20, 12, 12, 5)]
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("search", [dict(), dict(num_beams=3), dict(num_beams=2, num_return_sequences=2)])
def test_generation_is_the_same_with_and_without_cache(model, inputs, search):
    """Holds through the public API for a strategy whose choice does not depend on the growing text."""

    def cached_and_plain():
        return [model.generate(**inputs, max_new_tokens=5, use_cache=cache, **GREEDY, **search) for cache in (True, False)]

    several = (inputs["input_ids"] == IMAGE_TOKEN).sum(1).max() > PATCHES
    if search and several and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("before transformers 5.23, beam search mixes up the images of a prompt with several, also bare")
    with il.attach(model, "random", REDUCTIONS["random"]):
        assert torch.equal(*cached_and_plain())


def test_a_cache_cannot_outlive_its_attachment(model):
    inputs = make_inputs([Prompt()])
    with il.attach(model, "fastv", REDUCTIONS["fastv"]), torch.no_grad():
        cache = model(**inputs).past_key_values
        copy.deepcopy(cache).get_seq_length()
    with pytest.raises(il.LabError, match="no longer attached"):
        model(input_ids=inputs["input_ids"][:, -1:], past_key_values=cache)


# ---------------------------------------------------------------------------------------------- batch
@given(
    prompts=st.lists(
        st.builds(Prompt, images=st.integers(0, 2), text_after=st.integers(1, 8), seed=st.integers(0, 99)), min_size=2, max_size=3
    ),
    name=st.sampled_from(list(REDUCTIONS)),
)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_equals_its_prompts_alone(model, prompts, name):
    batch = make_inputs(prompts)
    with il.attach(model, name, REDUCTIONS[name]), torch.no_grad():
        together = model(**batch).logits[batch["attention_mask"].bool()]
        alone = torch.cat([model(**make_inputs([prompt])).logits[0] for prompt in prompts])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- restoration
def structure(model) -> set[str]:
    """Everything that hooks could leave behind: attributes of instances, hooks, forwards, configurations."""
    out = set()
    for name, module in model.named_modules():
        out |= {f"{name}.{key}".lstrip(".") for key in vars(module)}
        for kind in ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_always_called", "_forward_hooks_with_kwargs"):
            out |= {f"{name}:{kind}:{id(hook)}" for hook in getattr(module, kind).values()}
        out |= {f"{name}.forward:{id(module.__dict__.get('forward'))}", f"{name}.config:{id(getattr(module, 'config', None))}"}
    return out


class Breaks(il.Strategy):
    """Fails at the second reduction that it is asked for."""

    name = "breaks"

    def map(self, tokens, keep):
        if tokens.layer == 2:
            raise RuntimeError("deliberate")
        return il.TokenMap.keep(torch.arange(keep).expand(tokens.batch, -1), tokens.count)


@pytest.mark.parametrize("schedule", [il.Schedule({0: 0.5, 2: 0.5}), il.Schedule(llm={1: 0.5, 2: 0.5})])
def test_the_model_is_restored_also_after_an_exception_inside(model, inputs, schedule):
    logits = forward(model, inputs)  # also lets transformers install its own lazy hooks
    bare = structure(model)
    with pytest.raises(RuntimeError, match="deliberate"), il.attach(model, Breaks(), schedule):
        forward(model, inputs)
    assert structure(model) == bare
    assert torch.equal(forward(model, inputs), logits)


def test_after_an_exception_inside_the_next_call_is_right(model, inputs):
    schedule = REDUCTIONS["illava"]
    with il.attach(model, "illava", schedule):
        want = forward(model, inputs)
        with pytest.raises(RuntimeError, match="channels"):
            model(**{**inputs, "pixel_values": inputs["pixel_values"][:, :2]})
        assert torch.equal(forward(model, inputs), want)


# ---------------------------------------------------------------------------------------------- mass and provenance
@given(
    name=st.sampled_from(["illava", "tome", "fastv", "random"]),
    first=st.integers(24, 36), second=st.integers(18, 24), llm=st.integers(1, 10), ramp=st.sampled_from(["reference", "size"]),
)  # fmt: skip
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_patch_is_somewhere_exactly_once_or_dropped(model, name, first, second, llm, ramp):
    strategy = il.get_strategy("illava")(ramp=ramp) if name == "illava" else il.get_strategy(name)()
    encoder = {0: first, 1: second} if "encoder" in strategy.stages else {}
    schedule = il.Schedule(encoder, {2: llm} if "llm" in strategy.stages else {})
    with il.attach(model, strategy, schedule) as trace:
        forward(model, make_inputs([Prompt(2, 4, seed=3)]))
    for image in (0, 1):
        for steps in range(len(trace.steps) + 1):
            sources = trace.sources(image, steps)
            torch.testing.assert_close(sources.weights.sum(1), torch.ones(len(sources.weights)).double())
            reached = (sources.weights != 0).sum(0)
            assert reached.max() == 1
            if name in ("illava", "tome") and steps <= len(encoder):
                assert reached.min() == 1, "a merging method drops no patch"
            assert (sources.weights.gather(1, sources.anchor[:, None]) > 0).all(), "a survivor contains its anchor"


def test_the_trace_tells_what_the_model_did(model):
    with il.attach(model, "illava", il.Schedule({0: 30, 1: 20}, {2: 8})) as trace:
        forward(model, make_inputs([Prompt()]))
    assert [(s.stage, s.layer, s.before, s.after) for s in trace.steps] == [
        ("encoder", 0, 36, 30), ("encoder", 1, 30, 20), ("llm", 2, 20, 8),
    ]  # fmt: skip
    assert len(trace.sources(0).anchor) == 8
    with pytest.raises(il.LabError, match="image must be between 0 and 0"):
        trace.sources(1)


# ---------------------------------------------------------------------------------------------- kernels
def test_layers_that_do_not_reduce_keep_their_attention(model):
    """The encoder layers and decoder layers that are not read keep the fused kernel; the model says so itself."""
    schedule = il.Schedule({1: 0.5}, {2: 0.5})
    with il.attach(model, "illava", schedule):
        names = {
            name: module.config._attn_implementation
            for name, module in model.named_modules()
            if name.endswith("self_attn")
        }
    tapped = {name for name, kind in names.items() if kind != "sdpa"}
    assert {name.split(".")[-2] for name in tapped} == {"1"}
    assert len(tapped) == 2, "one encoder layer, and the decoder layer before the reducing one"


def test_eager_and_fused_attention_agree():
    inputs = make_inputs(BATCHES["several images"])
    out = []
    for attention in ("eager", "sdpa"):
        model = random_llava("clip-llama", attention)
        with il.attach(model, "illava", REDUCTIONS["illava"]):
            out.append(forward(model, inputs))
    torch.testing.assert_close(*out, atol=1e-4, rtol=1e-4)


def test_bfloat16_runs(model):
    half = copy.deepcopy(model).bfloat16()
    inputs = make_inputs([Prompt()])
    inputs["pixel_values"] = inputs["pixel_values"].bfloat16()
    for name, schedule in REDUCTIONS.items():
        with il.attach(half, name, schedule):
            assert forward(half, inputs).isfinite().all()


# ---------------------------------------------------------------------------------------------- refusals
class WrongCount(il.Strategy):
    name = "wrong-count"

    def map(self, tokens, keep):
        return il.TokenMap.keep(torch.zeros(tokens.batch, keep + 1, dtype=torch.long), tokens.count)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("ilava", il.Schedule({0: 0.5})), "did you mean illava"),
        (("illava", il.Schedule({5: 0.5})), "encoder layer 5 is out of range"),
        (("illava", il.Schedule(llm={0: 0.5})), "llm layer 0 is out of range; this model allows 1 to 3"),
        (("illava", il.Schedule(llm={4: 0.5})), "llm layer 4 is out of range"),
        (("illava", il.Schedule({0: 99})), "cannot keep 99 of 36"),
        (("illava", il.Schedule({0: 20}, {1: 21})), "llm layer 1: cannot keep 21 of 20"),
        (("fastv", il.Schedule({0: 0.5})), "serves llm; the schedule asks for the encoder stage"),
        (("illava", {0: 0.5}), "schedule must be a Schedule"),
    ],
)
def test_bad_requests_are_refused_before_anything_changes(model, arguments, says):
    bare = structure(model)
    with pytest.raises(il.LabError, match=says), il.attach(model, *arguments):
        pytest.fail("attached all the same")
    assert structure(model) == bare


def test_wrong_use_is_refused_clearly(model):
    inputs = make_inputs([Prompt()])
    schedule = REDUCTIONS["random"]
    with pytest.raises(il.LabError, match="must be one of 'original', 'packed'"), il.attach(model, "random", schedule, positions="x"):
        pass
    with il.attach(model, "random", schedule):
        with pytest.raises(il.LabError, match="already has a strategy"), il.attach(model, "none"):
            pass
        with pytest.raises(il.LabError, match="static caches"):
            model.generate(**inputs, max_new_tokens=2, cache_implementation="static", **GREEDY)
    model.train()
    try:
        with pytest.raises(il.LabError, match="training mode"), il.attach(model, "random", schedule):
            pass
    finally:
        model.eval()
    with il.attach(model, WrongCount(), il.Schedule({0: 18})), pytest.raises(il.LabError, match="'wrong-count' .* was asked to keep"):
        forward(model, inputs)
