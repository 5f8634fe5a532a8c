"""What chapter 06 draws and lists: measured speed of 7B to 34B models, and how far answers move."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from transformers import AutoConfig

from illava_lab.course.paired import tidy
from illava_lab.measuring import measure
from illava_lab.measuring.cost import Cost
from illava_lab.measuring.published import published
from illava_lab.measuring.speed import Speed
from illava_lab.measuring.statistics import paired_difference
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.loading import weights_bytes
from illava_lab.paths import data_dir
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.lab import Lab
from illava_lab.views.colors import BLUE, GREY, MARKERS, RED, looks

FORMS = {"float16": None, "8 bit": "8bit", "4 bit": "4bit"}
NEAREST = 1e-6  # below it a logarithm shows nothing more


def sizes(*names: str) -> pd.DataFrame:
    """Weights of published models in GB, and the KV cache of one token in KB (float16), from shapes alone."""
    rows = {}
    for name in names:
        spec = json.loads((data_dir() / "configs" / f"{name}.json").read_text(encoding="utf-8"))
        config = AutoConfig.for_model(**spec["config"])
        text = config.get_text_config()
        head = text.hidden_size // text.num_attention_heads
        numbers = 2 * text.num_hidden_layers * text.num_key_value_heads * head  # keys and values
        rows[name] = {
            **{f"GB in {form}": weights_bytes(config, torch.float16, way) / 1e9 for form, way in FORMS.items()},
            "cache, KB a token": numbers * 2 / 1000,
        }
    return pd.DataFrame.from_dict(rows, orient="index").round(1)


# ---------------------------------------------------------------------------------------------- measured on a GPU
def measured_on_gpu(core: str | None = None) -> pd.DataFrame:
    """Rows of data/gpu.csv: 7B to 34B with random weights, shares of the bare model. `core`: "present" or "before"."""
    table = pd.read_csv(data_dir() / "gpu.csv", keep_default_na=True)
    return table if core is None else table[table["core"] == core]


def speeds_table(measured: pd.DataFrame) -> pd.DataFrame:
    """iLLaVA's and its successor's rows of `measured_on_gpu`, in short words, as shares of the bare model."""
    short = {
        "LLaVA-": "",
        "one picture, 16 prompts at once": "16 prompts",
        "one picture in ten": "ten",
        "a video of ": "",
    }
    rows = measured[measured["strategy"].isin(["illava", "illava-2026"])].replace({"case": short}, regex=True)
    rows = rows.rename(columns={"flops": "FLOPs", "prefill_ratio": "prefill", "decode_ratio": "decode"})
    return rows[["case", "graphs", "budget", "FLOPs", "prefill", "limit", "decode", "peak"]].round(2)


def gpu_figure(strategy: str = "illava") -> Figure:
    """FLOPs and prefill time of one method in every model and prompt that was measured, as shares of the bare model."""
    rows = measured_on_gpu()
    rows = rows[(rows["strategy"] == strategy) & rows["budget"].astype(str).str.startswith("illava-")]
    newest = rows[rows["core"] == "present"]
    older = rows[(rows["core"] == "before") & ~rows["case"].isin(newest["case"])]
    shown = pd.concat([newest, older], ignore_index=True).sort_values("prefill_ratio", ascending=False)
    names = [
        row.case + (", graphs" if row.graphs else "") + (" (earlier code)" if row.core == "before" else "")
        for row in shown.itertuples()
    ]
    figure = Figure(figsize=(8.6, 1.0 + 0.36 * len(shown)), layout="constrained")
    axes, places = figure.add_subplot(xlabel="share of the bare model"), np.arange(len(shown))
    axes.axvline(1, color=GREY, linestyle="--", linewidth=1.2, label="bare model")
    axes.plot(shown["flops"], places, "|", color=BLUE, markersize=12, markeredgewidth=2.5, label="FLOPs")
    ends = [shown["prefill_ratio"] - shown["prefill_ratio_low"], shown["prefill_ratio_high"] - shown["prefill_ratio"]]
    ends = [end.clip(lower=0) for end in ends]
    axes.errorbar(shown["prefill_ratio"], places, xerr=ends, fmt="o", color=RED, capsize=3, label="prefill time")
    axes.set_yticks(places, names, fontsize=8)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    tidy(axes)
    return figure


# LLaVA-1.5-7B, one picture, plain calls on an H100, in ms. The host's: results/gpu/host_and_device.txt, all rows in
# turns. The GPU's own work: `busy_ms` of data/gpu.csv.
HOST_MS = {"bare": 66.24, "illava-image": 84.35}
BUSY_MS = {"bare": 20.3, "illava-image": 14.4}
H100_TFLOPS, T4_TFLOPS = 989, 65  # 16 bit, dense, from NVIDIA's data sheets


def on_another_gpu(host: float, busy: float, slower: float) -> float:
    """Milliseconds of a pass on a GPU that is so many times slower, behind the same host: the slower of the two."""
    return max(host, busy * slower)


def another_gpu_figure() -> Figure:
    """Prefill of the image preset over the bare model's, against how many times slower than an H100 a GPU is."""
    slower = np.geomspace(1, 40, 80)
    bare, reduced = (
        [on_another_gpu(HOST_MS[name], BUSY_MS[name], times) for times in slower] for name in ("bare", "illava-image")
    )
    figure = Figure(figsize=(7.6, 3.2), layout="constrained")
    axes = figure.add_subplot(
        xscale="log", xlabel="so many times slower than an H100", ylabel="prefill, share of the bare model"
    )
    axes.plot(slower, np.divide(reduced, bare), color=RED, label="illava-image, computed")
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1.2, label="bare model")
    axes.axvline(H100_TFLOPS / T4_TFLOPS, color=BLUE, linestyle=":", label="T4, by its data sheet")
    axes.set_xticks([1, 2, 5, 10, 20, 40], ["1", "2", "5", "10", "20", "40"])
    axes.minorticks_off()
    axes.set_ylim(0, 1.5)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    tidy(axes)
    return figure


