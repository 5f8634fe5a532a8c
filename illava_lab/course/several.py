"""Chapter 08: several pictures and films; what a prompt holds, what is left of each frame, and which questions lose."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from illava_lab.course.paired import tidy
from illava_lab.measuring import measure
from illava_lab.measuring.difference import answered_right
from illava_lab.measuring.rows import BASELINE
from illava_lab.measuring.statistics import paired_difference
from illava_lab.measuring.tasks import Task
from illava_lab.models.families import describe
from illava_lab.models.video import Video
from illava_lab.session.answer import Answer
from illava_lab.session.lab import Lab
from illava_lab.trace.sources import Sources
from illava_lab.views.colors import GREY, MARKERS, PINK, SKY, STAGES, look
from illava_lab.views.pictures import CELL, in_a_row
from illava_lab.views.seen import View, seen_views
from illava_lab.views.words import as_label

Shown = Image.Image | Video | list[Image.Image]
SIDE = 0.82  # inches of a frame
TEXT, EDGE, MELTED = "#333333", (255, 255, 255), np.array((0, 114, 178))


# --------------------------------------------------------------------------------------------- what a prompt holds
def prompts_table(lab: Lab, prompts: Mapping[str, tuple[Shown, str]]) -> pd.DataFrame:
    """A row for each prompt: what the encoder sees and the LLM gets, and what share of the FLOPs each of them takes."""
    rows = {}
    for name, (shown, question) in prompts.items():
        inputs = lab.inputs([shown], [question])
        layouts, text = measure.layouts(lab.model, inputs), measure.text_tokens(lab.model, inputs)
        parts = measure.flops_by_layer(lab.model, text_tokens=text, layouts=layouts)
        total = sum(map(sum, parts.values()))
        rows[name] = {
            "encoder rows": sum(layout.patches[0] for layout in layouts),
            "patches": sum(len(layout.boxes) for layout in layouts),
            "visual tokens in the LLM": sum(layout.tokens for layout in layouts),
            "other tokens": inputs["input_ids"].shape[1] - sum(layout.tokens for layout in layouts),
            "encoder": sum(parts["patches"] + parts["encoder"]) / total,
            "LLM": sum(parts["llm"] + parts["head"]) / total,
            "GFLOPs": total / 1e9,
        }
    return pd.DataFrame(rows).T


def prompts_figure(lab: Lab, prompts: Mapping[str, tuple[Shown, str]]) -> Figure:
    """For each prompt what is seen, its tokens in order (visual ones in two colours in turn), and its work by part."""
    table = prompts_table(lab, prompts)
    figure = Figure(figsize=(9.4, 1.75 * len(prompts)), layout="constrained")
    longest = max(lab.inputs([shown], [question])["input_ids"].shape[1] for shown, question in prompts.values())
    rows = figure.subplots(2 * len(prompts), 2, width_ratios=[4, 1], height_ratios=[3, 1] * len(prompts))
    for number, (name, (shown, question)) in enumerate(prompts.items()):
        inputs = lab.inputs([shown], [question])
        (above, right), (strip, empty) = rows[2 * number : 2 * number + 2]
        pictures = [view.picture for view in _views(lab, shown, inputs)]
        above.imshow(in_a_row(pictures))
        above.set_title(as_label(f"{name}: “{question}”"), loc="left", fontsize=10)
        for axes in (above, strip, empty):
            axes.set_axis_off()
        colors = _strip(lab, inputs)
        strip.bar(range(len(colors)), 1, width=1.0, color=colors)
        strip.set_xlim(-0.5, longest - 0.5)
        parts = ["LLM", "encoder"]
        right.barh(parts, 100 * table.loc[name, parts].astype(float), color=[STAGES["llm"], STAGES["encoder"]])
        right.set_xlim(0, 100)
        right.set_title("% of the FLOPs", fontsize=9)
        right.tick_params(labelsize=8)
        tidy(right)
    return figure


def _strip(lab: Lab, inputs: dict[str, Tensor]) -> list[str]:
    """A colour for each token of a prompt, in order: one for every other picture or frame, dark for text, grey for line
    ends."""
    placeholders, own, before = set(describe(lab.model).placeholders.values()), [], 0
    for layout in measure.layouts(lab.model, inputs):
        each, count = layout.tokens // layout.parts, -1
        for marker in layout.marker.tolist():
            count += not marker
            own.append(GREY if marker else (SKY, PINK)[(before + count // each) % 2])
        before += layout.parts
    left = iter(own)
    return [next(left) if token in placeholders else TEXT for token in inputs["input_ids"][0].tolist()]


def _views(lab: Lab, shown: Shown, inputs: dict[str, Tensor]) -> list[View]:
    return seen_views(lab, shown if isinstance(shown, list) else [shown], measure.layouts(lab.model, inputs), inputs)


# --------------------------------------------------------------------------------------------- what is left
def left_in_frames(sources: Sources) -> list[int]:
    """Tokens that stand in each frame of a film, of what is left of it."""
    frame = sources.anchor // (sources.grid[0] * sources.grid[1])
    return torch.bincount(frame, minlength=sources.crops).tolist()


def frames_figure(lab: Lab, film: Video, question: str, answers: Sequence[Answer]) -> Figure:
    """A row of frames for each answer: dark where nothing is left, blue where another frame's token has taken it in.

    Lines run between patches that belong to different tokens; above each frame is how many tokens stand in it.
    """
    seen = [view.picture for view in _views(lab, film, lab.inputs([film], [question]))]
    figure = Figure(figsize=(0.3 + SIDE * len(seen), 0.5 + (SIDE + 0.3) * len(answers)), layout="constrained")
    for row, answer in zip(figure.subplots(len(answers), len(seen), squeeze=False), answers, strict=True):
        sources = answer.trace.sources(0)
        for axes, picture, number, count in zip(row, seen, range(len(seen)), left_in_frames(sources), strict=True):
            axes.imshow(_fate(picture, sources, number))
            axes.set_title(str(count), fontsize=9, pad=2)
            axes.set_xticks([])
            axes.set_yticks([])
        row[0].set_ylabel(as_label(f"{answer.strategy}\n“{answer.text}”"), fontsize=9)
    figure.suptitle(as_label(f"{question} Tokens left in each frame"), fontsize=11)
    return figure


def _fate(picture: Image.Image, sources: Sources, frame: int) -> NDArray[np.uint8]:
    """One frame under what is left of it."""
    rows, columns = sources.grid
    first, each = frame * rows * columns, rows * columns
    inside = (sources.anchor >= first) & (sources.anchor < first + each)
    share = sources.weights[:, first : first + each].abs()
    here = (share[inside] > 0).any(0).numpy().reshape(rows, columns)
    there = (share[~inside] > 0).any(0).numpy().reshape(rows, columns) & ~here
    wide = np.asarray(picture.convert("RGB").resize((columns * CELL, rows * CELL))).astype(float)
    grey = np.broadcast_to(wide.mean(-1, keepdims=True), wide.shape)
    here, there = (np.kron(part, np.ones((CELL, CELL), bool))[..., None] for part in (here, there))
    out = np.where(here, wide, np.where(there, 0.45 * grey + 0.55 * MELTED, 0.15 * grey + 60))
    owner = np.kron(sources.owner()[first : first + each].numpy().reshape(rows, columns), np.ones((CELL, CELL), int))
    edge = np.zeros(owner.shape, bool)
    edge[1:] |= owner[1:] != owner[:-1]
    edge[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    out[edge & here[..., 0]] = EDGE
    return np.asarray(out.round().clip(0, 255).astype(np.uint8))


# --------------------------------------------------------------------------------------------- which questions lose
def kinds_table(table: pd.DataFrame, task: Task, first: str, second: str) -> pd.DataFrame:
    """For each kind of question how many there are, and the first row's accuracy minus the second's in points, with its
    paired 95 % interval.

    Args:
        table: from `il.compare` on this task.
    """
    one, other = answered_right(table, first), answered_right(table, second)
    rows = {}
    for kind, own in task.samples.reset_index(drop=True).groupby("category").groups.items():
        images = task.samples["image_id"].iloc[own].tolist()
        found = paired_difference(one[own], other[own], images)
        rows[kind] = {"questions": len(own)} | {
            name: 100 * part for name, part in zip(("points", "low", "high"), found, strict=True)
        }
    return pd.DataFrame(rows).T.astype({"questions": int})


def losses_of_groups(
    table: pd.DataFrame, task: Task, row: str, groups: Mapping[str, Sequence[str]], bare: str = BASELINE
) -> pd.DataFrame:
    """The same for groups of kinds, such as {"one picture": ("color", "word")}: a row's loss to the bare model."""
    kinds = {kind: name for name, members in groups.items() for kind in members}
    samples = task.samples.assign(category=task.samples["category"].map(kinds))
    return kinds_table(table, replace(task, samples=samples), row, bare).reindex(list(groups))


