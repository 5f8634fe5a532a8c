"""What captured graphs keep allotted, counted on the tensors themselves."""

from __future__ import annotations

import pytest
import torch
from conftest import Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY
from helpers.rehearsal import rehearsing, tensors_in
from hooks.test_graphs import generate, plainly

import illava_lab as il
from illava_lab.hooks.compat import vision_utils
from illava_lab.hooks.graphs import parts, store
from illava_lab.hooks.llm.slots import ROOM, STEP
from illava_lab.method.brought import noting

SCHEDULE = il.Schedule({0: 0.7}, {2: 0.5})


def storages(value) -> dict[int, int]:
    """Bytes of all memory that something refers to, by its address."""
    return {x.untyped_storage().data_ptr(): x.untyped_storage().nbytes() for x in tensors_in(value)}


def kept_by(graphs) -> dict[int, int]:
    """The same of all that a store holds, but for the model's weights."""
    return storages({name: value for name, value in vars(graphs).items() if name != "state"})


def cache_of(model, inputs, **more):
    return model(**inputs, use_cache=True, **more).past_key_values


def tensors_of(cache) -> list[torch.Tensor]:
    return [x for layer in cache.layers for x in (layer.keys, layer.values)]


def prefill_graph(graphs):
    (found,) = [one for key, one in graphs._kept.items() if "prefill" in str(key)[:20]]
    return found


