"""Captured graphs, as far as a machine without a GPU can tell: what is captured is called again on the same tensors."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from conftest import KINDS, QUICK_KINDS, Prompt, make_inputs, shared_llava
from helpers.attached import GREEDY
from helpers.rehearsal import WithoutValues, rehearsing

import illava_lab as il
from illava_lab.hooks.graphs import store
from illava_lab.measuring.task_files import load_task
from illava_lab.models.families import describe

REDUCTIONS = {
    "none": il.Schedule(),
    "fastv": il.Schedule(llm={1: 0.5, 3: 0.4}),
    "illava": il.Schedule({0: 0.7, 2: 16}, {1: 0.6, 3: 0.5}),
    "tome": il.Schedule({0: 28, 1: 20}),
    "stride": il.Schedule({1: 0.5}, {2: 0.5}),
    "sparsevlm": il.Schedule(llm={1: 0.7, 2: 0.6}),
}
CASES = [(kind, name) for kind in KINDS for name in REDUCTIONS if kind in QUICK_KINDS or name == "illava"]


def generate(model, inputs, count: int = 9, **more) -> torch.Tensor:
    return model.generate(**inputs, max_new_tokens=count, **GREEDY | more)


def plainly(model, name, schedule, inputs, **more) -> tuple[torch.Tensor, list[torch.Tensor]]:
    with il.attach(model, name, schedule) as trace:
        out = generate(model, inputs, **more)
        return out, [trace.sources(image).weights for image in range(sum(trace.images_per_row))]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_answers_and_traces_are_those_of_the_plain_way(kind, name):
    model, schedule = shared_llava(kind), REDUCTIONS[name]
    several = [[Prompt(1, 8, seed=3)], [Prompt(1, 5, seed=1), Prompt(1, 8, seed=2)], [Prompt(1, 7, seed=4)]]
    prompts = [make_inputs(prompt, kind) for prompt in several]
    wanted = [plainly(model, name, schedule, inputs) for inputs in prompts]
    with rehearsing() as recorder, il.attach(model, name, schedule, graphs=True) as trace:
        for _ in range(3):
            for inputs, (tokens, sources) in zip(prompts, wanted, strict=True):
                assert torch.equal(generate(model, inputs), tokens)
                own = [trace.sources(image).weights for image in range(len(sources))]
                assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(own, sources, strict=True))
    assert recorder.replayed > (
        20 if kind != "qwen3.5-vl" else 5
    )  # whose language model keeps states, and runs plainly


def test_one_graph_serves_questions_of_several_lengths():
    model, schedule = shared_llava("clip-llama"), REDUCTIONS["illava"]
    prompts = [make_inputs([Prompt(1, length, seed=length)], "clip-llama") for length in (3, 4, 5, 6)]
    assert len({-(-own["input_ids"].shape[1] // 16) for own in prompts}) == 1  # they share a step of lengths
    wanted = [plainly(model, "illava", schedule, inputs)[0] for inputs in prompts]
    with rehearsing() as recorder, il.attach(model, "illava", schedule, graphs=True):
        for inputs in prompts[:2]:
            generate(model, inputs, 1)
        assert recorder.captured == 2  # the tower, and the prefill
        for inputs, tokens in zip(prompts, wanted, strict=True):
            assert torch.equal(generate(model, inputs), tokens)
        assert recorder.captured == 3  # and a step of decoding


def test_who_counts_words_is_asked_with_the_prompt_as_it_is():
    model, schedule = shared_llava("clip-llama"), REDUCTIONS["sparsevlm"]
    prompts = [make_inputs([Prompt(1, length, seed=length)], "clip-llama") for length in (5, 6)] * 3
    wanted = [plainly(model, "sparsevlm", schedule, inputs)[0] for inputs in prompts]
    with rehearsing() as recorder, il.attach(model, "sparsevlm", schedule, graphs=True):
        for inputs, tokens in zip(prompts, wanted, strict=True):
            assert torch.equal(generate(model, inputs), tokens)
        assert recorder.captured == 4  # the tower, a step, and a prefill of each length


def test_what_was_handed_out_stays_as_it_was():
    model, schedule = shared_llava("clip-llama"), REDUCTIONS["illava"]
    prompts = [make_inputs([Prompt(1, 8, seed=seed)], "clip-llama") for seed in range(4)]
    held = []
    with rehearsing(), torch.no_grad(), il.attach(model, "illava", schedule, graphs=True) as trace:
        for inputs in (*prompts, *prompts):
            out = model(**inputs, use_cache=True)
            cached = [x for layer in out.past_key_values.layers for x in (layer.keys, layer.values)]
            told = [x for step in trace.steps for x in (step.map.anchor, step.map.self_weight, step.map.score)]
            own = [out.logits, *cached, *(x for x in told if x is not None), trace.sources(0).weights]
            held.append((own, [x.clone() for x in own]))
    for own, copies in held:
        assert all(torch.equal(a, b) for a, b in zip(own, copies, strict=True))
    for (own, _), (again, _) in zip(held[:4], held[4:], strict=True):  # the first of them, plainly
        assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(own, again, strict=True))


@pytest.mark.parametrize("kind", ["clip-llama", "onevision"])
def test_caches_may_be_used_like_any_other(kind):
    """Drafts, beams, several answers, no cache: what changes a cache another way goes on plainly, and back."""
    model, schedule, inputs = shared_llava(kind), REDUCTIONS["illava"], make_inputs([Prompt(1, 8, seed=3)], kind)
    inputs["input_ids"][0, -6:] = torch.tensor([20, 21, 22, 20, 21, 22])
    ways = [{}, {"prompt_lookup_num_tokens": 3}, {"num_beams": 2}, {"use_cache": False}]
    ways = [way | {"eos_token_id": 2, "suppress_tokens": [*GREEDY["suppress_tokens"], 2]} for way in ways]
    wanted = [plainly(model, "illava", schedule, inputs, count=12, **way)[0] for way in ways]
    with rehearsing() as recorder, il.attach(model, "illava", schedule, graphs=True):
        for _ in range(3):
            for way, tokens in zip(ways, wanted, strict=True):
                assert torch.equal(generate(model, inputs, 12, **way), tokens)
        assert recorder.replayed
        with torch.no_grad():  # two caches at once, one of them cropped and gone on from
            caches = [model(**inputs, use_cache=True).past_key_values for _ in range(4)]
            mask = inputs["attention_mask"]
            logits: list[list[torch.Tensor]] = [[] for _ in caches]
            for step in range(4):
                mask = torch.cat([mask, mask[:, :1]], 1)
                for cache, own in zip(caches, logits, strict=True):
                    token = torch.tensor([[20 + step]])
                    own.append(model(input_ids=token, attention_mask=mask, past_key_values=cache).logits)
                    if step == 2:
                        cache.crop(-1)
                        own[-1] = model(input_ids=token, attention_mask=mask, past_key_values=cache).logits
            for own in logits[1:]:
                assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(logits[0], own, strict=True))


def test_what_a_graph_cannot_know_is_computed_plainly():
    model, schedule = shared_llava("clip-llama"), REDUCTIONS["illava"]
    inputs = make_inputs([Prompt(1, 8, seed=3)], "clip-llama")
    wanted = plainly(model, "illava", schedule, inputs)[0]
    with rehearsing() as recorder, il.attach(model, "illava", schedule, graphs=True):
        for _ in range(3):
            generate(model, inputs)
        calls: list[int] = []
        handle = model.model.language_model.layers[2].mlp.register_forward_hook(lambda *_: calls.append(1))
        try:  # a hook of somebody else is called every time, or captured with the rest: here, again from anew
            generate(model, inputs)
        finally:
            handle.remove()
        assert calls
        moved = model.model.language_model.layers[0].mlp.down_proj.weight
        before, moved.data = moved.data, torch.randn(moved.shape)
        try:  # weights that lie elsewhere are not those that were captured
            other = generate(model, inputs)
        finally:
            moved.data = before
        assert not torch.equal(other, wanted)
        replayed = recorder.replayed
        with torch.enable_grad():
            model(**inputs)
        assert recorder.replayed == replayed
        for _ in range(3):
            assert torch.equal(generate(model, inputs), wanted)
        assert recorder.replayed > replayed


def test_buffers_are_not_used_again_while_somebody_looks_at_them():
    model, schedule = shared_llava("clip-llama"), REDUCTIONS["fastv"]
    prompts = [make_inputs([Prompt(1, 8, seed=seed)], "clip-llama") for seed in range(3)]
    held = []
    with rehearsing() as recorder, il.attach(model, "fastv", schedule, graphs=True):
        for inputs in (*prompts, *prompts):
            out = generate(model, inputs, return_dict_in_generate=True)
            views = [layer.keys for layer in out.past_key_values.layers]
            held.append((views, [x.clone() for x in views]))
            del out  # the cache goes, its keys stay
        assert all(torch.equal(a, b) for views, copies in held for a, b in zip(views, copies, strict=True))
        del views, held  # nobody looks any more
        replayed = recorder.replayed
        generate(model, prompts[0])
        assert recorder.replayed == replayed + 10  # the tower, the prefill and all steps


def test_a_cropped_cache_does_not_write_over_its_fork():
    model, schedule = shared_llava("clip-llama"), REDUCTIONS["fastv"]
    inputs = make_inputs([Prompt(1, 8, seed=3)], "clip-llama")

    def step(cache, token: int, seen: int) -> torch.Tensor:
        mask = torch.ones((1, inputs["input_ids"].shape[1] + seen), dtype=torch.long)
        return model(input_ids=torch.tensor([[token]]), attention_mask=mask, past_key_values=cache).logits

    def run() -> torch.Tensor:
        cache = model(**inputs, use_cache=True).past_key_values
        for seen in range(1, 5):
            step(cache, 20 + seen, seen)
        fork = copy.deepcopy(cache, {id(x): x for layer in cache.layers for x in (layer.keys, layer.values)})
        cache.crop(-3)
        for seen in range(2, 5):
            step(cache, 40 + seen, seen)
        return step(fork, 30, 5)

    with torch.no_grad(), il.attach(model, "fastv", schedule):
        wanted = run()
    with rehearsing() as recorder, torch.no_grad(), il.attach(model, "fastv", schedule, graphs=True):
        for _ in range(3):
            assert torch.allclose(run(), wanted, atol=1e-5)
        assert recorder.replayed > 10


def test_a_lab_answers_and_talks_with_graphs():
    lab = il.load()
    picture, questions = load_task("test"), ["What color is the circle?", "How many shapes are there?"]
    image = picture.image(picture.samples["image_id"].iloc[0])
    wanted = [lab.ask(image, question, "illava", keep=0.5).text for question in questions]
    with il.chat(lab, image, "illava", keep=0.5) as talk:
        said = [talk.say(question).text for question in questions]
    table = il.compare(lab, "fastv", keep=0.5, limit=4, timing=False, progress=False)
    with rehearsing(), il.chat(lab, image, "illava", keep=0.5, graphs=True) as talk:
        assert [talk.say(question).text for question in questions] == said
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "graphs=True: it changes nothing")
        assert [lab.ask(image, question, "illava", keep=0.5, graphs=True).text for question in questions] == wanted
        same = il.compare(lab, "fastv", keep=0.5, limit=4, timing=False, graphs=True, progress=False)
    assert same.equals(table)
    with pytest.raises(il.LabError, match="graphs must be True or False, got 1"):
        lab.ask(image, questions[0], graphs=1)


def test_few_graphs_are_kept(monkeypatch):
    monkeypatch.setattr(store, "GRAPHS", 2)
    model, schedule = shared_llava("clip-llama"), REDUCTIONS["fastv"]
    prompts = [make_inputs([Prompt(1, length, seed=1)], "clip-llama") for length in (4, 24, 44)]
    wanted = [plainly(model, "fastv", schedule, inputs)[0] for inputs in prompts]
    with rehearsing(), il.attach(model, "fastv", schedule, graphs=True):
        for _ in range(3):
            for inputs, tokens in zip(prompts, wanted, strict=True):
                assert torch.equal(generate(model, inputs), tokens)
                assert all(len(graphs._kept) <= 2 for graphs in store._stores.values())


def test_where_nothing_can_be_captured_one_line_says_so():
    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt(1, 8, seed=3)], "clip-llama")
    wanted = plainly(model, "fastv", REDUCTIONS["fastv"], inputs)[0]
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with il.attach(model, "fastv", REDUCTIONS["fastv"], graphs=True):
            assert torch.equal(generate(model, inputs), wanted)
    (line,) = [str(one.message) for one in said]
    assert line == "graphs=True: it changes nothing on a cpu device, only on cuda"
    attached = il.attach(model, "fastv", REDUCTIONS["fastv"], graphs="yes")
    with pytest.raises(il.LabError, match="graphs must be True or False, got 'yes'"):
        attached.__enter__()


class Reader(il.Scorer):
    """Looks at a value, which no graph can."""

    name = "reader"

    def score(self, tokens):
        largest = tokens.hidden.norm(dim=-1)
        return largest if float(largest.max()) > 0 else -largest


def proof(kind: str, strategy, schedule, videos: int = 0) -> WithoutValues:
    model, inputs = shared_llava(kind), make_inputs([Prompt(1, 8, seed=3, videos=videos)], kind)
    with rehearsing(WithoutValues()) as recorder, warnings.catch_warnings():
        warnings.filterwarnings("ignore", "graphs: this cannot be captured")
        with il.attach(model, strategy, schedule, graphs=True):
            for count in (3, 3, 1, 1):  # the last two, for who is asked again with the prompt as it is
                generate(model, inputs, count)
    return recorder


def takes_video(kind: str) -> bool:
    return "video" in describe(shared_llava(kind)).media


# Of grouped products torch 2.13 knows no shape without values.
@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "qwen3-vl-moe"])
def test_no_value_decides_a_shape_or_a_branch(kind):
    """From the tower's entry to the last layer, and in a step of decoding: all of it runs on tensors without values.

    A strategy sees the tokens of three kinds of models; the others show that their own code looks at no value either.
    """
    tried = (
        il.strategies()
        if kind in QUICK_KINDS
        else {name: il.get_strategy(name) for name in (*REDUCTIONS, "downsample")}
    )
    refused = 0
    depth = len(describe(shared_llava(kind)).llm_layers)
    for name, strategy in tried.items():
        if name == "none":
            schedule = il.Schedule()
        elif "image" in strategy.stages:
            schedule = il.Schedule(image=0.25)
        else:
            schedule = il.Schedule(
                {1: 0.5} if "encoder" in strategy.stages else {}, {depth - 2: 0.6} if "llm" in strategy.stages else {}
            )
        try:
            recorder = proof(kind, name, schedule, videos=int("image" not in strategy.media and takes_video(kind)))
        except il.LabError:  # what a family has not: CLS, or a picture that may be smaller
            refused += 1
            continue
        assert not recorder.failures, f"{name}: {recorder.failures}"
        assert recorder.proved >= 1, name
    assert refused <= (11 if takes_video(kind) else 14)


def test_the_line_that_looks_at_a_value_is_named():
    (failure,) = proof("clip-llama", Reader(), il.Schedule({1: 0.5})).failures
    assert "test_graphs.py" in failure and "float(largest.max())" in failure


def test_a_strategy_that_looks_at_values_runs_plainly_and_is_named():
    model, inputs = shared_llava("clip-llama"), make_inputs([Prompt(1, 8, seed=3)], "clip-llama")
    wanted = plainly(model, Reader(), il.Schedule({1: 0.5}), inputs)[0]
    with rehearsing(WithoutValues()), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with il.attach(model, Reader(), il.Schedule({1: 0.5}), graphs=True):
            for _ in range(3):
                assert torch.equal(generate(model, inputs), wanted)
    assert any("this cannot be captured, and runs without" in str(one.message) for one in said)
