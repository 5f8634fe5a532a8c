"""Conversations: every turn is what the whole conversation would give, with images reduced once."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import reference

import illava_lab as il
from illava_lab.measuring.converse import converse
from illava_lab.models.families import describe


@pytest.fixture(scope="module")
def lab() -> il.Lab:
    return il.load()


@pytest.fixture(scope="module")
def talk_about(lab: il.Lab):
    task = il.load_task("test")
    rows = task.samples[task.samples["image_id"] == task.samples["image_id"].iloc[0]]
    return task.image(rows["image_id"].iloc[0]), list(rows["question"]), list(rows["answer"])


@pytest.mark.parametrize("strategy", ["none", "illava"])
def test_every_turn_equals_the_whole_conversation_recomputed(lab: il.Lab, talk_about, strategy: str) -> None:
    image, questions, answers = talk_about
    schedule = il.Schedule() if strategy == "none" else il.Schedule(encoder={2: 150}, llm={2: 90})
    with il.chat(lab, image, strategy, schedule=schedule) as talk:
        said = [talk.say(question) for question in questions[:3]]
        ids = talk.tokens[0].tolist()
    assert [answer.text for answer in said] == answers[:3]
    assert [step.after for step in talk.trace.steps] == ([] if strategy == "none" else [150, 90])

    prompt = lab.inputs([image], [questions[0]])
    length, pixels = prompt["input_ids"].shape[1], prompt["pixel_values"]
    for end in (length, len(ids) - 2, len(ids) - 1):  # the first token of all, and the last two of the third answer
        logits = reference.logits(
            lab.model, ids[:end], pixels, prompt=length, image_token=describe(lab.model).image_token_id,
            encoder=schedule.plan("encoder"), llm=schedule.plan("llm"), rule="illava",
        )  # fmt: skip
        assert int(logits.argmax()) == ids[end]


def test_the_conversation_is_what_the_template_says(lab: il.Lab, talk_about) -> None:
    image, questions, _ = talk_about
    with il.chat(lab, image) as talk:
        first, second = (talk.say(question) for question in questions[:2])
    said = [("user", questions[0]), ("assistant", first.text), ("user", questions[1]), ("assistant", second.text)]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    messages[0]["content"].insert(0, {"type": "image"})
    whole = lab.processor(images=image, text=lab.processor.apply_chat_template(messages), return_tensors="pt")
    assert talk.tokens[0].tolist() == whole["input_ids"][0, : talk.tokens.shape[1]].tolist()


def test_a_task_is_asked_in_conversations_one_for_each_image(lab: il.Lab) -> None:
    task = il.load_task("test").limited(8)
    mixed = dataclasses.replace(task, samples=task.samples.iloc[[0, 4, 1, 5]])  # two images, in turns
    said = converse(lab, mixed, "illava", keep=0.5)
    for rows in ([0, 2], [1, 3]):
        samples = mixed.samples.iloc[rows]
        with il.chat(lab, task.image(samples["image_id"].iloc[0]), "illava", keep=0.5) as talk:
            assert [said[row] for row in rows] == [talk.say(question).text for question in samples["question"]]
    alone = [
        lab.ask(task.image(row.image_id), row.question, "illava", keep=0.5).text for row in mixed.samples.itertuples()
    ]
    assert said[:2] == alone[:2], "the first question of each finds nothing before it"


def test_pieces_arrive_while_the_answer_is_made(lab: il.Lab, talk_about) -> None:
    image, questions, _ = talk_about
    pieces: list[str] = []
    with il.chat(lab, image, "fastv", keep=0.5) as talk:
        answer = talk.say(questions[3], stream=pieces.append)
        assert "".join(pieces).strip() == answer.text
        torch.manual_seed(0)
        drawn = talk.say(questions[0], do_sample=True, temperature=50.0, max_new_tokens=4)
        assert drawn.timing.tokens <= 4


def test_wrong_use_is_refused(lab: il.Lab, talk_about) -> None:
    image, questions, _ = talk_about
    with il.chat(lab, image) as talk:
        with pytest.raises(il.LabError, match="question must be a sentence, got ' '"):
            talk.say(" ")
        with pytest.raises(il.LabError, match="num_beams must be 1 in a conversation"):
            talk.say(questions[0], num_beams=2)
        talk.say(questions[0])
    with pytest.raises(il.LabError, match="this conversation ended with its `with` block"):
        talk.say(questions[1])
