"""What must be true of every attachment on every family: identity, cache, batch, restoration, mass, positions, refusals."""

from __future__ import annotations

import copy

import pytest
import torch
import transformers
from conftest import IMAGE_TOKEN, KINDS, PATCHES, Prompt, make_inputs, picture, random_llava, shared_llava
from helpers import reference, reference_qwen
from helpers.attached import GREEDY, forward, has_video, keep_everything, lengths, structure, told_apart
from helpers.qwen import PACKED
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from packaging.version import Version

import illava_lab as il
from illava_lab.method.registry import make_strategy

VISIONZIP = il.get_strategy("visionzip")(score="received", merge="mean")  # both kinds of towers have that


# name -> (strategy, schedule): both stages, several layers, counts and fractions
REDUCTIONS = {
    "illava": ("illava", il.Schedule({0: 0.7, 2: 16}, {1: 0.6, 3: 0.5})),
    "tome": ("tome", il.Schedule({0: 28, 1: 20, 2: 15})),
    "fastv": ("fastv", il.Schedule(llm={2: 0.5, 3: 0.4})),
    "visionzip": (VISIONZIP, il.Schedule({2: 14})),
    "random": ("random", il.Schedule({1: 0.5}, {2: 0.5})),
}


IMAGES = {
    "one": [Prompt()],
    "left padding": [Prompt(text_after=3, seed=1), Prompt(text_after=9, seed=2)],
    "several images": [Prompt(2, 4, seed=3), Prompt(0, 6, seed=4), Prompt(1, 9, seed=5)],
}


