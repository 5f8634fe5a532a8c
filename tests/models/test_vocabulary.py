"""A question with words that a model lacks is answered with what it knows, and what it is said to know is true."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from illava_lab.models.vocabulary import KNOWS, known_words, note_on_unknown_words, unknown_words
from illava_lab.paths import data_dir

sys.path.insert(0, str(Path(__file__).parents[2] / "data"))  # the scripts there are no package

import clip_llama
import words


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(data_dir() / "model")


def test_only_words_that_the_vocabulary_lacks_are_unknown(tokenizer) -> None:
    assert unknown_words(tokenizer, "What COLOR is the giraffe, and is the giraffe a bird-like Zebra?") == (
        "giraffe", "like", "Zebra",
    )  # fmt: skip
    assert unknown_words(tokenizer, "What color is the circle?") == ()


def test_the_sentence_names_the_word_and_every_group(tokenizer) -> None:
    assert note_on_unknown_words(tokenizer, "What color is the circle?") is None
    note = note_on_unknown_words(tokenizer, "Where is the giraffe?")
    assert note.startswith("this model does not know 'giraffe'; it knows the shapes circle, square")
    assert "the colors red" in note and "the digits 0" in note and "top left" in note and "cat" in note
    assert "\n" not in note


def test_the_list_beside_the_weights_is_that_of_the_scenes_and_of_the_tokenizer(tokenizer) -> None:
    listed = json.loads((data_dir() / "model" / KNOWS).read_text(encoding="utf-8"))
    assert listed == words.known()
    assert known_words(tokenizer) == listed, "a listed word is not in the vocabulary"
    assert set(tokenizer.get_vocab()) == set(clip_llama.words())


def test_a_word_is_never_claimed_that_the_vocabulary_lacks(tokenizer, tmp_path: Path) -> None:
    tokenizer.save_pretrained(tmp_path)
    assert note_on_unknown_words(AutoTokenizer.from_pretrained(tmp_path), "a giraffe") == (
        "this model does not know 'giraffe'"
    )
    (tmp_path / KNOWS).write_text('{"animals": ["cat", "giraffe", "sea lion"], "nothing": ["x"]}', encoding="utf-8")
    assert note_on_unknown_words(AutoTokenizer.from_pretrained(tmp_path), "a giraffe") == (
        "this model does not know 'giraffe'; it knows the animals cat"
    )
