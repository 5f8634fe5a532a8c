"""One row of `bench`: a strategy at a budget, on a batch of prompts that are alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.hooks.graphs.store import Graphs, graphs_of
from illava_lab.measuring import by_hand, measure
from illava_lab.measuring.clock import Span, busy
from illava_lab.measuring.largest import largest_batch
from illava_lab.measuring.limit import Limit
from illava_lab.measuring.rows import Row
from illava_lab.measuring.speed import WARM_UP, Configuration, answer_seconds
from illava_lab.models.families import describe
from illava_lab.models.video import Video
from illava_lab.schedules.flops import prefill_flops
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import as_list
from illava_lab.session.lab import Lab
from illava_lab.session.prompt import Inputs
from illava_lab.session.room import check_answer, positions_of

BARE = "bare"
QUESTION = "What is shown in this picture?"
STAGE_ROUNDS = 3


@dataclass(frozen=True)
class Settings:
    """What all rows of a table have in common.

    Attributes:
        rounds: how often each row is timed.
        new_tokens: decoding steps after each prefill.
        answers: lengths of answers that are timed from end to end.
        graphs: whether strategies are attached with captured graphs.
        largest: up to which batch the largest that fits is looked for; None for not at all.
    """

    rounds: int
    new_tokens: int
    answers: tuple[int, ...]
    graphs: bool
    largest: int | None


@dataclass(frozen=True, eq=False)
class Case:
    """One row to measure.

    Attributes:
        image: what each prompt shows; batch: how many prompts; length: tokens of text in each.
    """

    lab: Lab
    image: Any
    batch: int
    length: int
    row: Row
    settings: Settings

    def measure(self) -> dict[str, Any]:
        """The columns of the row.

        Raises:
            Exception: whatever the strategy raises, or that there is too little memory.
        """
        model, largest = self.lab.model, self.settings.largest
        inputs, single = (batch_of(self.lab, self.image, batch, self.length) for batch in (self.batch, 1))
        configuration = None if self.row.name == BARE else (self.row.strategy, self.row.planned)
        out = self._times(inputs, configuration) | self._answers(inputs, configuration)
        out |= self._memory(inputs, configuration) | self._apart(inputs, configuration) | self._cost(single)
        if largest is not None:
            self._forget_graphs()
            out["largest_batch"] = largest_batch(model, single, configuration, largest)
        return out

    def _times(self, inputs: Inputs, configuration: Configuration) -> dict[str, float]:
        """The bare model, both limits and the row side by side, as far as they are not the same."""
        schedule, settings = self.row.planned, self.settings
        side_by_side: dict[str, Any] = {BARE: None}
        if schedule != Schedule() and schedule.image is None:
            side_by_side["limit"] = (Limit(), schedule)
        hand = self._by_hand(inputs)
        if hand is not None:
            side_by_side["hand"] = hand
        if configuration is not None:
            side_by_side["own"] = configuration
        measured = measure.speeds(
            self.lab.model, inputs, list(side_by_side.values()), rounds=settings.rounds,
            new_tokens=settings.new_tokens, graphs=settings.graphs,
        )  # fmt: skip
        speeds = dict(zip(side_by_side, measured, strict=True))
        bare = speeds[BARE]
        own = speeds.get("own", bare)
        if isinstance(own, Exception):
            raise own
        out = _spans("prefill", own.spans) | _spans("decode", own.steps)
        if isinstance(bare, measure.Speed):  # a batch may fit only when it is reduced
            out |= _with_spread("prefill_ratio", own.prefill, bare.prefill)
            out |= _with_spread("decode_ratio", own.decode, bare.decode)
        limit = speeds.get("limit", bare if schedule == Schedule() else None)
        if isinstance(limit, measure.Speed):
            out |= _with_spread("efficiency", limit.prefill, own.prefill)
        if isinstance(by := speeds.get("hand"), measure.Speed):
            out |= _with_spread("over_hand", own.prefill, by.prefill)
        whole = out["prefill_ms"] + settings.new_tokens * out["decode_ms"]
        return out | {"images_per_second": self._images / whole * 1e3}

    def _by_hand(self, inputs: Inputs) -> by_hand.Prefill | None:
        """The loop by hand, as a graph where the strategy is one; None where there is none."""
        try:
            loop = by_hand.prefill(self.lab.model, inputs, self.row.strategy, self.row.planned)
            return by_hand.captured(loop) if self._captured else loop
        except (LabError, RuntimeError):  # too little memory, or what cannot be captured: the row itself may go on
            return None

    def _answers(self, inputs: Inputs, configuration: Configuration) -> dict[str, float]:
        """Images per second with answers of several lengths, as far as the model has room for them."""
        model, taken = self.lab.model, positions_of(self.lab.model, inputs)
        lengths = [length for length in self.settings.answers if _has_room(model, taken, length)]
        seconds = answer_seconds(model, inputs, configuration, lengths, self.settings.graphs) if lengths else []
        return {name: self._images / took for name, took in zip(answer_columns(lengths), seconds, strict=True)}

    def _memory(self, inputs: Inputs, configuration: Configuration) -> dict[str, float]:
        """Bytes, what graphs hold included."""
        model = self.lab.model
        self._forget_graphs()
        with measure.attached(model, configuration, self.settings.graphs):
            if self._captured:
                for _ in range(WARM_UP):
                    measure.prefill(model, inputs)
            cache_bytes, peak_bytes = measure.memory(model, inputs)
        held = self._graphs.memory if self._graphs is not None else 0
        return {"cache_bytes": cache_bytes, "peak_bytes": peak_bytes + held}

    def _apart(self, inputs: Inputs, configuration: Configuration) -> dict[str, float]:
        """How the time of a prefill splits, and how long the device works on it.

        What is captured runs without the hooks that read the clock, and a device that replays has no gaps.
        """
        if self._captured:
            return {}
        model, rounds = self.lab.model, min(STAGE_ROUNDS, self.settings.rounds)
        with measure.attached(model, configuration):
            stages = measure.stage_seconds(model, inputs, rounds, configuration and configuration[0])
            worked = busy(lambda: measure.prefill(model, inputs), inputs["input_ids"].device)
        return {f"{name}_ms": seconds * 1e3 for name, seconds in stages.items()} | {"busy_ms": worked * 1e3}

    @property
    def _captured(self) -> bool:
        return self.settings.graphs and self.lab.model.device.type == "cuda"

    @property
    def _graphs(self) -> Graphs | None:
        """Those of the model; None where nothing is captured."""
        return graphs_of(describe(self.lab.model)) if self._captured else None

    def _forget_graphs(self) -> None:
        """Give back what earlier rows, and the limit of this one, have captured."""
        if self._graphs is not None:
            self._graphs.forget()

    def _cost(self, single: Inputs) -> dict[str, float]:
        """What needs no clock: tokens, and FLOPs as torch counts them and by the closed form."""
        model, configuration = self.lab.model, (self.row.strategy, self.row.planned)
        with attach(model, *configuration) as trace:
            counted = measure.counted_flops(model, single)
            tokens = measure.mean_tokens(model, self.row.planned, trace.layout())
        formula = prefill_flops(model, *configuration, text_tokens=self.length, trace=trace)
        return {**tokens, "prefill_flops": counted, "prefill_flops_formula": formula}

    @property
    def _images(self) -> int:
        """Images in the batch; every frame of a video counts."""
        shown = as_list(self.image)
        return self.batch * sum(len(one) if isinstance(one, Video) else 1 for one in shown)


def answer_columns(lengths: Sequence[int]) -> list[str]:
    """Names of the columns of `answers`."""
    return [f"images_per_second_{length}" for length in lengths]


def _has_room(model: Any, taken: int, length: int) -> bool:
    try:
        check_answer(model, taken, length)
    except LabError:
        return False
    return True


def _spans(kind: str, spans: Sequence[Span]) -> dict[str, float]:
    """Milliseconds of the prefill or of a step: in all, of the host, and of the device."""
    out: dict[str, float] = {}
    for name, part in ((f"{kind}_ms", "wall"), (f"{kind}_host_ms", "host"), (f"{kind}_device_ms", "device")):
        out |= _with_spread(name, [getattr(span, part) for span in spans], [1e-3] * len(spans))
    return out


def _with_spread(name: str, times: Sequence[float], baseline: Sequence[float]) -> dict[str, float]:
    found = measure.ratio(times, baseline)
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def batch_of(lab: Lab, image: Any, batch: int, length: int) -> Inputs:
    """Model inputs of a batch of equal prompts, whose text is `length` tokens long.

    Raises:
        LabError: the shortest prompt is longer.
    """
    inputs = lab.inputs([image] * batch, [QUESTION] * batch)
    missing = length - measure.text_tokens(lab.model, inputs)
    check_answer(lab.model, positions_of(lab.model, inputs) + max(0, missing), 1)
    if missing < 0:
        inputs = lab.inputs([image] * batch, ["?"] * batch)
        missing = length - measure.text_tokens(lab.model, inputs)
    if missing < 0:
        raise LabError(f"text_tokens must be at least {length - missing}, the prompt around a question; got {length}")
    shape = inputs["input_ids"].shape
    # The last token once more, as often as needed: what the text says is nothing to the clock.
    return {
        name: torch.cat([value, value[:, -1:].expand(-1, missing)], dim=1) if value.shape == shape else value
        for name, value in inputs.items()
    }
