"""Measure the embedded model: `make results` writes results/embedded/, results/equal_flops/ and data/equal_flops.csv.

Each holds table.csv (all columns of `compare`), summary.txt (the same for people), tradeoff.png, about.json
(machine, versions, date, command, seed) and measured.json (what `make leaderboard` needs to know besides). A stopped
run goes on from results/.runs/, which is not kept in the repository. results/embedded/tokens.png is the picture of the
README.
"""

from __future__ import annotations

import json
import platform
import sys
from datetime import date
from pathlib import Path
from typing import Any

import torch
import transformers

import illava_lab as il
from illava_lab.measuring import loglines
from illava_lab.measuring.machine import environment
from illava_lab.measuring.summary import summary_by_category
from illava_lab.paths import data_dir

RESULTS = Path(__file__).parent
RUNS: dict[str, dict[str, Any]] = {
    "embedded": {"strategies": ["none", "random", "fastv", "tome", "illava"], "keep": [0.7, 0.5, 0.3]},
    "equal_flops": {
        "strategies": [*il.strategies(), il.get_strategy("illava-2026")(score="lse")],
        "flops": [0.7, 0.5, 0.35],
        "timing": False,
    },
}
PICTURE = ("test-0006", "What digit is shown?")  # image and question of tokens.png


def measure(name: str, lab: il.Lab) -> None:
    """Run one comparison and write its folder."""
    out, task = RESULTS / name, il.load_task("test")
    out.mkdir(exist_ok=True)
    table = il.compare(lab, **RUNS[name], task=task, out=RESULTS / ".runs" / name)
    table.to_csv(out / "table.csv", index=False)
    if name == "equal_flops":
        table.to_csv(data_dir() / "equal_flops.csv", index=False)  # notebooks read it in an installed package too
    text = f"{il.summary(table)}\n\nAccuracy % by category of question\n{summary_by_category(table)}\n"
    (out / "summary.txt").write_text(text, encoding="utf-8")
    il.plots.tradeoff_png(table, out / "tradeoff.png")
    about = {
        "command": f"make results RUN={name}",
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
    log = loglines.read(RESULTS / ".runs" / name / "run.jsonl")
    assert log is not None
    noted = {"settings": log.settings, "measured": log.entries[-1]["measured"]}
    (out / "measured.json").write_text(json.dumps(noted, indent=2) + "\n", encoding="utf-8")
    print(text)


def picture(lab: il.Lab) -> None:
    """What iLLaVA does to one image."""
    image, question = il.load_task("test").image(PICTURE[0]), PICTURE[1]
    answer = lab.ask(image, question, strategy="illava", keep=0.5)
    figure = il.pictures.reduction_figure(lab, image, answer, f"{question}  illava, keep 0.5: {answer.text}")
    (RESULTS / "embedded" / "tokens.png").write_bytes(il.pictures.to_png(figure))


def main() -> None:
    lab = il.load()
    for name in sys.argv[1:] or RUNS:
        measure(name, lab)
    picture(lab)


if __name__ == "__main__":
    main()
