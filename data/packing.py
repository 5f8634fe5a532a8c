"""Questions side by side in one sequence, so that a picture is looked at once for all of them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from questions import Question
from transformers import PreTrainedTokenizerFast

TURNS = 4  # of the longest conversation
IGNORED = -100
SHORTEST = 6  # tokens of a question with its answer


def my_steps(start: int, stop: int) -> range:
    """The steps whose batches this worker of a data loader makes; the loader takes them in turn, so in their order."""
    worker = torch.utils.data.get_worker_info()
    first, every = (worker.id, worker.num_workers) if worker else (0, 1)
    return range(start + first, stop, every)


def pack(
    ask: Callable[[str], Question | None],
    categories: tuple[str, ...],
    rng: np.random.Generator,
    room: int,
    tokenizer: PreTrainedTokenizerFast,
    seek: Callable[[list[str], int], np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Conversations of `ask`'s questions, half of them of one question, in `room` tokens.

    `block` keeps them from seeing each other, `position` begins each right behind what is shown: the model sees exactly
    what it will see with one of them. `target` is the next token where it belongs to an answer; `asked` numbers the
    questions, `category` and `later` (not the first of its conversation) say of which kind they are. With
    `seek`, what it makes of their texts, room for the most that there can be, is `seek`.
    """
    out = {name: np.zeros(room, np.int64) for name in ("ids", "block", "position", "asked", "category", "later")}
    out["target"] = np.full(room, IGNORED)
    texts = []
    order = list(rng.permutation(len(categories)))
    order += list(rng.integers(len(categories), size=room // 12))
    used, number, begun, left = 0, 0, 0, 0
    for index in order:
        question = ask(categories[index])
        if question is None:
            continue
        first = left == 0
        if first:
            begun, left = used, int(rng.integers(2, TURNS + 1)) if rng.random() < 0.5 else 1
        text = question.text + " ASSISTANT:" if first else "USER: " + question.text + " ASSISTANT:"
        prompt = tokenizer.encode(text, add_special_tokens=False)
        if rng.random() < 0.05:  # an unknown word does no harm
            prompt.insert(int(rng.integers(len(prompt) - 2)), tokenizer.unk_token_id)
        answer = [*tokenizer.encode(question.answer, add_special_tokens=False), tokenizer.eos_token_id]
        span = slice(used, used + len(prompt) + len(answer))
        if span.stop > room:
            break
        number, left = number + 1, left - 1
        out["ids"][span] = prompt + answer
        out["block"][span] = begun + 1
        out["position"][span] = np.arange(span.start, span.stop) - begun
        out["target"][span.stop - len(answer) - 1 : span.stop - 1] = answer
        out["asked"][span], out["category"][span], out["later"][span] = number, index, not first
        used = span.stop
        texts.append(question.text)
    return out | ({"seek": seek(texts, room // SHORTEST)} if seek else {})
