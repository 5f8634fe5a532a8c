"""What lmms-eval asks is answered as the lab's own verbs answer it; none of this needs lmms-eval."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.labs import noise
from helpers.onevision import onevision_lab
from helpers.task_files import read
from transformers import GenerationConfig

import illava_lab as il
from illava_lab.lmms.asker import Asker
from illava_lab.lmms.generation import generation_of
from illava_lab.lmms.model_args import ModelArguments
from illava_lab.lmms.reading import messages_of
from illava_lab.lmms.requests import Answers, Request
from illava_lab.lmms.tasks import asked
from illava_lab.measuring.predict import answer_tokens
from illava_lab.schedules.budget import choose
from illava_lab.session.messages import Message, answer_messages, message_inputs
from illava_lab.session.turn import LONGEST

KINDS = (
    ("image", (1, 1, 1), None),
    ("images", (2, 3, 1), None),
    ("frames", (8, 9, 8), None),
    ("image", (1, 1, 1), (3, 1, 4)),
)


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return onevision_lab()


def asker(lab: il.Lab, keep: float | None = 0.5, **settings: Any) -> Asker:
    return Asker(lab, *choose("illava" if keep else "none", keep), batch_size=2, **settings)


def requests(lab: il.Lab, task: il.Task) -> list[Request]:
    """What lmms-eval makes of a task."""
    longest = LONGEST if task.conversations else answer_tokens(lab, task)
    how, docs = generation_of({"max_new_tokens": longest, "temperature": 0, "until": []}), asked.docs_of(task)
    said = partial(asked.messages, docs[0])
    return [Request("t", n, doc["question"], partial(asked.messages, doc), said, how) for n, doc in enumerate(docs)]


@pytest.mark.parametrize(("kind", "counts", "turns"), KINDS, ids=["image", "images", "video", "conversation"])
def test_the_labs_tasks_are_answered_and_scored_as_compare_does(
    lab: il.Lab, tmp_path: Path, kind: str, counts: tuple[int, ...], turns: tuple[int, ...] | None
) -> None:
    task, ask = read(tmp_path, kind, counts, turns), asker(lab)
    own = requests(lab, task)
    said = ask.conversations(own) if turns else [[one] for one in ask.single(own)]
    rows = [
        row
        for image in dict.fromkeys(task.samples["image_id"])
        for row in task.samples.index[task.samples["image_id"] == image]
    ]
    with il.attach(lab.model, "illava", il.Schedule.for_budget("illava", lab.model, keep=0.5)):
        wanted = il.predict(lab, task, 2)
    assert [text for own in said for text in own] == [wanted[row] for row in rows] and len(set(wanted)) > 2

    # Random weights are never right: let some of the answers be.
    right = [text if row % 3 else "no" for row, text in enumerate(wanted)]
    mended = il.Task("t", task.samples.assign(answer=right), task.images, task.kind)
    results = [
        asked.results(doc, own if not turns else [own]) for doc, own in zip(asked.docs_of(mended), said, strict=True)
    ]
    assert asked.accuracy([one["accuracy"] for one in results]) == il.correct(wanted, mended).mean() < 1


def test_flops_are_shared_out_by_the_first_document(lab: il.Lab, tmp_path: Path) -> None:
    task = read(tmp_path, "images", (2, 3, 1))
    ask = Asker(lab, *choose("fastv", flops=0.8), batch_size=4, counting=True)
    ask.single(requests(lab, task)[2:])
    table = il.compare(lab, "fastv", flops=[0.8], task=task, timing=False, progress=False)
    for name in ("prefill_flops", "tokens", "cache_bytes"):
        assert getattr(ask.costs["t"], name) == table[name][1]


# --------------------------------------------------------------------------------------------- going on
def test_a_stopped_run_asks_only_what_is_left(lab: il.Lab, tmp_path: Path) -> None:
    own = requests(lab, read(tmp_path, "image", (1, 1, 1)))
    whole = asker(lab).single(own)

    class Stopped(Exception):
        pass

    def stop(count: int) -> None:
        raise Stopped

    for process in (0, 1):  # each answers a batch, and the second one knows what the first has answered
        with pytest.raises(Stopped):
            asker(lab, answers=Answers(tmp_path / "a", "row", process), done=stop).single(own[2 * process :])
    with (tmp_path / "a" / "row.1.jsonl").open("a") as file:
        file.write('\n{"key": "t 5 unfin')
    done: list[int] = []
    answers = Answers(tmp_path / "a", "row", 1)
    assert asker(lab, answers=answers, done=done.append).single(own) == whole
    assert done == [1, 1, 1, 1, 2], "four are known"
    assert asker(lab, answers=Answers(tmp_path / "a", "row"), done=lambda count: None).single(own) == whole
    assert len(Answers(tmp_path / "a", "row").seconds()) == 6
    assert not Answers(tmp_path / "a", "other").seconds()


# --------------------------------------------------------------------------------------------- prompts
def test_a_question_is_the_prompt_that_the_lab_makes(lab: il.Lab) -> None:
    one, two = noise(64, 64, 1), noise(80, 48, 2)
    prompts = [
        [Message("user", (one, " token20 <image> "))],
        [Message("user", (one, two, "token21"))],
        [Message("user", ("token22",))],
    ]
    shown, questions = [one, [one, two], []], [" token20 <image> ", "token21", "token22"]
    wanted = lab.inputs(shown, questions)
    found = message_inputs(lab, prompts)
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    assert answer_messages(lab, prompts, 8) == lab.answer(shown, questions, 8)


def test_earlier_messages_stand_before_the_question(lab: il.Lab) -> None:
    said = [
        {"role": "system", "content": "token30"},
        {"role": "user", "content": [{"type": "image", "url": noise(64, 64, 1)}, {"type": "text", "text": "token31"}]},
        {"role": "assistant", "content": [{"type": "text", "text": "token32"}]},
        {"role": "user", "content": [{"type": "text", "text": "token33"}, {"type": "text", "text": " "}]},
    ]
    inputs = message_inputs(lab, [messages_of(said, 8)])
    written = lab.processor.tokenizer.decode(inputs["input_ids"][0])
    places = [written.index(f"token3{number}") for number in range(4)]
    assert places == sorted(places) and "<image>" in written[places[0] : places[1]]


REFUSED = [
    ([{"role": "user", "content": [{"type": "audio", "url": "a.wav"}]}], "a prompt may hold text, images and videos, got 'audio'"),
    ([{"role": "user", "content": [{"type": "image", "url": "nowhere.png"}]}], "no image file at 'nowhere.png'"),
    ([{"role": "user", "content": [{"type": "video", "url": {"url": "a.mp4", "video_start": 1}}]}], "parts of a film are not read"),
    ([{"role": "tool", "content": "x"}], "role must be"),
    ([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}], "must end with what a user says, got user, assistant"),
    ([], "a prompt must be a list of messages"),
]  # fmt: skip


@pytest.mark.parametrize(("said", "sentence"), REFUSED)
def test_what_cannot_be_asked_is_said(lab: il.Lab, said: Any, sentence: str) -> None:
    with pytest.raises(il.LabError, match=sentence):
        message_inputs(lab, [messages_of(said, 8)])


# --------------------------------------------------------------------------------------------- words
GENERATION = [
    ({}, (128, (), {}, ())),
    ({"max_new_tokens": 16, "temperature": 0, "top_p": 1.0, "num_beams": 1, "do_sample": False}, (16, (), {}, ())),
    ({"max_gen_toks": 9, "until": "\n", "top_p": None, "image_aspect_ratio": "pad"}, (9, ("\n",), {}, ("image_aspect_ratio",))),
    ({"do_sample": True, "temperature": 0}, (128, (), {}, ())),
    ({"temperature": 0.7, "top_p": 0.9}, (128, (), {"do_sample": True, "temperature": 0.7, "top_p": 0.9}, ())),
    ({"do_sample": True}, (128, (), {"do_sample": True}, ())),
    ({"repetition_penalty": 1.1}, (128, (), {"repetition_penalty": 1.1}, ())),
]  # fmt: skip


@pytest.mark.parametrize(("said", "wanted"), GENERATION)
def test_generation_arguments_are_read_as_lmms_eval_means_them(said: dict[str, Any], wanted: tuple[Any, ...]) -> None:
    found = generation_of(said)
    assert (found.max_new_tokens, found.until, found.given, found.ignored) == wanted
    assert found.greedy == ("do_sample" not in wanted[2])
    GenerationConfig(**found.given).validate()


def test_an_answer_ends_before_the_first_text_that_ends_it() -> None:
    assert generation_of({"until": ["\n", "Q:"]}).cut(" red Q: what\nblue") == "red"


WORDS: list[tuple[Any, str]] = [
    (lambda: generation_of({"num_beams": 3}), "num_beams must be 1 in generation_kwargs for the lab to answer, got 3"),
    (lambda: generation_of({"max_new_tokens": 0}), "max_new_tokens must be a whole number of at least 1, got 0"),
    (lambda: generation_of({"until": [""]}), "until must be texts that are not empty"),
    (
        lambda: ModelArguments.of({"strategie": "illava"}),
        "model_args has no strategie; there are pretrained, strategy, ",
    ),
    (lambda: ModelArguments.of({"strategy": "ilava"}), "ilava"),
    (lambda: ModelArguments.of({"keep": 0.5}), "keep 0.5 cannot be met, because no strategy is named"),
    (lambda: ModelArguments.of({"strategy": "illava", "keep": 0.5, "flops": 0.5}), "give one budget"),
    (lambda: ModelArguments.of({"strategy": "illava", "schedule": "{2}"}), "schedule: '{2}' is no JSON"),
    (lambda: ModelArguments.of({"batch_size": "auto"}), "batch_size must be a whole number of at least 1, got 'auto'"),
    (lambda: ModelArguments.of({"graphs": "yes"}), "graphs must be True or False"),
    (lambda: ModelArguments.of({"pretrained": "no/such/folder", "device": "cpu"}).lab(), "no/such/folder"),
]


@pytest.mark.parametrize(("call", "sentence"), WORDS, ids=[sentence[:30] for _, sentence in WORDS])
def test_words_that_mean_nothing_are_refused_in_one_sentence(call: Any, sentence: str) -> None:
    with pytest.raises(il.LabError) as refused:
        call()
    assert sentence in str(refused.value) and "\n" not in str(refused.value)


def test_model_args_are_those_of_load_and_ask() -> None:
    given = {
        "pretrained": "embedded",
        "strategy": "illava",
        "schedule": '{"llm": {"2": 0.5}}',
        "batch_size": "8",
        "device": "cpu",
    }
    read_ = ModelArguments.of(given)
    strategy, budget = read_.chosen()
    assert (strategy.label, budget.schedule, read_.batch()) == ("illava", il.Schedule(llm={2: 0.5}), 8)
    assert ModelArguments.of({"preset": "fastv"}).chosen()[0].name == "fastv"
    assert read_.lab().source == "embedded"
