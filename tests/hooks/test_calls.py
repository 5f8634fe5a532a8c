"""Every call is right, whatever was called before, beside it, or in the middle of it; or it is refused."""

from __future__ import annotations

import copy
import gc
import io
import threading
import weakref

import pytest
import torch
from conftest import IMAGE_TOKEN, KINDS, QUICK_KINDS, Prompt, make_inputs, random_llava, shared_llava
from helpers.attached import GREEDY, forward, structure
from helpers.qwen import PACKED

import illava_lab as il
from illava_lab.hooks.attach import is_attached
from illava_lab.models.families import describe

REDUCTIONS = {
    "illava": il.Schedule({0: 0.7, 2: 16}, {1: 0.6, 3: 0.5}),
    "fastv": il.Schedule(llm={2: 0.5, 3: 0.4}),
    "tome": il.Schedule({0: 28, 1: 20, 2: 15}),
    "stride": il.Schedule({1: 0.5}, {2: 0.5}),
}
ALL = pytest.mark.parametrize("kind", KINDS)
EVERY = pytest.mark.parametrize("name", list(REDUCTIONS))
# Three kinds of models run every strategy, the others the one that works everywhere in a model.
PAIRS = pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind in KINDS for name in REDUCTIONS if kind in QUICK_KINDS or name == "illava"]
)


@pytest.fixture
def model(kind):
    return shared_llava(kind)


def pixels_of(inputs: dict) -> str:
    return next(name for name in inputs if name.startswith("pixel_values"))


# ---------------------------------------------------------------------------------------------- the last position
def ends_with_image(kind: str, prompts: list[Prompt]) -> dict:
    """Prompts whose last token is a visual one (for those with a newline behind the image, that)."""
    inputs = make_inputs(prompts, kind)
    ids, mask, rows = inputs["input_ids"], inputs["attention_mask"], []
    for row in ids:
        last = int((row == IMAGE_TOKEN).nonzero()[-1])
        rows.append(last + 1)
    shortest = min(len(ids[0]) - end for end in rows)
    keep = ids.shape[1] - shortest
    shifted = torch.stack(
        [torch.cat([row[:0], row.roll(len(row) - end)[-keep:]]) for row, end in zip(ids, rows, strict=True)]
    )
    hidden = torch.stack([own.roll(len(own) - end)[-keep:] for own, end in zip(mask, rows, strict=True)])
    for row, end in enumerate(rows):
        padding = keep - (end - int((mask[row] == 0).sum()))
        hidden[row, : max(0, padding)] = 0
        shifted[row, : max(0, padding)] = 0
    out = {**inputs, "input_ids": shifted, "attention_mask": hidden}
    if "mm_token_type_ids" in out:
        out["mm_token_type_ids"] = (shifted == IMAGE_TOKEN).int()
    return out


@ALL
@pytest.mark.parametrize("name", [*REDUCTIONS, "random"])
@torch.no_grad()
def test_the_last_position_of_a_prompt_survives(kind, model, name):
    """A prompt that ends with its image is answered from its last token, alone and in a batch, cached and not."""
    schedule = REDUCTIONS.get(name, il.Schedule({1: 0.3}, {1: 0.3, 2: 2}))
    for seed in range(4 if kind in QUICK_KINDS else 2):
        one = ends_with_image(kind, [Prompt(1, 4, seed=seed)])
        with il.attach(model, name, schedule) as trace:
            logits = model(**one).logits[0, -1]
            assert logits.abs().max() > 0
            tokens = model.generate(**one, max_new_tokens=3, **GREEDY)
            assert torch.equal(model.generate(**one, max_new_tokens=3, use_cache=False, **GREEDY), tokens)
            if schedule.llm and not schedule.encoder and one["input_ids"][0, -1] == IMAGE_TOKEN:
                layout = trace.layout(0)
                if not layout.marker[-1] and not layout.interpolates:
                    assert int(layout.source[-1, 0]) in trace.sources(0).anchor.tolist()
            batch = ends_with_image(kind, [Prompt(1, 4, seed=seed), Prompt(1, 4, seed=seed + 1)])
            if len(set(batch["attention_mask"].sum(1).tolist())) == 1 or kind not in PACKED:
                together = model(**batch).logits[0, -1]
                if batch["attention_mask"][0].sum() == one["attention_mask"].sum():
                    torch.testing.assert_close(together, logits, atol=1e-4, rtol=1e-4)


