"""What each ingredient of Tally is worth, on validation questions alone: `python results/research/run.py`.

Writes log.csv, and its rows about `validation` to data/research.csv, which is installed, too:
for every variant, task and budget its accuracy, and its difference to Tally with a paired 95 % interval
over pictures. Each row says with which command, at which commit it began and on which day it ended. A stopped run goes
on.
`python results/research/run.py validation` asks one task, and replaces its rows alone.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from datetime import date
from pathlib import Path

import pandas as pd
from variants import Variant

import illava_lab as il
from illava_lab.method import Strategy

HERE = Path(__file__).parent
DATA = HERE.parents[1] / "data"
FLOPS = [0.5, 0.35]
# Of each task, the model that answers it.
TASKS = {
    "validation": None,
    "conversation-validation": None,
    "fine-validation": "embedded:onevision",
    "multi-image-validation": "embedded:onevision",
    "video-validation": "embedded:onevision",
}
QUESTIONS: dict[str, list[Variant]] = {
    "do sizes count in the LLM?": [Variant(llm=False)],
    "do sizes count in the encoder?": [Variant(tower=False), Variant(tower=False, llm=False)],
    "are common tokens first?": [Variant(shield=0.0), Variant(shield=0.3), Variant(shield=0.0, llm=False)],
    "what says that a token is distinct?": [Variant(by="keys"), Variant(by="received"), Variant(by="value norm")],
    "is near better than alike?": [Variant(near=0.03), Variant(near=0.1)],
    "who chooses in the LLM?": [Variant(raters="last")],
    "what becomes of the others in the LLM?": [Variant(rest="merge")],
    "how is the budget split?": [Variant(share=0.35), Variant(share=0.65), Variant(share=0.8)],
    "which layers of the encoder?": [Variant(encoder_layers=name) for name in ("all", "middle half", "first quarter")],
    "which layers of the LLM?": [Variant(llm_layers=(1 / 3,)), Variant(llm_layers=(1 / 6, 1 / 3, 2 / 3))],
}
OTHERS = ["tome", "tome+fastv", "illava", "flowcut"]


def measure(task: str) -> pd.DataFrame:
    """All variants on one task."""
    asked = {variant.label: question for question, variants in QUESTIONS.items() for variant in variants}
    started = commit()
    wanted: list[Strategy | str] = ["tally", *itertools.chain(*QUESTIONS.values()), *OTHERS]
    out = HERE.parent / ".runs" / "research" / task
    table = il.compare(il.load(TASKS[task]), wanted, flops=FLOPS, task=task, timing=False, batch_size=16, out=out)
    rows, fine = [], table[(table["status"] == "ok") & table["flops"].notna()]
    for flops, group in fine.groupby("flops", sort=False):
        own = group.index[group["strategy"] == "tally"][0]
        for index in group.index:
            difference = il.difference(table, index, own)
            name = table.at[index, "strategy"]
            rows.append(
                {
                    "question": asked.get(name, "the method" if name == "tally" else "other methods"),
                    "variant": name,
                    "task": task,
                    "flops": flops,
                    "accuracy": table.at[index, "accuracy"],
                    "difference": difference.value,
                    "low": difference.low,
                    "high": difference.high,
                }
            )
    return pd.DataFrame(rows).assign(
        command=f"python results/research/run.py {task}", commit=started, date=date.today().isoformat()
    )


def commit() -> str:
    """What is checked out, short."""
    return subprocess.run(
        ["git", "-C", str(HERE), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()


def main() -> None:
    log = HERE / "log.csv"
    for task in sys.argv[1:] or TASKS:
        table = measure(task)
        if log.exists():
            before = pd.read_csv(log)
            table = pd.concat([before[before["task"] != task], table])
        table.to_csv(log, index=False, float_format="%.4f")
        # What chapter 09 of the course reads: it is installed, too.
        table[table["task"] == "validation"].to_csv(DATA / "research.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