VIDEOS = {
    "video": [Prompt(0, videos=1)],
    "videos and images": [Prompt(1, 4, seed=3, videos=1), Prompt(2, 6, seed=4), Prompt(0, 9, seed=5, videos=2)],
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "inputs" in metafunc.fixturenames:
        runs = [(kind, batch) for kind in KINDS for batch in [*IMAGES, *(VIDEOS if has_video(kind) else [])]]
        metafunc.parametrize(("kind", "batch"), runs, ids=lambda value: value)
    elif "kind" in metafunc.fixturenames:
        metafunc.parametrize("kind", KINDS)


@pytest.fixture
def model(kind):
    return shared_llava(kind)


@pytest.fixture
def inputs(kind, batch) -> dict:
    return make_inputs({**IMAGES, **VIDEOS}[batch], kind)


@pytest.fixture(params=list(REDUCTIONS))
def reduction(request) -> tuple:
    return REDUCTIONS[request.param]


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
        watched = ("_illava_attached", "_features", "model.apply_pooling", "vision_resampler.forward", "model.forward")
        assert all(any(known in name for known in watched) for name in added), "a mark, and hooks that only look"
        assert torch.equal(forward(model, inputs), logits)
    assert trace.steps == []
    first = trace.sources(0)
    weights, cells = first.weights, trace.layout(0).tokens
    assert weights.shape == (cells, first.crops * first.grid[0] * first.grid[1])
    if not (weights.count_nonzero(1) > 1).any():  # nothing interpolated
        assert torch.equal(weights.sort(1).values[:, -1], torch.ones(cells).double())


# ---------------------------------------------------------------------------------------------- against the reference
CONTENTS = {
    "image": Prompt(seed=11),
    "two images": Prompt(2, seed=3),
    "wide image": Prompt(seed=3),
    "video": Prompt(0, seed=7, videos=1),
    "image and video": Prompt(1, seed=9, videos=1),
}


@pytest.mark.parametrize("positions", ["original", "packed"])
@pytest.mark.parametrize(
    ("rule", "encoder", "llm"),
    [
        ("illava", {0: 28, 2: 20}, {1: 0.7, 3: 6}),
        ("tome", {0: 25, 1: 18, 2: 12}, {}),
        ("fastv", {}, {2: 0.5, 3: 7}),
    ],
)
@pytest.mark.parametrize("content", list(CONTENTS))
def test_generation_with_cache_equals_recomputation_by_hand(kind, model, content, rule, encoder, llm, positions):
    """Every step of cached generation equals a forward pass without hooks or cache, by an independent reference."""
    if (CONTENTS[content].videos and not has_video(kind)) or (kind in PACKED and positions == "packed"):
        return
    inputs = make_inputs([CONTENTS[content]], kind)
    prompt = inputs["input_ids"].shape[1]
    with il.attach(model, rule, il.Schedule(encoder, llm), positions=positions):
        out = model.generate(**inputs, max_new_tokens=3, return_dict_in_generate=True, output_logits=True, **GREEDY)
    how = dict(prompt=prompt, encoder=encoder, llm=llm, rule=rule)
    for step, got in enumerate(out.logits):
        ids = out.sequences[0, : prompt + step].tolist()
        if kind in PACKED:
            want = reference_qwen.logits(model, ids, inputs, **how)
        else:
            visuals = reference.visuals(inputs, lambda *size: picture(kind, *size), model.config)
            want = reference.logits(model, ids, visuals, image_token=IMAGE_TOKEN, packed=positions == "packed", **how)
        torch.testing.assert_close(got[0], want, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- cache
def test_each_cache_layer_is_as_long_as_what_the_layer_saw(kind, model):
    inputs = make_inputs([Prompt(2, seed=1)], kind)
    with il.attach(model, "illava", il.Schedule({1: 20}, {1: 12, 3: 5})) as trace, torch.no_grad():
        cache = model(**inputs).past_key_values
        visual = trace.layout(0).tokens + trace.layout(1).tokens
        others = inputs["input_ids"].shape[1] - visual  # text, and newlines
        entering = sum(step.before * len(step.rows) for step in trace.steps if (step.stage, step.layer) == ("llm", 1))
        assert lengths(cache) == [others + n for n in (entering, 24, 24, 10)]
        assert cache.get_seq_length() == inputs["input_ids"].shape[1]


@pytest.mark.parametrize("search", [dict(), dict(num_beams=3), dict(num_beams=2, num_return_sequences=2)])
def test_generation_is_the_same_with_and_without_cache(kind, model, inputs, search):
    """Holds through the public API for a strategy whose choice does not depend on the growing text."""

    def cached_and_plain():
        return [
            model.generate(**inputs, max_new_tokens=5, use_cache=cache, **GREEDY, **search) for cache in (True, False)
        ]

    several = len(inputs.get("pixel_values", [])) != 1
    if search and several and kind not in PACKED and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("before transformers 5.23, beam search mixes up the images of a prompt with several, also bare")
    if search and kind == "glm-4.1v" and Version(transformers.__version__) < Version("5.23"):
        pytest.skip("before transformers 5.23, beam search loses the images of GLM-4.1V, also bare")
    if search and kind == "glm-4.1v" and len(inputs["image_grid_thw"]) > 1:
        pytest.skip("up to transformers 5.24, beam search mixes up the images of GLM-4.1V, also bare")
    with il.attach(model, *REDUCTIONS["random"]):
        assert torch.equal(*cached_and_plain())


def test_a_cache_cannot_outlive_its_attachment(kind, model):
    inputs = make_inputs([Prompt()], kind)
    with il.attach(model, *REDUCTIONS["fastv"]), torch.no_grad():
        cache = model(**inputs).past_key_values
        copy.deepcopy(cache).get_seq_length()
    with pytest.raises(il.LabError, match="no longer attached"):
        model(input_ids=inputs["input_ids"][:, -1:], past_key_values=cache)


# ---------------------------------------------------------------------------------------------- batch
def prompts(kind: str) -> st.SearchStrategy[list[Prompt]]:
    videos = st.integers(0, 1) if has_video(kind) else st.just(0)
    one = st.builds(
        Prompt, images=st.integers(0, 2), text_after=st.integers(1, 8), seed=st.integers(0, 99), videos=videos
    )
    return st.lists(one, min_size=2, max_size=3)


@given(data=st.data(), name=st.sampled_from([*REDUCTIONS, "sparsevlm"]))
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_batch_equals_its_prompts_alone(kind, model, data, name):
    """Also for a strategy that reads all text after the image, of which every prompt has as much as it likes."""
    several = data.draw(prompts(kind))
    reduction = REDUCTIONS.get(name, (name, il.Schedule(llm={1: 0.7, 2: 0.6})))
    batch = make_inputs(several, kind)
    with il.attach(model, *reduction) as trace, torch.no_grad():
        together = model(**batch).logits[batch["attention_mask"].bool()]
        assume(told_apart(trace))
        alone = torch.cat([model(**make_inputs([prompt], kind)).logits[0] for prompt in several])
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=1e-4)


def test_a_prompt_without_images_does_not_hold_the_batch_back(kind, model):
    """Its padding goes as the tokens of the other go: layers run on the longest prompt, not on what padding fills."""
    held = []
    for prompts_ in ([Prompt(2)], [Prompt(2), Prompt(0, 3)]):
        with il.attach(model, *REDUCTIONS["illava"]), torch.no_grad():
            cache = model(**make_inputs(prompts_, kind), use_cache=True).past_key_values
        held.append(lengths(cache))
    assert held[0] == held[1] and held[0][0] > held[0][-1]


@pytest.mark.parametrize("name", list(REDUCTIONS))
def test_an_image_that_the_mask_hides_stays_hidden(name):
    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt(2)])
    visual = inputs["input_ids"][0] == IMAGE_TOKEN
    inputs["attention_mask"][0, visual.nonzero()[PATCHES:, 0]] = 0
    other = {**inputs, "pixel_values": torch.cat([inputs["pixel_values"][:1], inputs["pixel_values"][1:].flip(3)])}
    with il.attach(model, *REDUCTIONS[name]), torch.no_grad():
        seen, unseen = (model(**given).logits[0, -1] for given in (inputs, other))
        assert torch.equal(seen, unseen) and seen.isfinite().all()
        shown = {**other, "attention_mask": torch.ones_like(inputs["attention_mask"])}
        assert not torch.allclose(model(**shown).logits[0, -1], seen, atol=1e-4)


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
    with il.attach(model, *REDUCTIONS["illava"]):
        want = forward(model, inputs)
        pixels = next(name for name in inputs if name.startswith("pixel_values"))
        with pytest.raises((RuntimeError, ValueError), match="match|invalid"):
            model(**{**inputs, pixels: inputs[pixels][..., :-1]})
        assert torch.equal(forward(model, inputs), want)


