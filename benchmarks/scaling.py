"""How time and memory grow with visual tokens, batch and video frames, and where reduction begins to pay.

    OMP_NUM_THREADS=2 python benchmarks/scaling.py     some 25 minutes on two quiet cores; writes results/scaling/

Two models with random weights, in the layout of LLaVA-1.5 and of LLaVA-OneVision but smaller: a tower of 12 layers of
width 768 on patches of 16 pixels (196 of them in a picture of 224 pixels) and a decoder of 12 layers of width 768. Each
strategy keeps half of the visual tokens. Rounds are interleaved with the bare model's. A stopped run goes on.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from matplotlib.figure import Figure
from PIL import Image
from tqdm.auto import tqdm

import illava_lab as il
from illava_lab.measuring import measure
from illava_lab.measuring.bench import QUESTION
from illava_lab.measuring.machine import environment
from illava_lab.paths import data_dir
from illava_lab.schedules.flops import prefill_flops
from illava_lab.views.plots import COLORS

RESULT = Path(__file__).parents[1] / "results" / "scaling"
RUN = RESULT.parent / ".runs" / "scaling.csv"
STRATEGIES = ("illava", "fastv")
KEEP, PATCH, SEED = 0.5, 16, 0
TOWER = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "patch_size": PATCH,
}
DECODER = {"hidden_size": 768, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 12,
           "num_key_value_heads": 12, "max_position_embeddings": 16384}  # fmt: skip
AXES = {
    "tokens": "visual tokens in a prompt",
    "batch": "prompts of 196 visual tokens in a batch",
    "frames": "video frames, 49 tokens each in the LLM",
}
SPEED = 1e11  # operations per second, roughly: only to choose the number of rounds


class Point(NamedTuple):
    """One place on an axis: a square picture of `side` patches, so many images or frames, so many prompts."""

    axis: str
    value: int
    side: int = 14
    pictures: int = 1
    batch: int = 1


POINTS = [
    *(Point("tokens", side * side, side=side) for side in (4, 7, 10, 14)),
    *(Point("tokens", 196 * images, pictures=images) for images in (2, 4, 8, 16, 41)),
    *(Point("batch", batch, batch=batch) for batch in (1, 2, 4, 8, 16, 32)),
    *(Point("frames", frames, pictures=frames) for frames in (1, 4, 16, 64)),
]


def lab_of(source: str, side: int) -> il.Lab:
    """A published configuration of `data/configs/`, made small."""
    spec = json.loads((data_dir() / "configs" / f"{source}.json").read_text(encoding="utf-8"))
    config, processor, size = spec["config"], spec["processor"], side * PATCH
    config["vision_config"] |= TOWER | {"image_size": size}
    config["text_config"] |= DECODER
    config["image_seq_length"] = side * side
    if "patch_size" in processor:
        processor["patch_size"] = PATCH
    if "num_image_tokens" in processor:
        processor["num_image_tokens"] = side * side
    for name in ("image_processor", "video_processor"):
        if name in processor:
            processor[name]["size"] = (
                {"height": size, "width": size} if "height" in processor[name]["size"] else {"shortest_edge": size}
            )
            if "crop_size" in processor[name]:
                processor[name]["crop_size"] = {"height": size, "width": size}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"{source}.json"
        path.write_text(json.dumps(spec), encoding="utf-8")
        return il.load(f"random:{path}")


def inputs_of(lab: il.Lab, point: Point) -> measure.Inputs:
    """Prompts with pictures of noise, a fixed seed; what they show is nothing to the clock."""
    side = point.side * PATCH
    pixels = np.random.default_rng(SEED).integers(0, 256, (point.pictures, side, side, 3), dtype=np.uint8)
    if point.axis == "frames":
        shown: Any = il.read_video(pixels, frames=point.pictures)
    else:
        shown = [Image.fromarray(frame) for frame in pixels]
    return lab.inputs([shown] * point.batch, [QUESTION] * point.batch)


def rows_of(lab: il.Lab, point: Point) -> Iterator[dict[str, Any]]:
    """One row per strategy, the bare model first."""
    model, inputs = lab.model, inputs_of(lab, point)
    text = measure.text_tokens(model, inputs)
    layouts = measure.layouts(model, inputs)
    chosen = [il.get_strategy(name)() for name in STRATEGIES]
    plans = [(s, il.Schedule.for_budget(s, model, keep=KEEP)) for s in chosen]
    bare_flops = prefill_flops(model, il.get_strategy("none")(), il.Schedule(), text_tokens=text, layouts=layouts)
    rounds = int(np.clip(10 / (bare_flops * point.batch / SPEED), 3, 25))
    speeds = measure.speeds(model, inputs, [None, *plans], rounds=rounds, new_tokens=4)
    visual = sum(int((~layout.marker).sum()) for layout in layouts)
    for configuration, speed in zip([None, *plans], speeds, strict=True):
        if isinstance(speed, Exception):
            raise speed
        with measure.attached(model, configuration):
            cache, peak = measure.memory(model, inputs)
        flops = bare_flops
        if configuration is not None:
            flops = prefill_flops(model, *configuration, text_tokens=text, layouts=layouts)
        row = {
            "axis": point.axis,
            "value": point.value,
            "strategy": "bare" if configuration is None else configuration[0].name,
        }
        row |= {"visual_tokens": visual, "text_tokens": text, "batch": point.batch, "rounds": rounds}
        row |= {"prefill_flops": flops * point.batch, "cache_bytes": cache, "peak_bytes": peak}
        for kind in ("prefill", "decode"):
            seconds = getattr(speed, kind)
            row[f"{kind}_ms"] = 1e3 * float(np.median(seconds))
            ratio = measure.ratio(seconds, getattr(speeds[0], kind))
            row |= {f"{kind}_ratio{end}": value for end, value in zip(("", "_low", "_high"), ratio, strict=True)}
        yield row


def crossover(table: pd.DataFrame, axis: str, strategy: str) -> str:
    """From where on the middle half of the rounds is faster than the bare model, at every larger value too."""
    part = table[(table["axis"] == axis) & (table["strategy"] == strategy)].sort_values("value")
    pays = part["prefill_ratio_high"] < 1
    if not pays.iloc[-1]:
        return "nowhere"
    first = len(pays) - int((~pays[::-1]).argmax()) if not pays.all() else 0
    return f"from {part['value'].iloc[first]} on" + (", the smallest tried" if first == 0 else "")


def summary(table: pd.DataFrame) -> str:
    """For people."""
    parts = []
    for axis, title in AXES.items():
        part = table[table["axis"] == axis]
        head = (
            f"{axis:>7}  {'strategy':<8}  {'prefill ms':>10}  {'x bare':<22}  {'FLOPs x':>7}"
            f"  {'decode x':>8}  {'cache MB':>8}  {'peak MB':>8}  {'peak x':>6}"
        )
        lines = [head]
        for value, rows in part.groupby("value"):
            bare = rows[rows["strategy"] == "bare"].iloc[0]
            for row in rows.itertuples():
                spread = f"{row.prefill_ratio:.2f} ({row.prefill_ratio_low:.2f} to {row.prefill_ratio_high:.2f})"
                lines.append(
                    f"{value:>7}  {row.strategy:<8}  {row.prefill_ms:>10.1f}  {spread:<22}"
                    f"  {row.prefill_flops / bare.prefill_flops:>7.2f}  {row.decode_ratio:>8.2f}"
                    f"  {row.cache_bytes / 1e6:>8.1f}  {row.peak_bytes / 1e6:>8.1f}"
                    f"  {row.peak_bytes / bare.peak_bytes:>6.2f}"
                )
        pays = "; ".join(f"{name}: {crossover(table, axis, name)}" for name in STRATEGIES)
        parts.append("\n".join([f"{axis}: {title}", *lines, f"Prefill is faster than the bare model's: {pays}"]))
    return "\n\n".join(parts)


def picture(table: pd.DataFrame) -> Figure:
    """Time and peak memory over each axis, both scales logarithmic."""
    figure = Figure(figsize=(11, 6), layout="constrained")
    grid = figure.subplots(2, len(AXES), sharex="col")
    colors = dict(zip(("bare", *STRATEGIES), ("#555555", *COLORS), strict=False))
    for column, (axis, title) in enumerate(AXES.items()):
        for row, (name, scale, label) in enumerate(
            (("prefill_ms", 1e-3, "prefill, s"), ("peak_bytes", 1e-6, "peak memory above weights, MB"))
        ):
            axes = grid[row][column]
            for strategy, color in colors.items():
                part = table[(table["axis"] == axis) & (table["strategy"] == strategy)].sort_values("value")
                axes.plot(part["value"], part[name] * scale, "o-", color=color, label=strategy, markersize=4)
            axes.set(xscale="log", yscale="log")
            axes.grid(alpha=0.3)
            if column == 0:
                axes.set_ylabel(label)
            if row == 1:
                axes.set_xlabel(title, fontsize=9)
    grid[0][0].legend(title=f"keep {KEEP:g}")
    return figure


def main() -> int:
    done = pd.read_csv(RUN) if RUN.exists() else pd.DataFrame(columns=["axis", "value"])
    RUN.parent.mkdir(parents=True, exist_ok=True)
    lab, made, rows = None, None, done.to_dict("records")
    for point in tqdm(POINTS, desc="scaling", unit="point"):
        if ((done["axis"] == point.axis) & (done["value"] == point.value)).any():
            continue
        wanted = ("llava-onevision-0.5b" if point.axis == "frames" else "llava-1.5-7b", point.side)
        if wanted != made:
            lab = None  # before the next one takes its memory
            lab, made = lab_of(*wanted), wanted
        rows += rows_of(lab, point)
        pd.DataFrame(rows).to_csv(RUN, index=False)
    table = pd.DataFrame(rows)
    RESULT.mkdir(parents=True, exist_ok=True)
    table.to_csv(RESULT / "table.csv", index=False)
    (RESULT / "summary.txt").write_text(summary(table) + "\n", encoding="utf-8")
    picture(table).savefig(RESULT / "scaling.png", dpi=110)
    about = {
        "command": "python benchmarks/scaling.py",
        **environment(lab or lab_of("llava-1.5-7b", 14)),
        "threads": torch.get_num_threads(),
        "model": "see benchmarks/scaling.py",
        "seed": SEED,
        "keep": KEEP,
    }
    (RESULT / "about.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    RUN.unlink()
    print(summary(table))
    return 0


if __name__ == "__main__":
    sys.exit(main())