def kinds_figure(table: pd.DataFrame, task: Task, methods: Sequence[str], bare: str = BASELINE) -> Figure:
    """A panel for each method: what it loses to the bare model by kind of question, with paired 95 % intervals."""
    figure = Figure(figsize=(9.4, 3.1), layout="constrained")
    panels = figure.subplots(1, len(methods), sharex=True, sharey=True, squeeze=False)[0]
    for axes, method in zip(panels, methods, strict=True):
        found = kinds_table(table, task, method, bare).iloc[::-1]
        _bars(axes, found, method)
        axes.set_title(as_label(method), fontsize=9)
    figure.supxlabel("points, minus the bare model; bars: paired 95 % interval", fontsize=9)
    return figure


def _bars(axes: Axes, found: pd.DataFrame, method: str) -> None:
    own = look(method.partition(" ")[0])
    axes.axvline(0, color=GREY, linestyle="--", linewidth=1.2)
    ends = [(found["points"] - found["low"]).clip(lower=0), (found["high"] - found["points"]).clip(lower=0)]
    names = [f"{kind} ({count})" for kind, count in found["questions"].items()]
    axes.errorbar(found["points"], range(len(found)), xerr=ends, fmt=MARKERS[own.marker], color=own.color, capsize=3)
    axes.set_yticks(range(len(found)), names, fontsize=8)
    axes.tick_params(labelsize=8)
    tidy(axes)


