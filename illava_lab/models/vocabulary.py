"""What a small model can be asked: words of a question that it lacks, and what it knows in their place.

A checkpoint may have a file `knows.json` beside its tokenizer: group of words -> words. The embedded model has one.
"""

from __future__ import annotations

from pathlib import Path

from transformers import PreTrainedTokenizerBase

from illava_lab.errors import LabError
from illava_lab.models.folder import read_json
from illava_lab.paths import is_file

KNOWS = "knows.json"


def unknown_words(tokenizer: PreTrainedTokenizerBase, question: str) -> tuple[str, ...]:
    """Words of the question that the vocabulary lacks, each once, in order; none where all can be spelt."""
    if tokenizer.unk_token_id is None or not tokenizer.is_fast:
        return ()
    encoded = tokenizer(question, add_special_tokens=False, return_offsets_mapping=True)
    pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
    unknown = (question[start:end] for token, (start, end) in pairs if token == tokenizer.unk_token_id)
    return tuple(dict.fromkeys(unknown))


def known_words(tokenizer: PreTrainedTokenizerBase) -> dict[str, list[str]]:
    """Group of words -> those of them that the vocabulary has; empty for a checkpoint without such a list.

    Raises:
        LabError: the list is there, and is not one of words.
    """
    path = Path(tokenizer.name_or_path) / KNOWS
    if not is_file(path):
        return {}
    vocabulary = set(tokenizer.get_vocab())
    groups = read_json(path)
    for words in groups.values():
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise LabError(f"it has a file {KNOWS} that is no list of words by group")
    return {name: [word for word in words if vocabulary.issuperset(word.split())] for name, words in groups.items()}


def note_on_unknown_words(tokenizer: PreTrainedTokenizerBase, question: str) -> str | None:
    """One sentence: the words of a question that the model lacks, and what it knows; None if it lacks none."""
    unknown = unknown_words(tokenizer, question)
    if not unknown:
        return None
    note = f"this model does not know {', '.join(map(repr, unknown))}"
    groups = [f"the {name} {', '.join(words)}" for name, words in known_words(tokenizer).items() if words]
    return f"{note}; it knows {'; '.join(groups)}" if groups else note
