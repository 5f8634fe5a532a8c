"""Special words of a model inside a question are plain text there: no place for an image, no end of a turn."""

from __future__ import annotations

import pytest
import torch
from helpers.labs import LAB_KINDS, noise, small_lab

import illava_lab as il
from illava_lab.session.turn import following
from illava_lab.session.words import plain

WORDS = [
    "<image>", "<video>", "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<IMG_CONTEXT>", "<img>", "</s>",
    "<|im_end|>", "<|endoftext|>", "<s>", "<pad>", "<unk>", "[UNK]", "<|im_start|>assistant\n",
]  # fmt: skip


def signs(lab: il.Lab, ids: torch.Tensor) -> dict[int, int]:
    """How often each special token is in there; unknown words of a word-level tokenizer are none."""
    tokenizer = lab.processor.tokenizer
    special = {number for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return {number: int((ids == number).sum()) for number in special - {tokenizer.unk_token_id}}


@pytest.fixture(scope="module")
def embedded() -> il.Lab:
    return il.load()


@pytest.mark.parametrize("kind", [*LAB_KINDS, "embedded"])
@pytest.mark.parametrize("word", WORDS)
def test_a_question_holds_no_signs(kind: str, word: str, embedded: il.Lab) -> None:
    lab = embedded if kind == "embedded" else small_lab(kind)
    harmless = lab.inputs([noise()], ["How do I write an (image) tag?"])["input_ids"]
    questions = (f"How do I write an {word} tag?", word, f"{word}{word} why?", f"why{word}")
    for question in questions:
        asked = lab.inputs([noise()], [question])["input_ids"]
        assert signs(lab, asked) == signs(lab, harmless), question
    with il.chat(lab, noise(), "fastv", 0.5) as talk:
        assert talk.say("What?", max_new_tokens=1).timing.tokens == 1
        last = int(talk.tokens[0, -1])
        usual = signs(lab, following(lab, "What?", last))
        for question in questions:
            assert signs(lab, following(lab, question, last)) == usual, question


@pytest.mark.parametrize("strategy", ["none", "fastv", "illava"])
@pytest.mark.parametrize("kind", LAB_KINDS)
def test_the_answer_is_that_of_the_words(kind: str, strategy: str) -> None:
    """In `ask` and in a conversation, the model gets the special word as the words it is made of."""
    lab, other = small_lab(kind), noise(70, 50, seed=1)
    pairs = (("<image>", "< image>"), ("<|im_end|>", "<| im_end|>"), ("</s>", "</ s>"), ("</img>", "</ img>"))
    special = {token.content for token in lab.processor.tokenizer.added_tokens_decoder.values() if token.special}
    for word, words in (pair for pair in pairs if pair[0] in special):
        said, wanted = [], []
        for out, text in ((said, word), (wanted, words)):
            out.append(lab.ask(other, f"token5 {text} token6?", strategy, max_new_tokens=4).text)
            with il.chat(lab, other, strategy) as talk:
                out += [talk.say(f"token5 {text} token{i}?", max_new_tokens=4).text for i in range(2)]
        assert said == wanted


def test_the_embedded_model_answers_as_if_the_word_were_harmless(embedded: il.Lab) -> None:
    task = il.load_task("test").limited(4)
    for row in task.samples.itertuples():
        image = task.image(row.image_id)
        answers = []
        for words in ("<image>", "[image]", "</s>", "((s)"):
            with pytest.warns(UserWarning, match="this model does not know"):
                answers.append(lab_text(embedded, image, f"{words} {row.question}"))
        assert answers[0] == answers[1] and answers[2] == answers[3]


def lab_text(lab: il.Lab, image: object, question: str) -> str:
    return lab.ask(image, question, "illava", 0.7).text


def test_words_are_taken_apart_where_one_begins_or_ends() -> None:
    processor = small_lab("qwen2-vl").processor
    assert plain(processor, "An <|image_pad|>, and <image>?") == "An <| image_pad|>, and <image>?"  # the latter is none
    for text in ("plain text", "a < b and b > c", "<b>bold</b>", "price: 5 $", "", "一 二"):
        assert plain(processor, text) == text
    nested = plain(processor, "<|im_<|im_end|>end|>")
    assert processor.tokenizer.eos_token_id not in processor.tokenizer(nested).input_ids


def test_a_question_may_hold_the_mark_that_stands_for_an_answer() -> None:
    lab = small_lab("clip-llama")
    with il.chat(lab, noise()) as talk:
        talk.say("What?", max_new_tokens=1)
        marked = following(lab, "token7 \N{OBJECT REPLACEMENT CHARACTER} token8", int(talk.tokens[0, -1]))
        assert marked.shape == following(lab, "token7 token9 token8", int(talk.tokens[0, -1])).shape
