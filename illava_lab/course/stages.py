"""Chapter 03: one method in the encoder, in the LLM or in both, and what that costs and loses."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd
from matplotlib.figure import Figure

from illava_lab.hooks.attach import attach
from illava_lab.hooks.compat import cache_of
from illava_lab.measuring.converse import converse
from illava_lab.measuring.predict import correct, predict
from illava_lab.measuring.statistics import Difference, paired_difference
from illava_lab.measuring.tasks import Task
from illava_lab.method.registry import get_strategy, make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Stage
from illava_lab.models.images import ImageLike
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.lab import Lab
from illava_lab.views.colors import BARE, GREY, MARKERS, looks
from illava_lab.views.colors import STAGES as COLORS
from illava_lab.widgets import forecast

TEXT = 10  # tokens of a prompt of the embedded model beside the visual ones
STAGES: dict[str, tuple[Stage, ...]] = {"encoder only": ("encoder",), "LLM only": ("llm",), "both": ("encoder", "llm")}

ILLaVA = get_strategy("illava")


class EncoderOnly(ILLaVA):  # type: ignore[misc, valid-type]  # a class that the registry knows
    """iLLaVA in the encoder."""

    name, home = "encoder only", STAGES["encoder only"]


class LLMOnly(ILLaVA):  # type: ignore[misc, valid-type]
    """iLLaVA in the LLM."""

    name, home = "LLM only", STAGES["LLM only"]


class Both(ILLaVA):  # type: ignore[misc, valid-type]
    """iLLaVA in both."""

    name, home = "both", STAGES["both"]


class RandomLLM(get_strategy("random")):  # type: ignore[misc]
    """Random pruning in the LLM, at iLLaVA's layer."""

    name, home = "random in the LLM", ("llm",)


def shares_of(share: float) -> int:
    """Which of the chapter's four answers a share of the work is: under a tenth, a third, half, nearly all."""
    return 0 if share < 0.1 else 1 if share < 0.42 else 2 if share < 0.7 else 3


# --------------------------------------------------------------------------------------------- figures
def plans_figure(lab: Lab, keep: float) -> Figure:
    """Tokens that enter each layer for iLLaVA in the encoder, in the LLM and in both, beside the bare model's."""
    figure = Figure(figsize=(8.8, 2.9), layout="constrained")
    for axes, (name, where) in zip(figure.subplots(1, 3, sharey=True), STAGES.items(), strict=True):
        schedule = Schedule.for_budget("illava", lab.model, keep=keep, stages=where)
        plan = forecast(lab.model, schedule, text_tokens=TEXT)
        bars = [(f"{stage[0].upper()}{i}", n, stage) for stage, row in plan.tokens.items() for i, n in enumerate(row)]
        names = [label for label, _, _ in bars]
        axes.bar(names, plan.patches, color=BARE)
        axes.bar(names, [n for _, n, _ in bars], color=[COLORS[stage] for _, _, stage in bars])
        axes.set_title(f"{name}: FLOPs {sum(plan.flops.values()):.2f}", fontsize=11)
        axes.tick_params(axis="x", labelsize=7)
        axes.spines[["top", "right"]].set_visible(False)
    figure.axes[0].set_ylabel("visual tokens that enter")
    return figure


def cost_figure(lab: Lab, floor: float) -> Figure:
    """FLOPs against the tokens left, for the same three.

    Args:
        floor: the least that a method of the LLM can reach, drawn as a line.
    """
    figure = Figure(figsize=(6.8, 3.4), layout="constrained")
    axes = figure.add_subplot(
        xlabel="visual tokens that enter the last LLM layer", ylabel="FLOPs, share of the bare model", ylim=(0, 1.03)
    )
    drawn = looks(["random", *STAGES])  # as beside random in the trade-off below
    for name, where in STAGES.items():
        plans = [Schedule.for_budget("illava", lab.model, keep=k / 20, stages=where) for k in range(1, 21)]
        costs = [forecast(lab.model, plan, text_tokens=TEXT) for plan in plans]
        left, work = [c.tokens["llm"][-1] for c in costs], [sum(c.flops.values()) for c in costs]
        axes.plot(left, work, color=drawn[name].color, marker=MARKERS[drawn[name].marker], markersize=5, label=name)
    axes.axhline(floor, color=GREY, linestyle="--", linewidth=1, label="bound of LLM only")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


# --------------------------------------------------------------------------------------------- what is lost
def cache_lengths(lab: Lab, image: ImageLike, question: str, schedule: Schedule) -> list[int]:
    """Keys that the cache of each LLM layer holds after the prefill, with iLLaVA attached."""
    with attach(lab.model, "illava", schedule):
        out = lab.model(**lab.inputs([image], [question]), use_cache=True)
    return [layer.keys.shape[2] for layer in cache_of(out).layers]


def turns(lab: Lab, task: Task, plans: Mapping[str, tuple[type[Strategy], Schedule]]) -> pd.DataFrame:
    """Conversations about each picture of a task, all of its questions one after the other.

    Returns:
        A row for each plan, first "nothing cut": right answers to the first question of each picture, and to the later
        ones, of those that the bare model gets right (column "of").
    """
    first = (task.samples.groupby("image_id", sort=False).cumcount() == 0).to_numpy()
    bare = correct(converse(lab, task), task)
    rows = {"nothing cut": (int(bare[first].sum()), int(bare[~first].sum()))}
    for name, (strategy, schedule) in plans.items():
        right = correct(converse(lab, task, strategy, schedule=schedule), task)
        rows[name] = (int(right[first].sum()), int((right & bare)[~first].sum()))
    table = pd.DataFrame(rows, index=["first", "later"]).T
    return table.assign(of=int(bare[~first].sum()))


def schedules_table(
    lab: Lab, task: Task, schedules: Mapping[str, Schedule], method: str, control: str, pair: tuple[str, str]
) -> tuple[pd.DataFrame, Difference]:
    """Accuracy of two methods under the same schedules, and the difference between two schedules with the first.

    Returns:
        A row for each schedule (FLOPs without scoring, tokens left, percent right with either method), and the
        accuracy under `pair[0]` minus that under `pair[1]`.
    """
    rows, right = {}, {}
    for name, schedule in schedules.items():
        plan = forecast(lab.model, schedule, text_tokens=TEXT)
        rows[name] = {"FLOPs": round(sum(plan.flops.values()), 2), "tokens left": plan.tokens["llm"][-1]}
        for strategy in (method, control):
            with attach(lab.model, make_strategy(strategy), schedule):
                right[name, strategy] = correct(predict(lab, task), task)
            rows[name][f"{strategy}, % right"] = round(100 * float(right[name, strategy].mean()), 1)
    images = task.samples["image_id"].tolist()
    return pd.DataFrame(rows).T.astype({"tokens left": int}), paired_difference(
        right[pair[0], method], right[pair[1], method], images
    )
