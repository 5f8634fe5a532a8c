"""A conversation about images: several questions on one cache, in which the reduced images stay reduced."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import TextStreamer

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.method.blocks import block, gradients_kept
from illava_lab.models.video import ImageOrVideo
from illava_lab.schedules.budget import AnyStrategy, choose
from illava_lab.schedules.plan import Plan
from illava_lab.session.answer import Answer, Timing
from illava_lab.session.asked import at_least_one, check_count, check_flag, check_question
from illava_lab.session.generation import ALWAYS, CHOOSING, check_defaults, check_given
from illava_lab.session.lab import Lab, check_lab, read_shown
from illava_lab.session.prompt import schedule_for
from illava_lab.session.room import check_answer, check_tokens, positions_of
from illava_lab.session.words import plain
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


@dataclass(frozen=True, eq=False)
class _Said:
    """All that a conversation goes on from: made when a turn has ended well, and not changed after that.

    Attributes:
        tokens: (1, S) what was asked and answered.
        cache: what the model remembers of them.
        axes: what Qwen-VL keeps on the model between calls: how far its positions are from the number of tokens.
        saved: positions that the prompt takes less than it has tokens, because images have rows and columns of them.
    """

    tokens: Tensor
    cache: Any
    axes: Any
    saved: int


class Chat:
    """A conversation. Make one with `chat`; it lives as long as that block.

    Attributes:
        trace: what happened to the images; they were reduced once, at the first question.
        strategy, budget: what reduced them, and what it was given, in words.
    """

    def __init__(
        self, lab: Lab, images: Sequence[ImageOrVideo], trace: Trace, strategy: str = "none", budget: str = "keep 1"
    ) -> None:
        self.trace, self.strategy, self.budget = trace, strategy, budget
        self._lab, self._images, self._over, self._answering = lab, images, False, False
        self._said: _Said | None = None

    @property
    def tokens(self) -> Tensor | None:
        """(1, S) all tokens so far, or None."""
        return None if self._said is None else self._said.tokens

    def say(
        self,
        question: str,
        *,
        max_new_tokens: int = 64,
        stream: Callable[[str], object] | None = None,
        **generation: Any,
    ) -> Answer:
        """Ask the next question.

        A turn counts when it has ended well. One that is interrupted, whether by Ctrl-C, by an exception of `stream` or
        by anything else, leaves the conversation as if its question had not been asked.

        Args:
            max_new_tokens: where the answer is cut off.
            stream: called with each piece of the answer as soon as it is there, for example
                ``lambda piece: print(piece, end="")``.
            generation: further arguments of `generate` that say which token comes next, for example
                ``do_sample=True, temperature=0.7``.

        Raises:
            LabError: an empty question; a conversation or an answer for which the model has too few positions; an
                argument of `generate` with which a conversation cannot go on, such as ``use_cache=False``; a question
                asked while an answer is being made; or the block has been left.
        """
        check_given(generation)
        max_new_tokens = check_count("max_new_tokens", max_new_tokens)
        check_question(question)
        if stream is not None and not callable(stream):
            raise LabError(f"stream must be a function that takes a piece of text, got {stream!r}")
        before = said = None
        try:
            with one_at_a_time(self):
                if self._over:
                    raise LabError("this conversation ended with its `with` block; start another one")
                if self._answering:
                    raise LabError("this conversation is in the middle of an answer; ask when that has ended")
                self._answering, before = True, self._said
                try:
                    answer, said = self._turn(question, max_new_tokens, stream, generation)
                    self._said = said
                finally:
                    self._answering = False
            return answer
        except BaseException:
            if said is not None and self._said is said:  # an interrupt behind the answer, which nobody saw
                self._said = before
            raise

    def _turn(
        self, question: str, max_new_tokens: int, stream: Callable[[str], object] | None, generation: dict[str, Any]
    ) -> tuple[Answer, _Said]:
        """The answer, and what the conversation goes on from then."""
        model, tokenizer, before = self._lab.model, self._lab.processor.tokenizer, self._said
        if before is None:
            inputs = self._lab.inputs([self._images], [question])
            saved = inputs["input_ids"].shape[1] - positions_of(model, inputs)
        else:
            ids = torch.cat([before.tokens, self._next(question, before.tokens)], dim=1)
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            saved = before.saved
        asked = inputs["input_ids"].shape[1]
        check_defaults(model)
        check_answer(model, asked - saved, max_new_tokens)
        if before is not None:
            inputs["past_key_values"] = _fork(before.cache)
            _set_axes(model, before.axes)
        pieces = _Pieces(tokenizer, stream)
        start = time.perf_counter()
        with gradients_kept():
            out = model.generate(
                **inputs,
                **{**ALWAYS, "do_sample": False, **{name: generation[name] for name in generation if name in CHOOSING}},
                max_new_tokens=max_new_tokens,
                streamer=pieces,
                return_dict_in_generate=True,
            )
        new = out.sequences[0, asked:]
        first, last = pieces.times[1], pieces.times[-1]  # entry 0 is the prompt
        text = tokenizer.decode(new, skip_special_tokens=True).strip()
        timing = Timing(first - start, last - first, len(new))
        answer = Answer(text, self.trace, timing, strategy=self.strategy, budget=self.budget)
        return answer, _Said(out.sequences, out.past_key_values, _axes(model), saved)

    def _next(self, question: str, before: Tensor) -> Tensor:
        """(1, T) what follows the tokens `before` (1, S), which end with an answer, up to the place of the next one."""
        processor = self._lab.processor
        said = [("user", "?"), ("assistant", _ANSWER), ("user", plain(processor, question.strip()))]
        messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
        prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        after = prompt.split(_ANSWER, 1)[1]
        with one_at_a_time(processor):
            ids: Tensor = processor.tokenizer(after, add_special_tokens=False, return_tensors="pt").input_ids
        check_tokens(self._lab.model, ids)
        ids = ids.to(before.device)
        # The model has often ended its answer itself.
        return ids[:, 1:] if ids[0, 0] == before[0, -1] else ids


def _fork(cache: Any) -> Any:
    """A cache that goes on from another one and leaves it as it is; keys and values are not copied.

    They need not be: a dynamic cache puts longer tensors in the place of the ones that it has.
    """
    held = [held for layer in cache.layers for held in (layer.keys, layer.values)]
    return copy.deepcopy(cache, {id(tensor): tensor for tensor in held})


def _axes(model: Any) -> Any:
    return getattr(model.model, "rope_deltas", None)


def _set_axes(model: Any, axes: Any) -> None:
    """Other prompts that the model answered in between have left theirs."""
    if axes is not None:
        model.model.rope_deltas = axes


@block
def chat(
    lab: Lab,
    image: ImageOrVideo | Sequence[ImageOrVideo],
    strategy: AnyStrategy | None = None,
    keep: float | None = None,
    *,
    flops: float | None = None,
    preset: str | None = None,
    schedule: Plan | None = None,
    graphs: bool = False,
) -> Iterator[Chat]:
    """A conversation about an image, or several, with visual tokens reduced.

    While the block is open, calls of other threads to the same model wait: it carries one strategy at a time.

    >>> with il.chat(lab, "photo.jpg", "illava", keep=0.5) as talk:
    ...     talk.say("What is on the table?").text
    ...     talk.say("And beside it?").text

    Args:
        strategy, keep, flops, preset, schedule, graphs: as for `Lab.ask`; FLOPs are those of a short first question.

    Raises:
        LabError: as `Lab.ask`.
    """
    check_lab(lab)
    chosen, budget = choose(strategy, keep, flops, preset, schedule)
    check_flag("graphs", graphs)
    images = read_shown(at_least_one("image", image))
    with one_at_a_time(lab.model):
        inputs = {} if budget.flops is None else lab.inputs([images], ["?"])
        schedule = schedule_for(lab.model, chosen, budget, inputs)
        with attach(lab.model, chosen, schedule, graphs=graphs) as trace:
            talk = Chat(lab, images, trace, chosen.label, str(budget))
            try:
                yield talk
            finally:
                talk._over = True
