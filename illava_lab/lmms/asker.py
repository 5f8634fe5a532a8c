"""Answers to what a harness asks, with one strategy at one budget, batch by batch."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from illava_lab.hooks.attach import attach
from illava_lab.lmms.generation import Generation
from illava_lab.lmms.reading import messages_of
from illava_lab.lmms.requests import Answers, Request
from illava_lab.lmms.rounds import converse
from illava_lab.measuring.cost import Cost, cost
from illava_lab.method.strategy import Strategy
from illava_lab.models.video import Video
from illava_lab.schedules.budget import Budget
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.lab import Lab
from illava_lab.session.messages import Message, answer_messages, message_inputs
from illava_lab.session.prompt import schedule_for

Prompts = list[list[Message]]


@dataclass(eq=False)
class Asker:
    """Asks a lab.

    Attributes:
        lab, strategy, budget, graphs: what answers.
        batch_size: prompts at once.
        frames: taken of a video that is a file.
        answers: what is known already, and where new ones go.
        done: called with the number of requests after each batch.
        costs: task -> what its first document costs, if it shows something; filled where `counting`.
    """

    lab: Lab
    strategy: Strategy
    budget: Budget
    graphs: bool = False
    batch_size: int = 1
    frames: int = 8
    answers: Answers = field(default_factory=Answers)
    done: Callable[[int], object] = lambda count: None
    counting: bool = False
    costs: dict[str, Cost] = field(default_factory=dict)

    def single(self, requests: Sequence[Request]) -> list[str]:
        """Of each request its answer.

        Raises:
            LabError: as `messages_of` and `answer_messages`; or the strategy cannot reach its budget.
        """

        def ask(own: list[Request], prompts: Prompts, generation: Generation) -> list[str]:
            said = answer_messages(self.lab, prompts, generation.max_new_tokens, **generation.given)
            return [generation.cut(text) for text in said]

        return self._all(requests, ask, self.batch_size)

    def conversations(self, requests: Sequence[Request]) -> list[list[str]]:
        """Of each request its answers, one for each round that its task asks for.

        Raises:
            LabError: as `single`.
        """

        def ask(own: list[Request], prompts: Prompts, generation: Generation) -> list[list[str]]:
            return converse(self.lab, own, prompts, generation, self.frames)

        # Models with positions on several axes (Qwen-VL) hold one after the other.
        size = 1 if hasattr(self.lab.model.model, "get_rope_index") else self.batch_size
        return self._all(requests, ask, size, {"round_idx": 0, "previous_output": [], "previous_round_info": None})

    def _all(
        self, requests: Sequence[Request], ask: Callable[..., Any], size: int, first_round: dict[str, Any] | None = None
    ) -> list[Any]:
        out: dict[int, Any] = {}
        for task in dict.fromkeys(request.task for request in requests):
            todo = []
            for number, request in enumerate(requests):
                if request.task != task:
                    continue
                known = self.answers.get(request)
                if known is not None or request.padding:
                    out[number] = "" if known is None else known.text
                    self.done(1)
                else:
                    todo.append((number, request))
            example = next(request for request in requests if request.task == task)
            out |= self._task(task, example, todo, ask, size, first_round or {})
        return [out[number] for number in range(len(requests))]

    def _task(
        self,
        task: str,
        example: Request,
        todo: list[tuple[int, Request]],
        ask: Callable[..., Any],
        size: int,
        first_round: dict[str, Any],
    ) -> dict[int, Any]:
        schedule = self._schedule(task, example, first_round, bool(todo))
        out: dict[int, Any] = {}
        if not todo:
            return out
        with attach(self.lab.model, self.strategy, schedule, graphs=self.graphs):
            for own, prompts in self._batches(todo, size, first_round):
                start = time.perf_counter()
                asked = [request for _, request in own]
                said = ask(asked, prompts, asked[0].generation)
                seconds = (time.perf_counter() - start) / len(own)
                for (number, request), text in zip(own, said, strict=True):
                    self.answers.add(request, text, seconds)
                    out[number] = text
                self.done(len(own))
        return out

    def _schedule(self, task: str, example: Request, first_round: dict[str, Any], asked: bool) -> Schedule:
        """Where tokens are reduced in this task; also counts what that costs."""
        needs_prompt = self.budget.flops is not None
        count = self.counting and task not in self.costs
        inputs: dict[str, Any] = {}
        if count or (needs_prompt and asked):
            first = messages_of(_messages(example.first(**first_round)), self.frames)
            inputs, count = message_inputs(self.lab, [first]), count and any(message.shown for message in first)
        schedule = schedule_for(self.lab.model, self.strategy, self.budget, inputs) if asked or count else Schedule()
        if count:
            self.costs[task] = cost(self.lab.model, inputs, self.strategy, schedule)
        return schedule

    def _batches(
        self, todo: list[tuple[int, Request]], size: int, first_round: dict[str, Any]
    ) -> Iterator[tuple[list[tuple[int, Request]], Prompts]]:
        """What is asked at once: answered in the same way, and with videos of as many frames, as LLaVA-OneVision asks.

        Pictures are read when their batch comes.
        """
        alike: dict[str, list[tuple[int, Request]]] = {}
        for entry in todo:
            alike.setdefault(entry[1].generation.key, []).append(entry)
        for group in alike.values():
            for start in range(0, len(group), size):
                by_frames: dict[tuple[int, ...], tuple[list[tuple[int, Request]], Prompts]] = {}
                for entry in group[start : start + size]:
                    prompt = messages_of(_messages(entry[1].said(**first_round)), self.frames)
                    own, prompts = by_frames.setdefault(_frames(prompt), ([], []))
                    own.append(entry)
                    prompts.append(prompt)
                yield from by_frames.values()


def _messages(said: Any) -> Any:
    """The messages of what a task answers for a round, where others stand beside them."""
    return said[0] if isinstance(said, tuple) else said


def _frames(prompt: Sequence[Message]) -> tuple[int, ...]:
    return tuple(len(one) for message in prompt for one in message.shown if isinstance(one, Video))