@pytest.mark.parametrize("kind", ["clip-llama", "onevision"])
@torch.no_grad()
def test_what_stays_allotted_is_one_cache_one_memory_for_inputs_and_little_else(kind):
    """Read from shapes: what is kept by the formula in the docs, with the cache that was handed out."""
    model, inputs = shared_llava(kind), make_inputs([Prompt(1, 8, seed=1)] * 2, kind)
    with rehearsing(), il.attach(model, "illava", SCHEDULE, graphs=True):
        for _ in range(3):
            cache = cache_of(model, inputs, logits_to_keep=1)
            mask = torch.cat([inputs["attention_mask"], inputs["attention_mask"][:, :1]], 1)
            for _ in range(3):
                model(input_ids=inputs["input_ids"][:, -1:], attention_mask=mask, past_key_values=cache)
                mask = torch.cat([mask, mask[:, :1]], 1)
        (graphs,) = store._stores.values()
        kept, held, text = kept_by(graphs), graphs.held, model.config.get_text_config()
        batch, slots = inputs["input_ids"].shape
        filler, width = -slots % STEP, text.hidden_size // text.num_attention_heads
        lengths = [-(-(keys.shape[2] - 3 + filler) // STEP) * STEP for keys in tensors_of(cache)]
        rows = sum(length + ROOM for length in lengths)
        masks = batch * (lengths[0] + lengths[-1])  # which tokens are seen, once for each part of the layers
        assert held.caches == batch * text.num_key_value_heads * width * 4 * rows + masks
        # The cache that was handed out is in there; graphs keep a state of the last token of each prompt.
        assert storages(tensors_of(cache)).keys() <= kept.keys()
        assert prefill_graph(graphs).recording.outputs.last.shape == (batch, 1, text.hidden_size)
        # One memory for all inputs, as large as the largest of a graph, which is the prompt or the pixels.
        read = storages([one.inputs for one in graphs._kept.values()])
        sizes = [sum(-(-x.nbytes // 256) * 256 for x in one.inputs) for one in graphs._kept.values()]
        assert len(read) == 1 and sum(read.values()) == max(sizes)
        assert sum(kept.values()) == sum(held) == graphs.memory
        assert sum(held) - held.caches - sum(read.values()) < 100_000


@torch.no_grad()
def test_two_caches_share_nothing_and_shapes_share_their_memory():
    model = shared_llava("clip-llama")
    prompts = [make_inputs([Prompt(1, length, seed=length)], "clip-llama") for length in (40, 6)]
    with il.attach(model, "illava", SCHEDULE):
        wanted = [[x.clone() for x in tensors_of(cache_of(model, inputs))] for inputs in prompts]
    with rehearsing() as recorder, il.attach(model, "illava", SCHEDULE, graphs=True):
        held, sizes = [], []
        for _ in range(3):
            for inputs in prompts:
                held.append(cache_of(model, inputs))
                (graphs,) = store._stores.values()
                sizes.append(graphs.held.caches)
        assert recorder.replayed == 5 + 2 * 2  # the tower is one for both
        places = [storages(tensors_of(cache)).keys() for cache in held]
        assert all(not a & b for i, a in enumerate(places) for b in places[:i])
        for number, cache in enumerate(held):
            assert all(
                torch.allclose(a, b, atol=1e-5) for a, b in zip(tensors_of(cache), wanted[number % 2], strict=True)
            )
        # The memory is that of the larger prompt, and not both of them; what is behind is for masks.
        assert sizes[-1] - sizes[2] < 1000
        kept = [x for cache in held for x in tensors_of(cache)]
        before = [x.clone() for x in kept]
        del held, cache  # their tensors are still there: nothing may be written to them
        replayed = recorder.replayed
        assert cache_of(model, prompts[0]) is not None
        assert recorder.replayed == replayed + 1  # the tower alone
        assert all(torch.equal(a, b) for a, b in zip(kept, before, strict=True))
        del kept
        cache_of(model, prompts[0])
        assert recorder.replayed == replayed + 3


def test_an_answer_may_outgrow_its_room_and_one_that_is_waited_for_takes_the_place_of_another():
    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt(1, 8, seed=3)], "clip-llama")
    longest, slots, schedule = 2 * ROOM + 3, inputs["input_ids"].shape[1], il.Schedule(llm={1: 0.5})
    wanted = plainly(model, "fastv", schedule, inputs, count=longest)[0]
    with rehearsing() as recorder, il.attach(model, "fastv", schedule, graphs=True):
        for length in (ROOM, longest):
            with torch.no_grad():
                cache, mask = cache_of(model, inputs), inputs["attention_mask"]  # nobody said how long it would become
                for number in range(1, length):
                    mask, token = torch.cat([mask, mask[:, :1]], 1), wanted[:, slots + number - 1, None]
                    logits = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
                    logits[..., GREEDY["suppress_tokens"]] = -torch.inf
                    assert int(logits.argmax()) == int(wanted[0, slots + number])
        for _ in range(2):  # while the cache above is still there
            replayed = recorder.replayed
            assert torch.equal(generate(model, inputs, longest), wanted)
        assert recorder.replayed >= replayed + longest + 1


def test_wide_layers_run_in_parts_while_they_are_captured(monkeypatch):
    mlp, hidden, rows = torch.nn.Sequential(torch.nn.Linear(8, 32), torch.nn.Linear(32, 8)), torch.randn(2, 9, 8), []

    def original(x: torch.Tensor) -> torch.Tensor:
        rows.append(x.numel() // 8)
        return mlp(x)

    monkeypatch.setattr(parts, "MOST", 7 * 32 * 4)
    assert parts.width_of(mlp) == 32
    with torch.no_grad():
        whole = parts.in_parts(32, original, hidden)
        with noting():
            assert torch.allclose(parts.in_parts(32, original, hidden), whole, atol=1e-6)
    assert rows == [18, 6, 6, 6]
    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt(1, 8, seed=3)], "clip-llama")
    wanted = plainly(model, "illava", SCHEDULE, inputs)[0]
    monkeypatch.setattr(parts, "MOST", 1024)
    with rehearsing() as recorder, il.attach(model, "illava", SCHEDULE, graphs=True):
        for _ in range(3):
            assert torch.equal(generate(model, inputs), wanted)
        assert recorder.replayed


PACKED = [("qwen2-vl", "illava"), ("qwen2.5-vl", "none"), ("qwen3-vl", "illava"), ("qwen2.5-vl", "illava")]


@pytest.mark.parametrize(
    ("family", "name"), [*PACKED[:2], *(pytest.param(*case, marks=pytest.mark.slow) for case in PACKED[2:])]
)
def test_packed_towers_are_captured_for_sizes_that_come_again(family, name):
    """With windows of attention, only where no patch goes: how many are left in each is known on the device only."""
    model = shared_llava(family)
    schedule = il.Schedule() if name == "none" else il.Schedule({0: 0.7, 2: 0.5}, {2: 0.6})
    prompts = [make_inputs([Prompt(images, 5, seed=seed)], family) for images, seed in ((1, 0), (2, 1), (1, 0))]
    prompts[2]["pixel_values"] = prompts[2]["pixel_values"].flip(0)
    wanted = [plainly(model, name, schedule, inputs, count=3) for inputs in prompts]
    with rehearsing(), il.attach(model, name, schedule, graphs=True) as trace:
        for _ in range(3):
            for inputs, (tokens, sources) in zip(prompts, wanted, strict=True):
                assert torch.equal(generate(model, inputs, 3), tokens)
                own = [trace.sources(image).weights for image in range(len(sources))]
                assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(own, sources, strict=True))
        (graphs,) = store._stores.values()
        towers = [key for key in graphs._kept if "tower" in str(key)[:20]]
        assert not graphs._refused
        plainly_run = vision_utils is None or (family, name) == ("qwen2.5-vl", "illava")
        assert len(towers) == (0 if plainly_run else 2)


class OnDevice(torch.Tensor):
    """Stands in for a tensor of a device, for which the host would have to wait."""

    def tolist(self):
        raise AssertionError("the host waits for the device")

    def cpu(self):
        return self.as_subclass(torch.Tensor)


@torch.no_grad()
def test_sizes_of_pictures_are_brought_to_the_host_once_before_the_tower_runs():
    model, inputs = shared_llava("onevision"), make_inputs([Prompt(2, 8, seed=0)], "onevision")
    with il.attach(model, "illava", SCHEDULE):
        wanted = model(**inputs).logits
        inputs["image_sizes"] = inputs["image_sizes"].as_subclass(OnDevice)
        assert torch.equal(model(**inputs).logits, wanted)


@torch.no_grad()
def test_a_cache_whose_prompt_was_cropped_goes_on_where_it_ends():
    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt(1, 8, seed=3)], "clip-llama")

    def run() -> torch.Tensor:
        cache, mask, out = cache_of(model, inputs), inputs["attention_mask"], []
        for step, crop in enumerate((0, 0, 5, 0, 0)):  # two steps, and three tokens of the prompt go again
            if crop:
                cache.crop(-crop)
                mask = mask[:, :-crop]
            mask = torch.cat([mask, mask[:, :1]], 1)
            out.append(model(input_ids=torch.tensor([[20 + step]]), attention_mask=mask, past_key_values=cache).logits)
        return torch.cat(out)

    with il.attach(model, "illava", SCHEDULE):
        wanted = run()
    with rehearsing() as recorder, il.attach(model, "illava", SCHEDULE, graphs=True):
        for _ in range(3):
            assert torch.allclose(run(), wanted, atol=1e-5)
        assert recorder.replayed > 10


def test_pictures_whose_padding_is_cut_off_are_captured_when_they_come_again():
    model, schedule = shared_llava("onevision"), il.Schedule({1: 0.5}, {2: 0.5})
    inputs = make_inputs([Prompt(1, 8, seed=0)], "onevision")
    wanted = plainly(model, "illava", schedule, inputs)[0]
    with rehearsing(), il.attach(model, "illava", schedule, graphs=True) as trace:
        for _ in range(3):
            assert torch.equal(generate(model, inputs, 4), wanted[:, : inputs["input_ids"].shape[1] + 4])
        assert not trace.layout().complete
        (graphs,) = store._stores.values()
        prefill_graph(graphs)
