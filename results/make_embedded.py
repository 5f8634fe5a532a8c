"""Measure the embedded model and write results/embedded/: `make results`.

table.csv (all columns of `compare`), summary.txt (what `make compare` prints), tradeoff.png, tokens.png (the picture of
the README) and about.json (machine, versions, date, command, seed).
"""

from __future__ import annotations

import json
import os
import platform
from datetime import date
from pathlib import Path

import torch
import transformers

import illava_lab as il
from illava_lab.compare import summary_by_category

OUT = Path(__file__).parent / "embedded"
STRATEGIES = ["none", "random", "fastv", "tome", "illava"]
KEEP = [0.7, 0.5, 0.3]
PICTURE = ("test-0006", "What digit is shown?")  # image and question of tokens.png


def machine() -> str:
    """Name of the processor, as far as the system tells."""
    info = Path("/proc/cpuinfo")
    names = [line.split(":")[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")] if info.exists() else []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    OUT.mkdir(exist_ok=True)
    lab, task = il.load(), il.load_task("test")
    table = il.compare(lab, STRATEGIES, KEEP, task=task)
    table.to_csv(OUT / "table.csv", index=False)
    text = f"{il.summary(table)}\n\nAccuracy % by category of question\n{summary_by_category(table)}\n"
    (OUT / "summary.txt").write_text(text, encoding="utf-8")
    il.plots.tradeoff_png(table, OUT / "tradeoff.png")
    image, question = task.image(PICTURE[0]), PICTURE[1]
    answer = lab.ask(image, question, strategy="illava", keep=0.5)
    figure = il.pictures.reduction_figure(lab, image, answer, f"{question}  illava, keep 0.5: {answer.text}")
    (OUT / "tokens.png").write_bytes(il.pictures.to_png(figure))
    about = {
        "command": "make results",
        "machine": machine(),
        "torch_threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
        "seed": 0,
        "questions": len(task),
    }
    (OUT / "about.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
