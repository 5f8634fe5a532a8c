"""The automatic checks of chapter 03: Amdahl's law, the tokens of a schedule, and a schedule of one's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from illava_lab.course.exercises import exercise, need, number
from illava_lab.errors import LabError
from illava_lab.models.families import describe
from illava_lab.schedules.schedule import Schedule
from illava_lab.widgets.schedule_designer import forecast

FLOPS, LEFT, TEXT = 0.55, 80, 10  # the task of `check_schedule`


@exercise
def check_amdahl(function: Callable[[float, float], float]) -> str:
    """Speed-up of the whole when a part of it, a share of the time, gets faster by a factor."""
    need(
        abs(number(function(0.0, 10.0)) - 1) < 1e-9,
        "a part that takes no time cannot speed anything up: share 0 must give 1",
    )
    got = number(function(1.0, 10.0))
    need(
        abs(got - 10) < 1e-9,
        f"if the part is everything (share 1), the whole gets faster by the same factor, 10; yours by {got:.3g}",
    )
    got = number(function(0.5, 1e12))
    need(
        got < 2.001,
        "half of the work stays as it is, so no factor can make the whole more than twice as fast; yours is "
        f"{got:.3g} times as fast",
    )
    got = number(function(0.5, 2.0))
    need(
        got > 1,
        f"the whole gets faster, not slower: a speed-up is old time over new time, yours is {got:.3g} (is it the time "
        "that is left?)",
    )
    need(
        abs(got - 4 / 3) < 1e-6,
        f"half of the work at double speed leaves 0.5 + 0.25 of the time, so 1.333; yours is {got:.4g}",
    )
    return "what is not touched bounds the whole: 1 / (1 - share)."


@exercise
def check_counts(function: Callable[[Mapping[int, float], int, int], Any]) -> str:
    """Encoder: {layer: keep}, patches, depth -> the number of tokens that enter each layer."""
    got = function({1: 0.5}, 8, 4)
    need(
        got is not None and got is not ..., "nothing is returned yet; a list of numbers is expected, one for each layer"
    )
    got = [float(n) for n in got]
    need(len(got) == 4, f"4 layers have 4 numbers, yours are {len(got)}: what leaves the last layer enters none")
    need(got[1] == 8, f"layer 1 reduces inside itself, so 8 tokens still enter it; yours has {got[1]:g}")
    need(got[2] == 4, f"after layer 1 kept half of 8, 4 enter layer 2; yours has {got[2]:g}")
    need(got[3] == 4, f"nothing comes back: 4 enter layer 3 too; yours has {got[3]:g}")
    twice = [float(n) for n in function({0: 0.5, 2: 0.5}, 8, 4)]
    need(
        twice == [8, 4, 4, 2],
        f"a fraction is of the tokens that *enter* the layer: 8, 4, 4, 2; yours are {[f'{n:g}' for n in twice]}",
    )
    odd = [float(n) for n in function({0: 0.7}, 9, 2)]
    need(odd == [9, 6], f"0.7 of 9 is 9 - round(2.7) = 6 whole tokens; yours has {odd[1]:g}")
    return "a cut shows in the layer after it, and the next one works on what is left."


@exercise
def check_schedule(schedule: Schedule, model: nn.Module) -> str:
    """Both stages reduce, at most 0.55 of the FLOPs, and at least 80 tokens enter the last LLM layer."""
    need(
        isinstance(schedule, Schedule),
        f"a schedule such as il.Schedule(encoder={{2: 0.8}}, llm={{2: 0.7}}) is expected, got {schedule!r}",
    )
    anatomy = describe(model)
    for stage in ("encoder", "llm"):
        first = 1 if stage == "llm" else 0
        wrong = [layer for layer in schedule.plan(stage) if not first <= layer < anatomy.depth(stage)]
        need(
            not wrong,
            f"{stage} layers that can reduce are {first} to {anatomy.depth(stage) - 1}, yours has {wrong[:1]}",
        )
        try:
            counts = schedule.tokens(anatomy)[stage]
        except LabError as error:
            need(False, str(error))
        need(counts[-1] < counts[0], f"both stages must reduce; your {stage} does not")
    plan = forecast(model, schedule, text_tokens=TEXT)
    left, share = plan.tokens["llm"][-1], sum(plan.flops.values())
    need(left >= LEFT, f"{left} tokens enter the last LLM layer; at least {LEFT} are asked for, so cut less")
    late = (
        "; cut earlier: a token that goes in encoder layer 0 saves work in every layer after it"
        if left < 2 * LEFT
        else ""
    )
    need(share <= FLOPS, f"it costs {share:.2f} of the FLOPs; at most {FLOPS} are asked for{late}")
    costs = f"{share:.2f} of the FLOPs with {left} tokens in the last layer"
    return f"{costs}. What a cheap schedule is worth, only a measurement says."