# ---------------------------------------------------------------------------------------------- mass and provenance
@given(
    name=st.sampled_from(list(REDUCTIONS)), seed=st.integers(0, 5), images=st.integers(0, 2),
    first=st.integers(24, 36), second=st.integers(18, 24), llm=st.floats(0.05, 1.0), ramp=st.sampled_from(["reference", "size"]),
)  # fmt: skip
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_patch_is_somewhere_exactly_once_or_dropped(kind, model, name, seed, images, first, second, llm, ramp):
    """Where the model interpolates, a patch is in as many tokens as it feeds; where it cuts off padding, nowhere."""
    videos = int(images == 0)
    if videos and not has_video(kind):
        images, videos = 1, 0
    strategy = il.get_strategy("illava")(ramp=ramp) if name == "illava" else make_strategy(REDUCTIONS[name][0])
    encoder = {0: first, 1: second} if "encoder" in strategy.stages else {}
    schedule = il.Schedule(encoder, {2: llm} if "llm" in strategy.stages else {})
    with il.attach(model, strategy, schedule) as trace:
        forward(model, make_inputs([Prompt(images, 4, seed=seed, videos=videos)], kind))
    for image in range(images + videos):
        layout = trace.layout(image)
        interpolated = layout.source.shape[1] > 1
        in_prompt = (
            torch.zeros(layout.boxes.shape[0]).index_add(0, layout.source.flatten(), layout.weight.flatten()) > 0
        )
        for steps in range(len(trace.steps) + 1):
            sources = trace.sources(image, steps)
            torch.testing.assert_close(sources.weights.sum(1), torch.ones(len(sources.weights)).double())
            reached = (sources.weights != 0).sum(0)
            assert interpolated or reached.max() == 1
            if (
                name in ("illava", "tome", "visionzip")
                and steps <= len(encoder)
                and not interpolated
                and in_prompt.all()
            ):
                assert reached.min() == 1, "a merging method drops no patch"
            assert (sources.weights.gather(1, sources.anchor[:, None]) > 0).all(), "a survivor contains its anchor"


