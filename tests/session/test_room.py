"""A prompt that is longer than the model's positions, and text that is none: refused with numbers, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest
from helpers.labs import LAB_KINDS, noise, small_lab

import illava_lab as il
from illava_lab.session.room import known_positions, positions_of
from illava_lab.session.turn import following


@pytest.mark.parametrize("kind", LAB_KINDS)
def test_a_question_longer_than_the_positions_is_refused_with_both_numbers(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, image = small_lab(kind), noise(28 * 6, 28 * 8)
    known = 2000
    monkeypatch.setattr(lab.model.config.get_text_config(), "max_position_embeddings", known)
    taken = positions_of(lab.model, lab.inputs([image], ["the" + " the" * 99])) - 100
    fits = known - taken
    inputs = lab.inputs([image], ["the" + " the" * (fits - 1)])
    assert positions_of(lab.model, inputs) == known
    monkeypatch.setattr(type(lab.model), "forward", lambda *args, **kwargs: pytest.fail("the model ran"))
    long = "the" + " the" * fits
    says = f"takes 2,001 positions, but the model knows {known:,}"
    with il.chat(lab, image, "illava") as talk, pytest.raises(il.LabError, match=says):
        talk.say(long)
    for verb in (
        lambda: lab.ask(image, long, "illava"),
        lambda: lab.ask(image, long, "illava", flops=0.9),
        lambda: lab.answer([image, image], ["the", long]),
        lambda: il.fidelity(lab, [image], [long], "illava", progress=False),
    ):
        with pytest.raises(il.LabError, match=says):
            verb()
    with pytest.raises(il.LabError, match=r"max_new_tokens must be from 1 to 1, got 2: .* 2,000 of the 2,000"):
        lab.ask(image, "the" + " the" * (fits - 1), "illava", max_new_tokens=2)


@pytest.mark.parametrize("kind", ["qwen2-vl", "qwen2.5-vl"])
def test_an_image_takes_as_many_positions_as_its_longer_side(kind: str) -> None:
    lab = small_lab(kind)
    inputs = lab.inputs([noise(28 * 6, 28 * 8)], ["a"])
    length = inputs["input_ids"].shape[1]
    assert positions_of(lab.model, inputs) == length - 6 * 8 + 8


@pytest.mark.parametrize("kind", ["clip-llama", "qwen2.5-vl"])
def test_a_conversation_ends_where_the_positions_end(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lab, image = small_lab(kind), noise(28 * 6, 28 * 8)
    inputs = lab.inputs([image], ["a"])
    taken = positions_of(lab.model, inputs)
    with il.chat(lab, image, "fastv") as talk:
        talk.say("a", max_new_tokens=5)
        again = following(lab, "a", int(talk.tokens[0, -1])).shape[0]
        known = taken + 5 + again + 3
        monkeypatch.setattr(lab.model.config.get_text_config(), "max_position_embeddings", known)
        with pytest.raises(il.LabError, match=rf"from 1 to 4, got 5: the prompt takes {known - 3} of the {known} pos"):
            talk.say("a", max_new_tokens=5)
        assert talk.say("a", max_new_tokens=4).timing.tokens == 4
        with pytest.raises(il.LabError, match=f"but the model knows {known}"):
            talk.say("a")
    assert known_positions(lab.model) == known


@pytest.mark.parametrize(
    ("question", "says"),
    [
        ("what \ud800?", r"question must be text, but its character 5 is '\\ud800', half a character"),
        ("\udcff", "half a character"),
        ("\n\t ", "question must be a sentence"),
        (b"What?", "question must be a sentence, got b'What\\?'"),
        (None, "question must be a sentence, got None"),
        (7, "question must be a sentence, got 7"),
        (["What?"], "question must be a sentence"),
    ],
)
def test_a_question_is_text(question: object, says: str) -> None:
    lab = small_lab("clip-llama")
    with il.chat(lab, noise()) as talk, pytest.raises(il.LabError, match=says):
        talk.say(question)
    for verb in (lambda: lab.ask(noise(), question), lambda: lab.inputs([noise()], [question])):
        with pytest.raises(il.LabError, match=says):
            verb()


@pytest.mark.parametrize(
    ("images", "questions", "says"),
    [
        ([], [], "0 questions need as many entries in images, got 0"),
        ("photo.jpg", ["a"], "images must be a list with one entry for each question, got 'photo.jpg'"),
        ([noise()], "a", "questions must be a list with one entry for each question, got 'a'"),
        (None, ["a"], "images must be a list"),
        ([noise()], {"a": 1}, "questions must be a list"),
    ],
)
def test_a_batch_is_two_lists(images: object, questions: object, says: str) -> None:
    lab = small_lab("clip-llama")
    for verb in (lab.inputs, lab.answer):
        with pytest.raises(il.LabError, match=says):
            verb(images, questions)


@pytest.mark.parametrize("kind", LAB_KINDS)
def test_a_batch_may_hold_a_prompt_that_shows_nothing(kind: str) -> None:
    lab, prompts = small_lab(kind), (([noise()], "token5"), ([], "token6 token7"))
    together = lab.answer([shown for shown, _ in prompts], [text for _, text in prompts], max_new_tokens=3)
    assert together == [lab.answer([shown], [text], 3)[0] for shown, text in prompts]


def test_a_conversation_reads_its_pictures_when_it_begins(tmp_path: Path) -> None:
    lab = small_lab("clip-llama")
    with pytest.raises(il.LabError, match="no image file at"), il.chat(lab, tmp_path / "none.png"):
        pytest.fail("it began")


def test_a_prompt_shows_something() -> None:
    lab = small_lab("clip-llama")
    for verb in (lambda: lab.ask([], "a"), lambda: lab.ask((), "a", "illava"), lambda: il.chat(lab, []).__enter__()):
        with pytest.raises(il.LabError, match="image must show at least one image or video, got "):
            verb()
