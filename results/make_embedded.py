"""Measure the embedded models: `make results` writes results/embedded/, results/equal_flops/ and data/equal_flops.csv.

results/embedded/ compares four methods at equal keep on the questions about single images; results/equal_flops/ has a
folder for each of the five tasks, with every method at equal FLOPs, and data/equal_flops.csv all of them;
results/over_time/ sets the methods for videos, which begin too late for those budgets, beside others. Each folder
holds table.csv (all columns of `compare`), summary.txt (the same for people), pairs.csv (the paired interval of every
two methods at one budget), tradeoff.png, about.json (machine, versions, date, command, seed) and measured.json (what
`make leaderboard` needs to know besides). At the end make_means.py sets the tasks side by side. A stopped run goes on
from results/.runs/, which is not kept in the repository. results/embedded/tokens.png is the picture of the README.
`make results RUN=video` makes one of them, RUN=means that last step, RUN=over-time the methods for videos.
"""

from __future__ import annotations

import itertools
import json
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

import make_means
import pandas as pd
import torch
import transformers

import illava_lab as il
from illava_lab.measuring import loglines
from illava_lab.measuring.machine import environment
from illava_lab.measuring.summary import summary_by_category
from illava_lab.method.registry import make_strategy
from illava_lab.paths import data_dir

RESULTS = Path(__file__).parent
EQUAL_KEEP: dict[str, Any] = {"strategy": ["none", "random", "fastv", "tome", "illava"], "keep": [0.7, 0.5, 0.3]}
COMPOSED = ["tome+fastv", "visionzip+pyramiddrop", "scope+dart", "stride+fastv"]
EQUAL_FLOPS: dict[str, Any] = {
    "strategy": [*il.strategies(), il.get_strategy("illava-2026")(score="lse"), *COMPOSED],
    "flops": [0.7, 0.5, 0.35],
    "timing": False,
}
# Of each task, the model that answers it.
TASKS = {
    "test": None,
    "conversation": None,
    "fine": "embedded:onevision",
    "multi-image": "embedded:onevision",
    "video": "embedded:onevision",
}
ONE = "embedded"
# Methods that reduce a video over time, and others: at FLOPs that all of them reach, and at equal keep.
OVER_TIME: dict[str, Any] = {
    "strategy": [
        *("none", "dycoke", "evs", "framefusion", il.compose(llm={0: "evs", 2: "fastv"})),
        *(
            "random",
            "stride",
            "downsample",
            "pool",
            "cdpruner",
            "dart",
            "divprune",
            "fastv",
            "pyramiddrop",
            "sparsevlm",
        ),
        *("illava", "tome", "tally"),
    ],
    "timing": False,
}
OVER_TIME_BUDGETS: dict[str, dict[str, Any]] = {"equal_flops": {"flops": [0.9]}, "equal_keep": {"keep": [0.5, 0.2]}}
PICTURE = ("test-0006", "What digit is shown?")  # image and question of tokens.png


def asked(task: il.Task) -> dict[str, Any]:
    """`EQUAL_FLOPS` with the strategies that reduce what this task shows."""
    medium = "video" if task.kind == "frames" else "image"
    return EQUAL_FLOPS | {"strategy": [one for one in EQUAL_FLOPS["strategy"] if medium in make_strategy(one).media]}


def compared(out: Path, lab: il.Lab, task: il.Task, wanted: dict[str, Any]) -> pd.DataFrame:
    """The comparison that `out` shows: measured, or at once from what was measured."""
    return il.compare(lab, **wanted, task=task, out=RESULTS / ".runs" / out.relative_to(RESULTS))


def measure(out: Path, command: str, lab: il.Lab, task: il.Task, wanted: dict[str, Any], drawn: bool = True) -> None:
    """Run one comparison and write its folder."""
    out.mkdir(parents=True, exist_ok=True)
    table = compared(out, lab, task, wanted)
    table.to_csv(out / "table.csv", index=False)
    text = f"{il.summary(table)}\n\nAccuracy % by category of question\n{summary_by_category(table)}\n"
    (out / "summary.txt").write_text(text, encoding="utf-8")
    if "flops" in wanted:
        pairs(table).to_csv(out / "pairs.csv", index=False)
    if drawn:
        il.plots.tradeoff_png(table, out / "tradeoff.png")
    about = {
        "command": command,
        "model": lab.source,
        "machine": environment(lab)["processor"],
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
        "seed": 0,
        "questions": len(task),
    }
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    log = loglines.read(RESULTS / ".runs" / out.relative_to(RESULTS) / "run.jsonl")
    assert log is not None
    noted = {"settings": log.settings, "measured": log.entries[-1]["measured"]}
    (out / "measured.json").write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")
    print(text)


def pairs(table: pd.DataFrame) -> pd.DataFrame:
    """Every two methods that reach a budget: the difference of their accuracies, and its paired interval."""
    found = []
    fine = table[(table["status"] == "ok") & table["flops"].notna()]
    for flops, rows in fine.groupby("flops", sort=False):
        for a, b in itertools.combinations(rows.index, 2):
            own = il.difference(table, a, b)
            names = [table.at[row, "strategy"] for row in (a, b)]
            found.append(
                {
                    "flops": flops,
                    "a": names[0],
                    "b": names[1],
                    "difference": own.value,
                    "low": own.low,
                    "high": own.high,
                }
            )
    return pd.DataFrame(found)


def join() -> None:
    """One table of all tasks, which is installed too: notebooks read it."""
    found = {task: RESULTS / "equal_flops" / task / "table.csv" for task in TASKS}
    tables = {task: pd.read_csv(file) for task, file in found.items() if file.exists()}
    joined = pd.concat([table.assign(task=task) for task, table in tables.items()])
    joined = joined[["task", *(name for name in joined if name != "task")]]
    joined.to_csv(data_dir() / "equal_flops.csv", index=False)


def picture(lab: il.Lab) -> None:
    """What iLLaVA does to one image."""
    image, question = il.load_task("test").image(PICTURE[0]), PICTURE[1]
    answer = lab.ask(image, question, strategy="illava", keep=0.5)
    figure = il.pictures.reduction_figure(lab, image, answer, f"{question}  illava, keep 0.5: {answer.text}")
    (RESULTS / "embedded" / "tokens.png").write_bytes(il.pictures.to_png(figure))


def means() -> None:
    """All tasks side by side; what was not measured yet is measured now."""
    folder, tables = RESULTS / "equal_flops", {}
    for name, model in TASKS.items():
        task = il.load_task(name)
        tables[name] = compared(folder / name, il.load(model), task, asked(task))
    make_means.write(tables, folder)


def main() -> None:
    for name in sys.argv[1:] or [ONE, *TASKS, "means", "over-time"]:
        command = f"make results RUN={name}"
        if name == "means":
            means()
        elif name == ONE:
            measure(RESULTS / ONE, command, il.load(), il.load_task("test"), EQUAL_KEEP)
            picture(il.load())
        elif name == "over-time":
            for folder, budgets in OVER_TIME_BUDGETS.items():
                out, lab, task = RESULTS / "over_time" / folder, il.load(TASKS["video"]), il.load_task("video")
                measure(out, command, lab, task, OVER_TIME | budgets, drawn=False)
        else:
            task = il.load_task(name)
            measure(RESULTS / "equal_flops" / name, command, il.load(TASKS[name]), task, asked(task))
            join()


if __name__ == "__main__":
    main()