def test_the_trace_tells_what_the_model_did():
    model = shared_llava("clip-llama")
    with il.attach(model, "illava", il.Schedule({0: 30, 1: 20}, {2: 8})) as trace:
        forward(model, make_inputs([Prompt()]))
    assert [(s.stage, s.layer, s.before, s.after) for s in trace.steps] == [
        ("encoder", 0, 36, 30), ("encoder", 1, 30, 20), ("llm", 2, 20, 8),
    ]  # fmt: skip
    assert len(trace.sources(0).anchor) == 8
    with pytest.raises(il.LabError, match="image must be between 0 and 0"):
        trace.sources(1)


# ---------------------------------------------------------------------------------------------- kernels
def test_layers_that_do_not_reduce_keep_their_attention(kind, model):
    """The encoder layers and decoder layers that are not read keep the fused kernel; the model says so itself."""
    schedule = il.Schedule({1: 0.5}, {2: 0.5})
    with il.attach(model, "illava", schedule):
        names = {
            name: module.config
            for name, module in model.named_modules()
            if name.endswith(("attn", ".attention")) and hasattr(module, "config")
        }
        tapped = {name: config for name, config in names.items() if config._attn_implementation != "sdpa"}
        # One encoder layer, the decoder layer before the reducing one, and that one, at which a strategy may look ahead.
        assert sorted(name.split(".")[-2] for name in tapped) == ["1", "1", "2"]
        assert all(config._tapped_config._attn_implementation == "sdpa" for config in tapped.values())


def test_eager_and_fused_attention_agree(kind):
    inputs = make_inputs(IMAGES["several images"], kind)
    out = []
    for attention in ("eager", "sdpa"):
        model = random_llava(kind, attention)
        with il.attach(model, *REDUCTIONS["illava"]):
            out.append(forward(model, inputs))
    torch.testing.assert_close(*out, atol=1e-4, rtol=1e-4)


def test_bfloat16_runs(kind, model):
    half = copy.deepcopy(model).bfloat16()
    inputs = make_inputs([Prompt(1, videos=int(has_video(kind)))], kind)
    inputs |= {name: value.bfloat16() for name, value in inputs.items() if name.startswith("pixel_values")}
    for reduction in REDUCTIONS.values():
        with il.attach(half, *reduction):
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
def test_bad_requests_are_refused_before_anything_changes(arguments, says):
    model = shared_llava("clip-llama")
    bare = structure(model)
    with pytest.raises(il.LabError, match=says), il.attach(model, *arguments):
        pytest.fail("attached all the same")
    assert structure(model) == bare


def test_wrong_use_is_refused_clearly(kind, model):
    inputs = make_inputs([Prompt()], kind)
    schedule = REDUCTIONS["random"][1]
    with (
        pytest.raises(il.LabError, match="must be one of 'original', 'packed'"),
        il.attach(model, "random", schedule, positions="x"),
    ):
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
    with (
        il.attach(model, WrongCount(), il.Schedule({0: 18})),
        pytest.raises(il.LabError, match="'wrong-count' .* was asked to keep"),
    ):
        forward(model, inputs)


def test_a_prompt_without_its_images_is_told_so(kind, model):
    inputs = make_inputs([Prompt()], kind)
    with il.attach(model, *REDUCTIONS["random"]), pytest.raises(il.LabError, match="but this call brought no image"):
        model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"])


def test_embeddings_in_the_place_of_a_prompt_are_refused_whatever_else_was_passed(kind, model):
    inputs = make_inputs([Prompt()], kind)
    embeddings = model.get_input_embeddings()(inputs["input_ids"])
    with il.attach(model, *REDUCTIONS["random"]), pytest.raises(il.LabError, match="pass input_ids with pixel_values"):
        model.generate(
            input_ids=inputs["input_ids"], inputs_embeds=embeddings, attention_mask=inputs["attention_mask"],
            max_new_tokens=2, **GREEDY,
        )  # fmt: skip