# ---------------------------------------------------------------------------------------------- how far answers move
Plan = tuple[Strategy, Schedule]


def plans_at(
    lab: Lab, names: Sequence[str], keep: float, prompt: dict[str, torch.Tensor]
) -> tuple[dict[str, Plan], dict[str, float]]:
    """What each method does at this keep, and which share of the bare model's FLOPs that takes with this prompt.

    Raises:
        LabError: as `Schedule.for_budget`.
    """
    text, layouts = measure.text_tokens(lab.model, prompt), measure.layouts(lab.model, prompt)
    bare, plans, shares = measure.prefill_flops(lab.model, text_tokens=text, layouts=layouts), {}, {}
    for name in names:
        strategy = make_strategy(name)
        plans[name] = strategy, Schedule.for_budget(strategy, lab.model, keep=keep)
        shares[name] = measure.prefill_flops(lab.model, *plans[name], text_tokens=text, layouts=layouts) / bare
    return plans, shares


def moved(table: pd.DataFrame, shares: Mapping[str, float], images: Sequence[int]) -> pd.DataFrame:
    """How far each method moves from the unreduced model, a row each, in the order of `shares`.

    Args:
        table: from `il.fidelity`. shares: its methods, and the FLOPs of each. images: the picture of each question.

    Returns:
        Columns divergence (nats), agreement, changed (% of the answers), its 95 % interval low and high, and FLOPs.
    """
    rows = {}
    for name, share in shares.items():
        own = table[table["strategy"] == name]
        other = ~own["equal"].to_numpy(bool)
        changed = paired_difference(other, np.zeros(len(own), bool), [str(image) for image in images])
        percent = {part: 100 * value for part, value in zip(("changed %", "low", "high"), changed, strict=True)}
        rows[name] = {"divergence": own["kl"].mean(), "agreement": own["agreement"].mean(), **percent, "FLOPs": share}
    return pd.DataFrame.from_dict(rows, orient="index")