# ---------------------------------------------------------------------------------------------- nothing told by values
@PAIRS
@torch.no_grad()
def test_a_nan_of_the_model_stays_one(kind, model, name):
    """Overflow in the projector is no hole: what the bare model makes NaN is NaN."""
    inputs = make_inputs([Prompt()], kind)

    def overflow(module, args, out):
        out = out.clone()
        out.view(-1, out.shape[-1])[:, 0] = torch.nan
        return out

    handle = describe(model).projector.register_forward_hook(overflow)
    try:
        assert model(**inputs).logits[0, -1].isnan().all()
        with il.attach(model, name, REDUCTIONS[name]):
            assert model(**inputs).logits[0, -1].isnan().all()
    finally:
        handle.remove()


# ---------------------------------------------------------------------------------------------- threads
@pytest.mark.parametrize("kind", ["clip-llama", "onevision", "internvl", "qwen2.5-vl"])
def test_threads_do_not_share_what_a_call_learns(kind, model):
    """100 calls of four threads, two prompts each at a time, with a strategy attached: every one is right."""
    prompts = [make_inputs([Prompt(1 + seed % 2, 3 + seed % 5, seed=seed)], kind) for seed in range(10)]
    with il.attach(model, "illava", REDUCTIONS["illava"]):
        want = [model.generate(**prompt, max_new_tokens=3, **GREEDY) for prompt in prompts]
        wrong: list = []

        def work(start: int) -> None:
            for number in range(25):
                which = (start + number) % len(prompts)
                try:
                    got = model.generate(**prompts[which], max_new_tokens=3, **GREEDY)
                    if not torch.equal(got, want[which]):
                        wrong.append((start, number))
                except Exception as error:
                    wrong.append(error)

        threads = [threading.Thread(target=work, args=(3 * i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert wrong == []


# ---------------------------------------------------------------------------------------------- encoded ahead
@ALL
@EVERY
@torch.no_grad()
def test_features_bring_along_whose_they_are(kind, model, name):
    """Encoded ahead, with another picture encoded since: the logits and the sources of the first."""
    if "mm_encoder_outputs" not in model.forward.__code__.co_varnames and not hasattr(
        model, "_supports_mm_encoder_outputs"
    ):
        pytest.skip("this transformers takes no features that were encoded ahead")
    first, second = (make_inputs([Prompt(seed=seed)], kind) for seed in (6, 12))

    def encode(inputs):
        given = {
            key: value
            for key, value in inputs.items()
            if key in ("pixel_values", "pixel_attention_mask", "image_sizes", "image_grid_thw")
        }
        if kind in ("clip-llama", "siglip-qwen2", "internvl"):
            given.pop("image_sizes", None)
        return model.get_image_features(**given, return_dict=True)

    with il.attach(model, name, REDUCTIONS[name]) as trace:
        want = model(**first).logits
        anchors = trace.sources(0).anchor
        features = encode(first)
        encode(second)
        without = {key: value for key, value in first.items() if key != "pixel_values"}
        got = model(**without, mm_encoder_outputs={"image": features}).logits
        assert torch.equal(got, want)
        assert torch.equal(trace.sources(0).anchor, anchors)
    bare = encode(first)
    with il.attach(model, name, REDUCTIONS[name]), pytest.raises(il.LabError, match="encoded without the strategy"):
        model(**without, mm_encoder_outputs={"image": bare})


@ALL
@torch.no_grad()
def test_a_prompt_without_pixels_never_gets_those_of_the_call_before(kind, model):
    inputs = make_inputs([Prompt()], kind)
    without = {"input_ids": inputs["input_ids"], "attention_mask": inputs["attention_mask"]}
    with il.attach(model, "illava", REDUCTIONS["illava"]):
        model(**inputs)
        with pytest.raises(il.LabError, match="but this call brought no image"):
            model(**without)
    bare = model(**without).logits
    with il.attach(model, "none"):
        model(**inputs)
        assert torch.equal(model(**without).logits, bare)


# ---------------------------------------------------------------------------------------------- several in a row
@PAIRS
@torch.no_grad()
def test_several_prompts_in_one_row_are_refused(kind, model, name):
    inputs = make_inputs([Prompt(1, 9)], kind)
    length = inputs["input_ids"].shape[1]
    positions = torch.cat([torch.arange(length - 4), torch.arange(4)])[None]
    if kind in PACKED:
        positions = positions.expand(4, 1, -1)
    packed = {key: value for key, value in inputs.items() if key != "attention_mask"}
    with il.attach(model, name, REDUCTIONS[name]):
        for mask in ({}, {"attention_mask": inputs["attention_mask"]}):
            with pytest.raises(il.LabError, match="restart after token .* give each prompt a row"):
                model(**packed, **mask, position_ids=positions)
    bare = model(**packed, position_ids=positions).logits
    with il.attach(model, "none"):
        assert torch.equal(model(**packed, position_ids=positions).logits, bare)


# ---------------------------------------------------------------------------------------------- in the middle of a block
@ALL
@torch.no_grad()
def test_training_mode_is_refused_when_the_call_comes(kind):
    model, inputs = random_llava(kind), make_inputs([Prompt()], kind)
    with il.attach(model, "illava", REDUCTIONS["illava"]):
        for module in (model, describe(model).language_model):
            module.train()
            with pytest.raises(il.LabError, match="training mode"):
                model(**inputs)
            model.eval()
        model.gradient_checkpointing_enable()
        model.train()
        with pytest.raises(il.LabError, match="training mode"):
            model(**inputs)
        model.eval()
        assert model(**inputs).logits.isfinite().all()


@PAIRS
def test_copying_inside_the_block_is_refused(kind, model, name):
    with il.attach(model, name, REDUCTIONS[name]):
        bare_parts = [model.lm_head]
        for part in (model, model.model, describe(model).language_model, describe(model).llm_layers[2]):
            with pytest.raises(il.LabError, match="cannot be copied or pickled"):
                copy.deepcopy(part)
        copy.deepcopy(bare_parts)
        shallow = copy.copy(model)
        model.state_dict()
    inputs = make_inputs([Prompt()], kind)
    assert not is_attached(shallow)
    with il.attach(shallow, name, REDUCTIONS[name]):
        forward(shallow, inputs)
    forward(copy.deepcopy(model), inputs)


@PAIRS
def test_defaults_of_the_process_change_nothing(kind, name):
    """A notebook's first cell may set another default dtype or device: every tensor of ours names its own."""
    model, inputs = random_llava(kind), make_inputs([Prompt(2, seed=5), Prompt(1, seed=2)], kind)
    with il.attach(model, name, REDUCTIONS[name]) as trace:
        want = forward(model, inputs)
        anchors = trace.sources(1).weights
    bare = forward(model, inputs)
    try:
        torch.set_default_dtype(torch.bfloat16)
        if not torch.equal(forward(model, inputs), bare):
            pytest.skip("in this transformers the default dtype changes the bare model, too")
        with il.attach(model, name, REDUCTIONS[name]) as trace:
            assert torch.equal(forward(model, inputs), want)
            assert torch.equal(trace.sources(1).weights, anchors)
    finally:
        torch.set_default_dtype(torch.float32)


def test_pickling_inside_the_block_is_refused():
    model = random_llava("clip-llama")  # one that never ran: hooks of transformers cannot be pickled either
    with (
        il.attach(model, "illava", REDUCTIONS["illava"]),
        pytest.raises(il.LabError, match="cannot be copied or pickled"),
    ):
        torch.save(model, io.BytesIO())


def test_weights_assigned_inside_the_block_are_used():
    model, inputs = random_llava("internvl"), make_inputs([Prompt()], "internvl")
    other = {name: value * 1.5 if "lambda" in name else value.clone() for name, value in model.state_dict().items()}
    changed = random_llava("internvl")
    changed.load_state_dict(other)
    with il.attach(changed, "illava", REDUCTIONS["illava"]):
        want = forward(changed, inputs)
    with il.attach(model, "illava", REDUCTIONS["illava"]):
        assert not torch.equal(forward(model, inputs), want)
        model.load_state_dict(other, assign=True)
        assert torch.equal(forward(model, inputs), want)


# ---------------------------------------------------------------------------------------------- other ways to run
@PAIRS
def test_offloaded_weights(kind, model, name):
    accelerate = pytest.importorskip("accelerate", reason="accelerate is not installed")
    inputs = make_inputs([Prompt(1, seed=1)], kind)
    with il.attach(model, name, REDUCTIONS[name]):
        want = forward(model, inputs)
    offloaded = random_llava(kind)
    parts = [offloaded]
    if offloaded.config.vision_config.model_type == "siglip_vision_model":  # its pooling head cannot be, also bare
        parts = [offloaded.model.vision_tower.encoder, offloaded.model.language_model, offloaded.lm_head]
    if kind == "glm-4.1v":  # nor can its table of positions
        parts = [offloaded.model.visual.blocks, offloaded.model.language_model, offloaded.lm_head]
    for part in parts:
        accelerate.cpu_offload(part, execution_device="cpu")
    try:
        forward(offloaded, inputs)
    except NotImplementedError as error:
        pytest.skip(f"in this transformers the bare model cannot be offloaded: {error}")
    with il.attach(offloaded, name, REDUCTIONS[name]):
        torch.testing.assert_close(forward(offloaded, inputs), want)


@ALL
@torch.no_grad()
def test_none_refuses_nothing_that_the_bare_model_takes(kind, model):
    inputs = make_inputs([Prompt()], kind)
    length = inputs["input_ids"].shape[1]
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    stray = {**inputs, "input_ids": inputs["input_ids"].clone()}
    stray["input_ids"][0, -2] = 63  # the video placeholder, of which this call has none
    calls = {
        "static": lambda: model.generate(**inputs, max_new_tokens=2, cache_implementation="static", **GREEDY),
        "chunks": lambda: model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=8, **GREEDY),
        "4D mask": lambda: model(**{**inputs, "attention_mask": causal}).logits,
        "stray word": lambda: model(**stray).logits,
        "tuple": lambda: model(**inputs, return_dict=False)[0],
        "training": lambda: model.train()(**inputs).logits,
    }
    for name, call in calls.items():
        try:
            want = call()
        except Exception as error:
            want = error
        model.eval()
        with il.attach(model, "none"):
            try:
                got = call()
            except Exception as error:
                got = error
        model.eval()
        if isinstance(want, Exception):
            assert type(got) is type(want) and not isinstance(got, il.LabError), (name, want, got)
        else:
            assert torch.equal(got, want), name


@PAIRS
@torch.no_grad()
def test_what_cannot_run_reduced_is_refused(kind, model, name):
    inputs = make_inputs([Prompt()], kind)
    length = inputs["input_ids"].shape[1]
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    with il.attach(model, name, REDUCTIONS[name]):
        with pytest.raises(il.LabError, match="4D attention masks"):
            model(**{**inputs, "attention_mask": causal})
        with pytest.raises(il.LabError, match="paged caches"):
            model.generate(**inputs, max_new_tokens=2, cache_implementation="paged", **GREEDY)
        for _ in range(2):  # the first leaves nothing on the model at which the second would break
            with pytest.raises(il.LabError, match="static caches"):
                model.generate(**inputs, max_new_tokens=2, cache_implementation="static", **GREEDY)
        with pytest.raises(il.LabError, match="prefill_chunk_size|encoded without"):
            model.generate(**inputs, max_new_tokens=2, prefill_chunk_size=8, **GREEDY)
        with pytest.raises(il.LabError, match="cu_seq_lens_q"):
            model(**inputs, cu_seq_lens_q=torch.tensor([0, length]))


@pytest.mark.parametrize("kind", ["clip-llama", "onevision", "qwen2-vl"])
@EVERY
def test_flex_attention_is_right_or_refused(kind, name):
    model, inputs = random_llava(kind), make_inputs([Prompt(1, seed=1)], kind)
    with il.attach(model, name, REDUCTIONS[name]):
        want = forward(model, inputs)
    try:
        model.model.language_model.set_attn_implementation("flex_attention")
        forward(model, inputs)
    except Exception as error:
        pytest.skip(f"flex attention does not run bare: {type(error).__name__}")
    with il.attach(model, name, REDUCTIONS[name]):
        torch.testing.assert_close(forward(model, inputs), want, atol=1e-3, rtol=1e-3)


# ---------------------------------------------------------------------------------------------- wrappers
@PAIRS
def test_the_inner_model_and_a_peft_wrapper_will_do(kind, model, name):
    peft = pytest.importorskip("peft", reason="peft is not installed")
    inputs = make_inputs([Prompt(1, seed=1)], kind)
    with il.attach(model, name, REDUCTIONS[name]):
        want = forward(model, inputs)
        for again in (model, model.model):
            with pytest.raises(il.LabError, match="already has a strategy"), il.attach(again, "none"):
                pass
    bare = structure(model)
    with il.attach(model.model, name, REDUCTIONS[name]):
        assert torch.equal(forward(model, inputs), want)
    assert structure(model) == bare
    wrapped = peft.get_peft_model(random_llava(kind), peft.LoraConfig(target_modules=["q_proj", "v_proj"])).eval()
    with il.attach(wrapped, name, REDUCTIONS[name]):
        torch.testing.assert_close(forward(wrapped, inputs), want)


def test_a_compiled_model_is_refused():
    model = random_llava("clip-llama")
    with pytest.raises(il.LabError, match="compiled"), il.attach(torch.compile(model, backend="eager"), "none"):
        pass
    model.compile(backend="eager")
    with pytest.raises(il.LabError, match="compiled"), il.attach(model, "none"):
        pass


# ---------------------------------------------------------------------------------------------- the end of a call
@PAIRS
@torch.no_grad()
def test_a_call_that_ended_holds_on_to_nothing(kind, model, name):
    """The trace keeps maps and layouts; the states that went through the model are gone."""
    inputs = make_inputs([Prompt()], kind)
    alive: list = []

    def note(module, args, kwargs) -> None:
        alive.append(weakref.ref(kwargs["inputs_embeds"]))

    handle = describe(model).language_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        with il.attach(model, name, REDUCTIONS[name]) as trace:
            out = model(**inputs, use_cache=False)
            del out
            gc.collect()
            assert alive[0]() is None and trace.steps
    finally:
        handle.remove()