def failure(
    lab: Lab, table: pd.DataFrame, task: Task, methods: Sequence[str], rival: str, kinds: Sequence[str], flops: float
) -> tuple[pd.Series, Answer, Answer]:
    """A question that the bare model and a rival answer right and a method does not, also when it is asked alone; and
    the answers of method and rival.

    Where there is none, the last one that was tried, or the task's first.

    Args:
        table: from `il.compare` on this task, with all of these at this share of the FLOPs.
        kinds: of question that are looked at.
    """
    rights = {name: answered_right(table, f"{name} FLOPs {flops:g}") for name in (*methods, rival)}
    wanted = task.samples["category"].isin(kinds).to_numpy() & answered_right(table, BASELINE) & rights[rival]
    lost = [(method, int(i)) for method in methods for i in np.flatnonzero(wanted & ~rights[method])]
    for method, i in lost or [(methods[0], 0)]:
        question = task.samples.iloc[i]
        shown = task.shown(question["image_id"])
        said, other = (lab.ask(shown, question["question"], name, flops=flops) for name in (method, rival))
        if other.text == question["answer"] != said.text:
            break
    return question, said, other


# --------------------------------------------------------------------------------------------- one budget for all
def left_of_each(answer: Answer) -> list[int]:
    """Tokens that are left of each picture of a prompt in the last LLM layer."""
    return [answer.trace.left(number) for number in range(answer.trace.images_per_row[0])]


def scores_of_each(answer: Answer) -> Tensor:
    """(I, N) what a method that scores gave the N tokens of each of I pictures at its first step in the LLM."""
    score = next(step.map.score for step in answer.trace.steps if step.stage == "llm")
    assert score is not None, "the method scores"
    return score


def one_list(scores: Tensor, total: int) -> list[int]:
    """How many tokens each picture keeps if the `total` highest scores of all stay, and one of each at least.

    Args:
        scores: (I, N) of I pictures.
    """
    best = scores.flatten().argsort(descending=True, stable=True)[:total] // scores.shape[1]
    return torch.bincount(best, minlength=len(scores)).clamp(min=1).tolist()
