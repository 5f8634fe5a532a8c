"""Chapter 09: which way counts go wrong, what tells things from background, and what each part of Tally is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from illava_lab.course.paired import tidy
from illava_lab.hooks.attach import attach
from illava_lab.measuring import measure
from illava_lab.measuring.batches import first_row
from illava_lab.measuring.predict import predict, prompt_of
from illava_lab.measuring.rows import BASELINE
from illava_lab.measuring.tasks import Task
from illava_lab.method.registry import make_strategy
from illava_lab.paths import data_dir
from illava_lab.schedules.budget import AnyStrategy
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.lab import Lab
from illava_lab.views.colors import BLUE, GREEN, GREY, MARKERS, ORANGE, PINK, RED, SKY
from illava_lab.views.words import as_label

FEW, RIGHT, MANY = "too few", "right", "too many"
COLORS = (BLUE, RED, ORANGE, PINK, GREEN, SKY)

VARIANTS = {
    "variant(llm=False)": "sizes do not count in the LLM",
    "variant(tower=False)": "sizes do not count in the encoder",
    "variant(tower=False, llm=False)": "sizes count nowhere",
    "variant(shield=0.0)": "common tokens are not first",
    "variant(shield=0.3)": "common tokens are first, with a third of the weight",
    "variant(shield=0.0, llm=False)": "common not first, no sizes in the LLM",
    "variant(by='keys')": "common: by keys, not states",
    "variant(by='received')": "distinct: by attention received",
    "variant(by='value norm')": "distinct: by attention received x length of value",
    "variant(near=0.03)": "near pairs are preferred a little",
    "variant(near=0.1)": "near pairs are preferred",
    "variant(raters='last')": "LLM: the last text token chooses alone",
    "variant(rest='merge')": "LLM: the others merge, they are not dropped",
    "variant(share=0.35)": "the encoder does a third of it",
    "variant(share=0.65)": "the encoder does two thirds of it",
    "variant(share=0.8)": "the encoder does most of it",
    "variant(encoder_layers='all')": "encoder: all layers",
    "variant(encoder_layers='middle half')": "encoder: its middle half",
    "variant(encoder_layers='first quarter')": "encoder: its first quarter",
    "variant(llm_layers=(0.3333333333333333,))": "LLM: one layer",
    "variant(llm_layers=(0.16666666666666666, 0.3333333333333333, 0.6666666666666666))": "LLM: three layers",
}
"""The variants of `results/research/variants.py` in words: what is other than in Tally."""


# --------------------------------------------------------------------------------------------- which way counts err
def counts(lab: Lab, task: Task, strategies: Sequence[AnyStrategy], flops: float) -> pd.DataFrame:
    """How often counts are too low, right and too high, at a share of the bare model's prefill FLOPs.

    The budget is that of the task's first question, as in `il.compare`.

    Returns:
        A row for each strategy, by its label; columns "too few", "right" and "too many".

    Raises:
        LabError: as `Schedule.for_budget` and `il.predict`.
    """
    inputs, asked = prompt_of(lab, task, first_row(task)), counting(task)
    text, layouts = measure.text_tokens(lab.model, inputs), measure.layouts(lab.model, inputs)
    rows = {}
    for strategy in map(make_strategy, strategies):
        if strategy.name == BASELINE:
            said = predict(lab, asked, batch_size=16)
        else:
            schedule = Schedule.for_budget(strategy, lab.model, flops=flops, text_tokens=text, layouts=layouts)
            with attach(lab.model, strategy, schedule):
                said = predict(lab, asked, batch_size=16)
        rows[strategy.label] = signs(said, asked.samples["answer"].tolist())
    return pd.DataFrame.from_dict(rows, orient="index", columns=[FEW, RIGHT, MANY])


def counting(task: Task) -> Task:
    """The questions of a task that ask for a count."""
    samples = task.samples[task.samples["category"] == "count"].reset_index(drop=True)
    return replace(task, samples=samples)


def signs(said: Sequence[str], right: Sequence[str]) -> tuple[int, int, int]:
    """How many answers are too low, right and too high; what is no number is neither."""
    off = [int(a) - int(b) for a, b in zip(said, right, strict=True) if a.strip().isdigit()]
    return sum(one < 0 for one in off), sum(one == 0 for one in off), sum(one > 0 for one in off)


def direction(few: int, many: int) -> str:
    """Which way counts err: "low" or "high" where at least twice as many err that way, else "both"."""
    return "low" if few >= 2 * many and few else "high" if many >= 2 * few and many else "both"


def counts_figure(table: pd.DataFrame, title: str = "") -> Figure:
    """Bars to the left for counts that are too low, to the right for those that are too high."""
    figure = Figure(figsize=(8, 1.2 + 0.36 * len(table)), layout="constrained")
    axes = figure.add_subplot(xlabel="questions: counted too few (left), too many (right)")
    where = range(len(table))[::-1]
    for column, sign, color in ((FEW, -1, BLUE), (MANY, 1, RED)):
        bars = axes.barh(where, sign * table[column], color=color, label=column)
        axes.bar_label(bars, [str(count) if count else "" for count in table[column]], padding=3, fontsize=9)
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(where, [as_label(name) for name in table.index], fontsize=9)
    most = int(table[[FEW, MANY]].to_numpy().max()) + 3
    axes.set_xlim(-most, most)
    axes.xaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.legend(frameon=False, fontsize=9, loc="lower right")
    if title:
        axes.set_title(as_label(title), loc="left", fontsize=11)
    tidy(axes)
    return figure


# --------------------------------------------------------------------------------------------- things and background
def signals() -> pd.DataFrame:
    """AUC of each signal (rows) in each encoder layer (columns): `results/research/signals.py` measured it."""
    return pd.read_csv(data_dir() / "signals.csv").pivot(index="signal", columns="layer", values="auc")


def signals_figure(table: pd.DataFrame, layers: int) -> Figure:
    """The same as lines; 0.5 is a coin. Grey: the layers in which Tally merges, the first `layers`."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    axes = figure.add_subplot(xlabel="encoder layer", ylabel="AUC, things above background")
    axes.axvspan(-0.3, layers - 0.7, color="#eeeeee")
    axes.axhline(0.5, color=GREY, linestyle="--", linewidth=1.2)
    for (name, row), color, marker in zip(table.iterrows(), cycle(COLORS), cycle(MARKERS.values()), strict=False):
        axes.plot(table.columns, row, marker=marker, color=color, label=name)
    axes.legend(frameon=False, fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    tidy(axes)
    return figure


# --------------------------------------------------------------------------------------------- what was tried
def tried(flops: float, task: str = "validation") -> pd.DataFrame:
    """Every ingredient that was switched, in words, and what that changed: from the log of the research.

    Returns:
        Columns question, accuracy, difference, low and high (fractions, against Tally), and command.
    """
    log = pd.read_csv(data_dir() / "research.csv")
    rows = log[(log["flops"] == flops) & (log["task"] == task) & log["variant"].str.startswith("variant")]
    return rows.set_index(rows["variant"].replace(VARIANTS).rename("variant"))[
        ["question", "accuracy", "difference", "low", "high", "command"]
    ]


def tried_figure(rows: pd.DataFrame, threshold: float = 0.02) -> Figure:
    """A line for each variant, worst first: its difference to Tally in points, with the paired interval."""
    rows = rows.sort_values("difference", ascending=False)
    figure = Figure(figsize=(9, 1.0 + 0.27 * len(rows)), layout="constrained")
    axes = figure.add_subplot(xlabel="points against Tally; bars: paired 95 % interval over pictures")
    axes.axvline(0, color=GREY, linewidth=1.2)
    axes.axvline(-100 * threshold, color=GREY, linestyle="--", linewidth=1.2)
    for number, (_, row) in enumerate(rows.iterrows()):
        clear = row["high"] < 0 or row["low"] > 0
        ends = [[100 * (row["difference"] - row["low"])], [100 * (row["high"] - row["difference"])]]
        axes.errorbar([100 * row["difference"]], [number], xerr=np.clip(ends, 0, None), fmt="o", capsize=4, color=BLUE,
                      markerfacecolor=BLUE if clear else "white")  # fmt: skip
    axes.set_yticks(range(len(rows)), [as_label(name) for name in rows.index], fontsize=9)
    axes.set_title("full: told apart from Tally; hollow: not; dashed: two points lost", loc="left", fontsize=10)
    tidy(axes)
    return figure


def asked_once(flops: float) -> pd.DataFrame:
    """Accuracy in % on each test task: Tally's, the best other method's, which these answers chose, and two simple
    rivals'; and Tally's lead over the best other. From the committed results, in which the test was asked once.
    """
    table = pd.read_csv(data_dir() / "equal_flops.csv")
    table = table[(table["flops"] == flops) & (table["status"] == "ok")]
    rows = {}
    for task, own in table.groupby("task", sort=False):
        scores = 100 * own.set_index("strategy")["accuracy"]
        others = scores.drop("tally")
        simple = {name: scores[name] for name in ("downsample", "random")}
        rows[task] = {"tally": scores["tally"], "best other": others.idxmax(), "accuracy": others.max(), **simple}
    found = pd.DataFrame.from_dict(rows, orient="index")
    return found.assign(lead=found["tally"] - found["accuracy"])


def lead_of_best(
    variants: int, questions: int, accuracy: float, draws: int = 2000, seed: int = 0
) -> Mapping[str, float]:
    """Variants that are all equally good, each asked as many questions: what the best of them seems to be ahead of what
    all of them are, on the mean over `draws`, in fractions; and how often it seems ahead at all."""
    right = np.random.default_rng(seed).binomial(questions, accuracy, (draws, variants)) / questions
    lead = right.max(axis=1) - accuracy
    return {"lead": float(lead.mean()), "ahead": float((lead > 0).mean())}
