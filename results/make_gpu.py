"""Write results/gpu/summary.txt, which the page on speed shows, and data/gpu.csv: `python results/make_gpu.py`.

data/gpu.csv is the same in few columns, installed too: chapter 06 draws it.

It is made from the tables in results/gpu. `benchmarks/gpu.py` writes these: NAME.csv and NAME.json, with "-graphs"
behind the name for captured graphs. Those of 2026-11-27 were taken by a script (the "third.py" of their `command`) that
called the `_measure` of benchmarks/gpu.py with fewer presets and rounds, as there were only minutes of the GPU.
`python benchmarks/gpu.py --rows 'llava-1.5-7b-*' --graphs` and the like repeat them.
results/gpu/host_and_device.txt has lines that another script printed that day, of a commit some minutes older.

Those in results/gpu/before were taken on the same day by a script that called `bench(...)` on an earlier commit, before
the core was rewritten; nothing in them was changed but the names of the files.
results/gpu/before/host_and_device.txt has lines of what else was printed then.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from illava_lab.measuring.summary import aligned, budget_label
from illava_lab.paths import data_dir

RESULT = Path(__file__).parent / "gpu"
TITLES = {
    "llava-1.5-7b-b1": "LLaVA-1.5-7B, one picture",
    "llava-1.5-7b-b16": "LLaVA-1.5-7B, one picture, 16 prompts at once",
    "llava-1.5-13b": "LLaVA-1.5-13B, one picture",
    "next-34b": "LLaVA-NeXT-34B, one picture in five crops",
    "onevision-7b-image": "LLaVA-OneVision-7B, one picture in ten crops",
    "onevision-7b-video": "LLaVA-OneVision-7B, a video of 32 frames",
    "qwen2-vl-7b": "Qwen2-VL-7B, one large picture",
}
GRAPHS = "-graphs"
SCRIPT = "gpu.py"


def summary(folder: Path) -> str:
    """All tables, for people."""
    measured = sorted(path.stem for path in folder.glob("*.csv"))
    parts = [
        ("Measured with the present core", folder, [name for name in measured if not name.endswith(GRAPHS)]),
        (
            "Measured with the present core, captured graphs",
            folder,
            [name for name in measured if name.endswith(GRAPHS)],
        ),
        ("Measured before the core was rewritten", folder / "before", [*TITLES]),
    ]
    out = []
    for heading, place, names in parts:
        tables = [table(place, name) for title in TITLES for name in names if name.removesuffix(GRAPHS) == title]
        if tables:
            out.append("\n\n".join([f"{heading}\n{'=' * len(heading)}{_by_another(place, names)}", *tables]))
    return "\n\n\n".join(out) + "\n"


def _by_another(folder: Path, names: list[str]) -> str:
    """A line under the heading where not all tables were written by `benchmarks/gpu.py` itself."""
    if folder.name == "before" or all(_about(folder, name)["command"].startswith(SCRIPT) for name in names):
        return ""
    return (
        f"\nby a script that called the functions of benchmarks/{SCRIPT} in fewer rounds, as time on the GPU was short"
    )


def _about(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))["about"]


def table(folder: Path, name: str) -> str:
    """One of them, with the machine."""
    about = _about(folder, name)
    rows = pd.read_csv(folder / f"{name}.csv").reindex(columns=WANTED)
    good = rows[rows["status"] == "ok"]
    machine = ", ".join(about[key] for key in ("device", "dtype", "date"))
    versions = f"torch {about['torch']}, transformers {about['transformers']}, medians of {about['rounds']} rounds"
    versions += f", im/s after {about['new_tokens']} steps"
    lines = [f"{TITLES[name.removesuffix(GRAPHS)]}: {good['tokens_llm'].iloc[0]:.0f} visual tokens", machine, versions]
    lines += aligned([*_lines(good)])
    if good["over_hand"].notna().any() or good["prefill_host_ms"].notna().any():
        lines += ["", *aligned([*_apart(good)])]
    return "\n".join(lines)


ANSWERS = ("images_per_second_1", "images_per_second_16", "images_per_second_128")
APART = ("prefill_host_ms", "prefill_device_ms", "busy_ms", "decode_host_ms", "decode_device_ms")
WANTED = [
    "strategy", "keep", "flops", "preset", "schedule", "tokens_llm", "prefill_flops", "prefill_ms", "prefill_ratio",
    "prefill_ratio_low", "prefill_ratio_high", "efficiency", "over_hand", "decode_ms", "decode_ratio", *APART,
    "images_per_second", *ANSWERS, "largest_batch", "peak_bytes", "cache_bytes", "status",
]  # fmt: skip


def _lines(good: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Times of the batch, as multiples of the bare model's too; images per second over a prefill and the steps."""
    bare = good.iloc[0]
    yield (
        "strategy", "budget", "FLOPs", "prefill ms", "x bare", "limit %", "step ms", "x bare", "im/s", "peak MB",
        "x bare", "cache MB",
    )  # fmt: skip
    for row in good.itertuples():
        yield (
            *_named(row),
            f"{row.prefill_flops / bare.prefill_flops:.2f}",
            f"{row.prefill_ms:.1f}",
            _number(row.prefill_ratio, 2) + f" ±{(row.prefill_ratio_high - row.prefill_ratio_low) / 2:.2f}",
            _number(100 * row.efficiency, 0),
            f"{row.decode_ms:.1f}",
            _number(row.decode_ratio, 2),
            f"{row.images_per_second:.1f}",
            f"{row.peak_bytes / 1e6:.0f}",
            f"{row.peak_bytes / bare.peak_bytes:.2f}",
            f"{row.cache_bytes / 1e6:.0f}",
        )


