"""A conversation about images: several questions on one cache, in which the reduced images stay reduced."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from torch import Tensor
from transformers import TextStreamer

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.method.blocks import block
from illava_lab.models.video import ImageOrVideo
from illava_lab.schedules.budget import AnyStrategy, choose
from illava_lab.schedules.plan import Plan
from illava_lab.session.answer import Answer, Timing
from illava_lab.session.asked import at_least_one, check_count, check_flag, check_question
from illava_lab.session.generation import CHOOSING, check_given
from illava_lab.session.lab import Lab, check_lab, read_shown
from illava_lab.session.prompt import schedule_for
from illava_lab.session.turn import LONGEST, Said, new_tokens, next_answers, next_inputs, text_of
from illava_lab.trace.trace import Trace


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
    """

    def __init__(
        self, lab: Lab, images: Sequence[ImageOrVideo], trace: Trace, strategy: str = "none", budget: str = "keep 1"
    ) -> None:
        self.trace, self.strategy, self.budget = trace, strategy, budget
        self._lab, self._images, self._over, self._answering = lab, images, False, False
        self._said: Said | None = None

    @property
    def tokens(self) -> Tensor | None:
        """(1, S) all tokens so far, or None."""
        return None if self._said is None else self._said.tokens

    def say(
        self,
        question: str,
        *,
        max_new_tokens: int = LONGEST,
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
    ) -> tuple[Answer, Said]:
        """The answer, and what the conversation goes on from then."""
        lab, pieces = self._lab, _Pieces(self._lab.processor.tokenizer, stream)
        inputs = next_inputs(lab, [self._images], [question], self._said)
        start = time.perf_counter()
        chosen = {name: generation[name] for name in generation if name in CHOOSING}
        said = next_answers(lab, inputs, self._said, max_new_tokens, **chosen, streamer=pieces)
        (new,) = new_tokens(said, inputs)
        first, last = pieces.times[1], pieces.times[-1]  # entry 0 is the prompt
        timing = Timing(first - start, last - first, len(new))
        return Answer(text_of(lab, new), self.trace, timing, strategy=self.strategy, budget=self.budget), said


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