def divergence_figure(table: pd.DataFrame) -> Figure:
    """The divergence of every question by method; questions whose answer changed are crosses."""
    rows = table[table["strategy"] != "none"]
    methods = list(dict.fromkeys(rows["strategy"]))
    figure, draw = Figure(figsize=(7.8, 3.2), layout="constrained"), np.random.default_rng(0)
    axes = figure.add_subplot(ylabel="divergence, nats", yscale="log", title="One point a question")
    for equal, color, marker, name in ((True, BLUE, "o", "same answer"), (False, RED, "X", "another answer")):
        own = rows[rows["equal"] == equal]
        x = [methods.index(strategy) for strategy in own["strategy"]] + draw.uniform(-0.25, 0.25, len(own))
        axes.scatter(x, own["kl"].clip(lower=NEAREST), color=color, marker=marker, alpha=0.7, label=name)
    axes.set_xticks(range(len(methods)), methods)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    tidy(axes)
    return figure


def divergence_words(table: pd.DataFrame, changed: float = 0.3) -> str:
    """How well a divergence tells which answers changed."""
    rows = table[table["strategy"] != "none"]
    same, other = rows[rows["equal"]]["kl"], rows[~rows["equal"]]["kl"]
    return (
        f"above {changed:g} nats: {(other > changed).sum()} of {len(other)} changed answers, "
        f"{(same > changed).sum()} of {len(same)} unchanged ones"
    )


def agreement_figure(means: pd.DataFrame) -> Figure:
    """Agreement against keep. `means`: indexed by strategy and keep, with a column `agreement`."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    axes = figure.add_subplot(xlabel="keep", ylabel="agreement")
    names = list(dict.fromkeys(means.index.get_level_values(0)))
    for name, drawn in looks(names).items():
        own = means.loc[name]["agreement"]
        axes.plot(own.index, own, color=drawn.color, marker=MARKERS[drawn.marker], label=name)
    axes.axhline(1, color=GREY, linestyle="--", linewidth=1, label="unreduced")
    axes.invert_xaxis()
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    tidy(axes)
    return figure


# ---------------------------------------------------------------------------------------------- beside published ones
def shares_of_bare(costs: Mapping[str, Cost], runs: Sequence[Speed]) -> pd.DataFrame:
    """Prefill time (with its middle half), KV cache and peak above the weights, as shares of the first row's.

    Args:
        costs: of each method, the bare model's first. runs: their times, in the same order, taken in turns.
    """
    bare, rows = next(iter(costs.values())), {}
    for (name, cost), run in zip(costs.items(), runs, strict=True):
        took = measure.ratio(run.prefill, runs[0].prefill)
        rows[name] = {
            **{part: getattr(took, kind) for part, kind in (("prefill", "value"), ("low", "low"), ("high", "high"))},
            "cache": cost.cache_bytes / bare.cache_bytes,
            "peak": cost.peak_bytes / bare.peak_bytes,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def beside_published(here: Mapping[str, str]) -> pd.DataFrame:
    """iLLaVA's published figures, each beside what was measured here: metric -> in words."""
    models = {"LVLMs of 7B, 13B and 34B": "7B, 13B and 34B", "LLaVA-OneVision 7B": "OneVision 7B"}
    rows = published("illava")
    rows = rows[rows["model"].isin(list(models)) & rows["metric"].isin(list(here))]
    said = rows["qualifier"] + " " + rows["value"].map("{:g}".format) + " " + rows["unit"]
    rows = rows.assign(model=rows["model"].map(models), published=said, here=rows["metric"].map(here))
    return rows[["model", "metric", "published", "evidence", "here"]].drop_duplicates("published")


# ---------------------------------------------------------------------------------------------- same, and right?
def outcomes(table: pd.DataFrame, labels: list[str]) -> pd.DataFrame:
    """The rows with `outcome`: whether the answer is the unreduced model's, and whether it is right.

    Args:
        table: from `il.fidelity`. labels: the right answer to each of its questions.
    """
    wanted = [labels[number].lower() for number in table["number"]]
    said = table["answer"].str.strip(" .\n").str.lower()
    right = np.where(said == wanted, "right", "wrong")
    same = np.where(table["equal"], "same", "changed")
    return table.assign(label=wanted, outcome=[f"{a}, {b}" for a, b in zip(same, right, strict=True)])
