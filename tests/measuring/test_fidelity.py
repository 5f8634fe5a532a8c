"""Fidelity against slow re-statements: the whole model recomputed for every token, and generation led token by token."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import reference
from helpers.checkpoints import scaled_down
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

import illava_lab as il
from illava_lab.measuring.fidelity import divergence, fidelity, first_difference
from illava_lab.models.families import describe

NAMES = [
    "number",
    "question",
    "strategy",
    "keep",
    "flops",
    "preset",
    "schedule",
    "tokens",
    "kl",
    "agreement",
    "equal",
    "first_difference",
    "reference",
    "answer",
]


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture(scope="module")
def prompts() -> tuple[list[Image.Image], list[str]]:
    task = il.load_task("test").limited(8)
    return [task.image(i) for i in task.samples["image_id"]], list(task.samples["question"])


def small_lab(name: str, folder: Path) -> il.Lab:
    """A small model of a published family. Its weights are large, so that every token matters; its text means nothing."""
    (folder / "small.json").write_text(json.dumps(scaled_down(name)))
    lab = il.load(f"random:{folder / 'small.json'}")
    draw = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in lab.model.named_parameters():
            if parameter.dim() == 2 and "embed" not in name:
                parameter.normal_(0.0, 0.3, generator=draw)
    return lab


def kl_by_hand(reference: Tensor, reduced: Tensor) -> float:
    """The mean over tokens of the sum over words of p log(p / q), one number after the other."""
    total = 0.0
    for one, other in zip(reference.tolist(), reduced.tolist(), strict=True):
        top, other_top = max(one), max(other)
        one_sum, other_sum = (sum(math.exp(x - t) for x in row) for row, t in ((one, top), (other, other_top)))
        for x, y in zip(one, other, strict=True):
            p, q = math.exp(x - top) / one_sum, math.exp(y - other_top) / other_sum
            total += p * (math.log(p) - math.log(q)) if p > 0 and q > 0 else 0.0
    return total / len(reference)


# ---------------------------------------------------------------------------------------------- parity
def test_it_equals_the_whole_model_recomputed_for_every_token(lab: il.Lab, prompts) -> None:
    """No cache, no hooks, no batch: `reference.logits` runs the model by hand on prompt and answer so far."""
    images, questions = (part[:6] for part in prompts)
    schedule = il.Schedule.for_budget("illava", lab.model, keep=0.1)
    end, longest = lab.processor.tokenizer.eos_token_id, 5

    def logits(ids: list[int], pixels: Tensor, prompt: int, plan: il.Schedule) -> Tensor:
        return reference.logits(
            lab.model, ids, pixels, prompt=prompt, image_token=describe(lab.model).image_token_id,
            encoder=plan.plan("encoder"), llm=plan.plan("llm"), rule="illava",
        )  # fmt: skip

    table = fidelity(lab, images, questions, "illava", 0.1, max_new_tokens=longest)
    assert list(table.columns) == NAMES and len(table) == 6
    for row, image in zip(table.itertuples(), images, strict=True):
        inputs = lab.inputs([image], [row.question])
        prompt, pixels = inputs["input_ids"][0].tolist(), inputs["pixel_values"]

        def write(plan: il.Schedule) -> list[int]:
            answer: list[int] = []
            while len(answer) < longest and end not in answer:
                answer.append(int(logits(prompt + answer, pixels, len(prompt), plan).argmax()))
            return answer

        answer, own = write(il.Schedule()), write(schedule)
        both = [
            torch.stack([logits(prompt + answer[:t], pixels, len(prompt), plan) for t in range(len(answer))])
            for plan in (il.Schedule(), schedule)
        ]
        assert row.kl == pytest.approx(kl_by_hand(*both), rel=2e-3, abs=1e-6)
        assert row.agreement == (both[0].argmax(1) == both[1].argmax(1)).double().mean()
        assert (row.tokens, row.equal) == (len(answer), own == answer)
        decode = lab.processor.tokenizer.decode
        assert (row.reference, row.answer) == tuple(
            decode(ids, skip_special_tokens=True).strip() for ids in (answer, own)
        )
    assert not table["equal"].all() and table["equal"].any(), "both ways must have been tried"


class Lead(LogitsProcessor):
    """Leaves one token to choose, whatever the model says."""

    def __init__(self, answer: Tensor, start: int) -> None:
        self.answer, self.start = answer, start

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        out = torch.full_like(scores, -torch.inf)
        out[:, self.answer[ids.shape[1] - self.start]] = 0.0
        return out


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llava-onevision-0.5b", "qwen2-vl-7b"])
def test_one_pass_on_the_cache_equals_one_step_for_each_token(name: str, tmp_path: Path) -> None:
    """Several pictures, and a film and a picture; long answers that part in their middle."""
    lab, draw = small_lab(name, tmp_path), np.random.default_rng(0)
    pictures = [Image.fromarray(draw.integers(0, 256, (60 + 30 * i, 90, 3), dtype=np.uint8)) for i in range(2)]
    film = il.read_video(draw.integers(0, 256, (4, 56, 84, 3), dtype=np.uint8), frames=2)
    shown, questions, length = [pictures, [film, pictures[0]]], ["What is this?", "And what happens here?"], 12
    table = fidelity(lab, shown, questions, ["fastv", "random"], [0.8, 0.2], max_new_tokens=length)
    assert len(table) == 8 and table["tokens"].max() == length
    for row in table.itertuples():
        inputs = lab.inputs([shown[row.number]], [row.question])
        start, write = (
            inputs["input_ids"].shape[1],
            lambda **more: lab.model.generate(**inputs, do_sample=False, **more),
        )
        answer = write(max_new_tokens=length)[0, start:]
        keeps_logits = dict(max_new_tokens=len(answer), logits_processor=LogitsProcessorList([Lead(answer, start)]),
                            output_logits=True, return_dict_in_generate=True)  # fmt: skip
        bare = torch.cat(write(**keeps_logits).logits)
        strategy = il.get_strategy(row.strategy)()
        with il.attach(lab.model, strategy, il.Schedule.for_budget(strategy, lab.model, keep=row.keep)):
            own = write(max_new_tokens=length)[0, start:]
            led = torch.cat(write(**keeps_logits).logits)
        parted = next((t for t, (a, b) in enumerate(zip(answer, own, strict=False)) if a != b), None)
        p, q = bare.log_softmax(-1), led.log_softmax(-1)
        assert row.kl == pytest.approx(float((p.exp() * (p - q)).sum(-1).mean()), rel=1e-3, abs=1e-6)
        assert row.agreement == pytest.approx(float((p.argmax(-1) == q.argmax(-1)).double().mean()))
        assert row.equal == (parted is None) and (parted is None or row.first_difference == parted)
    assert table["kl"].max() > 5e-4, "a reduction that changes nothing would show nothing"
    assert ((table["first_difference"] > 0) & (table["first_difference"] < length - 2)).any(), (
        "the cache has to be cut at least once"
    )


# ---------------------------------------------------------------------------------------------- invariants
def test_no_reduction_is_exactly_no_difference(lab: il.Lab, prompts) -> None:
    images, questions = (part[:2] for part in prompts)
    table = fidelity(lab, images, questions, ["none", "illava", "downsample"], 1.0)
    assert list(table["strategy"]) == ["none", "illava", "downsample"] * 2
    assert (table["kl"] == 0).all() and (table["agreement"] == 1).all() and table["equal"].all()
    assert table["first_difference"].isna().all() and (table["answer"] == table["reference"]).all()


def test_rows_and_what_they_say_of_free_answers(lab: il.Lab, prompts) -> None:
    images, questions = (part[:2] for part in prompts)
    table = fidelity(lab, images, questions, ["random", "none"], [0.5, 0.1])
    assert list(zip(table["number"], table["strategy"], table["keep"], strict=True)) == [
        (n, *row) for n in range(2) for row in (("none", 1.0), ("random", 0.5), ("random", 0.1))
    ]
    for row in table.itertuples():
        asked = lab.ask(images[row.number], row.question, row.strategy, keep=row.keep)
        assert row.answer == asked.text
        assert row.equal == (row.agreement == 1), "greedy writing follows where every first choice is the same"
    again = fidelity(lab, images, questions, ["random", "none"], [0.5, 0.1])
    assert again.equals(table)
    assert not fidelity(lab, images, questions, "random", 0.1, seed=7)["kl"].equals(
        table.loc[table["keep"] == 0.1, "kl"]
    )


@given(st.integers(0, 10_000), st.integers(1, 6), st.integers(2, 9))
def test_divergence_is_a_divergence(seed: int, tokens: int, words: int) -> None:
    p, q = torch.randn(2, tokens, words, generator=torch.Generator().manual_seed(seed)) * 3
    kl, agreement = divergence(p, q)
    assert kl == pytest.approx(kl_by_hand(p, q), rel=1e-5, abs=1e-7) and kl >= 0 and 0 <= agreement <= 1
    assert divergence(p, p) == (0, 1) and divergence(p + 5, p)[0] == pytest.approx(0, abs=1e-9), "logits have no zero"
    order = torch.randperm(words, generator=torch.Generator().manual_seed(seed))
    assert divergence(p[:, order], q[:, order])[0] == pytest.approx(kl), "words have no order"


@given(st.lists(st.integers(0, 2), max_size=6), st.lists(st.integers(0, 2), max_size=6))
def test_first_difference_is_the_length_of_the_common_beginning(one: list[int], other: list[int]) -> None:
    got = first_difference(torch.tensor(one), torch.tensor(other))
    if one == other:
        assert got is None
    else:
        assert one[:got] == other[:got] and one[got : got + 1] != other[got : got + 1]


# ---------------------------------------------------------------------------------------------- what is refused
def test_bad_input_is_refused_before_the_model_runs(lab: il.Lab, prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    class Timid(il.get_strategy("tome")):
        """Merges a tenth of the tokens of a layer at most."""

        name, smallest_keep = "timid", 0.9

    image, question = prompts[0][0], prompts[1][0]
    monkeypatch.setattr(type(lab.model), "generate", lambda *args, **kwargs: pytest.fail("the model has run"))
    film = il.read_video(np.zeros((2, 8, 8, 3), np.uint8), frames=2)
    for arguments, says in [
        (([], [], "illava", 0.5), r"images must be a list with one entry for each question, got \[\]"),
        ((image, [question], "illava", 0.5), "images must be a list with one entry for each question, got <PIL"),
        (([image], "What?", "illava", 0.5), "questions must be a list with one entry for each question, got 'What"),
        (([image], [question] * 2, "illava", 0.5), "images must hold one entry for each of 2 questions, got 1"),
        (([image], [" "], "illava", 0.5), "question must be a sentence"),
        ((["none.png"], [question], "illava", 0.5), "no image file at 'none.png'"),
        (([image, "none.png"], [question] * 2, "illava", 0.5), "no image file at 'none.png'"),
        (([film], [question], "illava", 0.5), "which takes no videos"),
        (([image], [question], [], 0.5), "strategy must hold at least one"),
        (([image], [question], "ilava", 0.5), "unknown strategy 'ilava'; did you mean illava"),
        (([image], [question], ["illava", "illava"], 0.5), "strategy holds one twice"),
        (([image], [question], "illava", 1.5), r"keep must be a fraction in \(0, 1\], got 1.5"),
        (([image], [question], "illava", []), "keep must hold at least one"),
        (([image], [question], Timid, [0.8, 0.1]), "timid keep 0.1: timid cannot go from 196 to"),
    ]:
        with pytest.raises(il.LabError, match=says) as caught:
            fidelity(lab, *arguments)
        assert "\n" not in str(caught.value)
    with pytest.raises(il.LabError, match="max_new_tokens must be a whole number of at least 1, got 0"):
        fidelity(lab, [image], [question], "illava", 0.5, max_new_tokens=0)
    with (
        il.attach(lab.model, "random"),
        pytest.raises(il.LabError, match="a strategy is attached to it; leave that block first"),
    ):
        fidelity(lab, [image], [question], "illava", 0.5)
