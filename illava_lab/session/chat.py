"""A conversation about images: several questions on one cache, in which the reduced images stay reduced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.models.video import ImageOrVideo
from illava_lab.schedules.budget import AnyStrategy, choose
from illava_lab.schedules.plan import Plan
from illava_lab.session.answer import Answer, Timing
from illava_lab.session.lab import Lab, as_list
from illava_lab.session.prompt import schedule_for
from illava_lab.trace.trace import Trace

_ANSWER = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for an answer where a chat template is asked what follows one


class _Pieces(TextStreamer):
    """Notes when tokens come, and hands their text on as soon as it is certain."""

    def __init__(self, tokenizer: Any, stream: Callable[[str], object] | None) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self.times: list[float] = []
        self._stream = stream

    def put(self, value: Tensor) -> None:
        self.times.append(time.perf_counter())
        super().put(value)

    def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
        if self._stream is not None and text:
            self._stream(text)


class Chat:
    """A conversation. Make one with `chat`; it lives as long as that block.

    Attributes:
        trace: what happened to the images; they were reduced once, at the first question.
        strategy, budget: what reduced them, and what it was given, in words.
        tokens: (1, S) all tokens so far, or None.
    """

    def __init__(
        self, lab: Lab, images: Sequence[ImageOrVideo], trace: Trace, strategy: str = "none", budget: str = "keep 1"
    ) -> None:
        self.trace, self.strategy, self.budget = trace, strategy, budget
        self.tokens: Tensor | None = None
        self._lab, self._images, self._over = lab, images, False
        self._cache: Any = None

    def say(
        self,
        question: str,
        *,
        max_new_tokens: int = 64,
        stream: Callable[[str], object] | None = None,
        **generation: Any,
    ) -> Answer:
        """Ask the next question.

        Args:
            stream: called with each piece of the answer as soon as it is there, for example
                ``lambda piece: print(piece, end="")``.
            generation: further arguments of `generate`, for example ``do_sample=True, temperature=0.7``.

        Raises:
            LabError: an empty question, an argument that returns several answers, or the block has been left.
        """
        if self._over:
            raise LabError("this conversation ended with its `with` block; start another one")
        if not isinstance(question, str) or not question.strip():
            raise LabError(f"question must be a sentence, got {question!r}")
        several = [name for name in ("num_beams", "num_return_sequences") if generation.get(name, 1) != 1]
        if several:
            raise LabError(f"{several[0]} must be 1 in a conversation, which goes on from one answer")
        if self.tokens is None:
            inputs = self._lab.inputs([self._images], [question])
        else:
            ids = torch.cat([self.tokens, self._next(question, self.tokens)], dim=1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": self._cache}
        pieces = _Pieces(self._lab.processor.tokenizer, stream)
        start = time.perf_counter()
        out = self._lab.model.generate(
            **inputs,
            **{"do_sample": False, **generation},
            max_new_tokens=max_new_tokens,
            streamer=pieces,
            return_dict_in_generate=True,
        )
        self.tokens, self._cache = out.sequences, out.past_key_values
        new = out.sequences[0, inputs["input_ids"].shape[1] :]
        first, last = pieces.times[1], pieces.times[-1]  # entry 0 is the prompt
        text = self._lab.processor.tokenizer.decode(new, skip_special_tokens=True).strip()
        timing = Timing(first - start, last - first, len(new))
        return Answer(text, self.trace, timing, strategy=self.strategy, budget=self.budget)

    def _next(self, question: str, before: Tensor) -> Tensor:
        """(1, T) what follows the tokens `before` (1, S), which end with an answer, up to the place of the next one."""
        said = [("user", "?"), ("assistant", _ANSWER), ("user", question.strip())]
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
        processor = self._lab.processor
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        after = prompt.split(_ANSWER)[1]
        ids: Tensor = processor.tokenizer(after, add_special_tokens=False, return_tensors="pt").input_ids
        ids = ids.to(before.device)
        # The model has often ended its answer itself.
        return ids[:, 1:] if ids[0, 0] == before[0, -1] else ids


@contextmanager
def chat(
    lab: Lab,
    image: ImageOrVideo | Sequence[ImageOrVideo],
    strategy: AnyStrategy | None = None,
    keep: float | None = None,
    *,
    flops: float | None = None,
    preset: str | None = None,
    schedule: Plan | None = None,
) -> Iterator[Chat]:
    """A conversation about an image, or several, with visual tokens reduced.

    >>> with il.chat(lab, "photo.jpg", "illava", keep=0.5) as talk:
    ...     talk.say("What is on the table?").text
    ...     talk.say("And beside it?").text

    Args:
        strategy, keep, flops, preset, schedule: as for `Lab.ask`; FLOPs are those of a short first question.

    Raises:
        LabError: as `Lab.ask`.
    """
    chosen, budget = choose(strategy, keep, flops, preset, schedule)
    images = as_list(image)
    inputs = {} if budget.flops is None else lab.inputs([images], ["?"])
    with attach(lab.model, chosen, schedule_for(lab.model, chosen, budget, inputs)) as trace:
        talk = Chat(lab, images, trace, chosen.label, str(budget))
        try:
            yield talk
        finally:
            talk._over = True
