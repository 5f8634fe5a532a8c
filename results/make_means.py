"""Every method at equal FLOPs over the five tasks, and how far Tally is before it: `make results RUN=means`.

Writes to results/equal_flops/: means.csv, a row for each method and budget, with its mean over the tasks where it
reaches the budget; lead.csv, a row for each task and budget, with the best other method there; means.txt, both for
people. It measures nothing: the answers come from the runs of the five tasks in results/.runs/.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

import illava_lab as il
from illava_lab.measuring.difference import answered_right
from illava_lab.measuring.statistics import Difference, paired_difference

OWN, DRAWS = "tally", 10_000
# One task: rows that answered, by method and budget -> (questions,) bool, and the image of each question.
Answers = tuple[dict[tuple[str, float], np.ndarray], np.ndarray]


def answers(table: pd.DataFrame, task: il.Task) -> Answers:
    """Of one comparison, what each row that reached its budget answered right."""
    fine = table[(table["status"] == "ok") & table["flops"].notna()]
    right = {(row.strategy, row.flops): answered_right(table, row.Index) for row in fine.itertuples()}
    return right, task.samples["image_id"].to_numpy()


def mean_difference(tasks: Sequence[Answers], a: tuple[str, float], b: tuple[str, float]) -> Difference:
    """Row `a` minus row `b` in the mean over tasks, each of which counts alike.

    The interval (95 %) is a percentile bootstrap: images are drawn within each task, with the questions about them.
    """
    rng, values, draws = np.random.default_rng(0), [], np.zeros(DRAWS)
    for right, images in tasks:
        gain = right[a].astype(float) - right[b]
        sums = pd.Series(gain).groupby(images).agg(["sum", "count"]).to_numpy()
        drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=DRAWS) @ sums
        draws += drawn[:, 0] / drawn[:, 1] / len(tasks)
        values.append(gain.mean())
    return Difference(float(np.mean(values)), *(float(end) for end in np.quantile(draws, [0.025, 0.975])))


def means(tasks: dict[str, Answers]) -> pd.DataFrame:
    """Every method and budget: on how many tasks it reaches it, its mean there, Tally's there, and the difference."""
    rows = []
    for method, flops in dict.fromkeys(key for right, _ in tasks.values() for key in right):
        reached = [task for task in tasks.values() if (method, flops) in task[0] and (OWN, flops) in task[0]]
        own, other = (np.mean([right[name, flops].mean() for right, _ in reached]) for name in (OWN, method))
        lead = mean_difference(reached, (OWN, flops), (method, flops))
        found = {"flops": flops, "strategy": method, "tasks": len(reached), "mean": other, OWN: own}
        rows.append(found | {"lead": lead.value, "low": lead.low, "high": lead.high})
    return pd.DataFrame(rows).sort_values(["flops", "tasks", "mean"], ascending=False, kind="stable")


def leads(tasks: dict[str, Answers]) -> pd.DataFrame:
    """Every task and budget: Tally, the best other method (chosen by these very answers) and iLLaVA."""
    rows = []
    for name, (right, images) in tasks.items():
        for flops in dict.fromkeys(flops for method, flops in right if method == OWN):
            others = {method: right[method, flops].mean() for method, own in right if own == flops and method != OWN}
            best = max(others, key=lambda method: others[method])
            found = {
                "task": name,
                "flops": flops,
                OWN: right[OWN, flops].mean(),
                "best other": best,
                "its": others[best],
            }
            for label, method in (("lead", best), ("over illava", "illava")):
                lead = Difference(np.nan, np.nan, np.nan)
                if method in others:
                    lead = paired_difference(right[OWN, flops], right[method, flops], images)  # as in pairs.csv
                found |= {label: lead.value, f"{label} low": lead.low, f"{label} high": lead.high}
            rows.append(found)
    return pd.DataFrame(rows)


def text(averages: pd.DataFrame, points: pd.DataFrame) -> str:
    """Both tables for people, in percent and points."""

    def interval(row: pd.Series, name: str, low: str, high: str) -> str:
        if np.isnan(row[name]):
            return "not reached"
        return f"{100 * row[name]:+.1f} ({100 * row[low]:+.1f} to {100 * row[high]:+.1f})"

    lines = [
        f"{'':<26}  {'FLOPs':>5}  {'tasks':>5}  {'mean %':>6}  {OWN + ' %':>7}  {'lead of ' + OWN + ' (95 %)':>24}"
    ]
    for _, row in averages[averages["strategy"] != OWN].iterrows():
        lead = interval(row, "lead", "low", "high")
        lines.append(
            f"{row['strategy']:<26}  {row['flops']:>5}  {row['tasks']:>5}  {100 * row['mean']:>6.1f}  "
            f"{100 * row[OWN]:>7.1f}  {lead:>24}"
        )
    lines += ["", f"{'':<13}  {'FLOPs':>5}  {OWN + ' %':>7}  {'best other, %':>19} {'lead':>21} {'over illava':>21}"]
    for _, row in points.iterrows():
        other = f"{row['best other']} {100 * row['its']:.1f}"
        lead, over = (interval(row, name, f"{name} low", f"{name} high") for name in ("lead", "over illava"))
        lines.append(f"{row['task']:<13}  {row['flops']:>5}  {100 * row[OWN]:>7.1f}  {other:>19} {lead:>21} {over:>21}")
    return "\n".join(lines) + "\n"


def write(tables: dict[str, pd.DataFrame], out: Path) -> None:
    """All three files."""
    tasks = {name: answers(table, il.load_task(name)) for name, table in tables.items()}
    averages, points = means(tasks), leads(tasks)
    averages.to_csv(out / "means.csv", index=False)
    points.to_csv(out / "lead.csv", index=False)
    (out / "means.txt").write_text(text(averages, points), encoding="utf-8")
    print(text(averages, points))