def _apart(good: pd.DataFrame) -> Iterator[tuple[str, ...]]:
    """Prefill over the loop by hand, the time of host and device, whole answers, and the largest batch, if measured."""
    ends = [f"im/s, {name.rpartition('_')[2]} new" for name in ANSWERS]
    heads = ("x hand", "host ms", "device ms", "busy ms", "step host", "device", *ends, "largest")
    digits = (2, 1, 1, 1, 1, 1, 2, 2, 2, 0)
    columns = [
        (name, head, places)
        for name, head, places in zip(("over_hand", *APART, *ANSWERS, "largest_batch"), heads, digits, strict=True)
        if good[name].notna().any()
    ]
    yield ("strategy", "budget", *(head for _, head, _ in columns))
    for row in good.itertuples():
        yield (*_named(row), *(_number(getattr(row, name), places) for name, _, places in columns))


def _named(row: Any) -> tuple[str, str]:
    """The strategy without its settings, which the preset fixes, and its budget."""
    budget = "" if row.strategy in ("bare", "none") else budget_label(row).removeprefix("preset ")
    return row.strategy.partition("(")[0], budget


def joined(folder: Path) -> pd.DataFrame:
    """All tables as one, in few columns: shares of the bare model, and the milliseconds of host and GPU where known."""
    parts = []
    for title in TITLES:
        for place, graphs in ((folder, ""), (folder, GRAPHS), (folder / "before", "")):
            path = place / f"{title}{graphs}.csv"
            if path.exists():
                parts.append(_few(pd.read_csv(path), place, f"{title}{graphs}"))
    return pd.concat(parts, ignore_index=True)


def _few(rows: pd.DataFrame, folder: Path, name: str) -> pd.DataFrame:
    rows = rows.reindex(columns=WANTED)
    rows = rows[rows["status"] == "ok"].reset_index(drop=True)
    about, bare = _about(folder, name), rows.iloc[0]
    return pd.DataFrame(
        {
            "case": TITLES[name.removesuffix(GRAPHS)],
            "core": "before" if folder.name == "before" else "present",
            "graphs": name.endswith(GRAPHS),
            "strategy": rows["strategy"].str.partition("(")[0],
            "budget": [_named(row)[1] for row in rows.itertuples()],
            "flops": rows["prefill_flops"] / bare["prefill_flops"],
            **{column: rows[column] for column in ("prefill_ratio", "prefill_ratio_low", "prefill_ratio_high")},
            "limit": rows["efficiency"],
            "decode_ratio": rows["decode_ratio"],
            "peak": rows["peak_bytes"] / bare["peak_bytes"],
            "cache": rows["cache_bytes"] / bare["cache_bytes"],
            "prefill_ms": rows["prefill_ms"],
            "host_ms": rows["prefill_host_ms"],
            "busy_ms": rows["busy_ms"],
            "device": about["device"],
            "date": about["date"],
        }
    ).round(4)


def _number(value: Any, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def main() -> int:
    text = summary(RESULT)
    (RESULT / "summary.txt").write_text(text, encoding="utf-8")
    joined(RESULT).to_csv(data_dir() / "gpu.csv", index=False)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
