"""Compute what the explorers on the site show: docs/explorers/. After a new embedded model, or a changed method:

    python docs/explorer_runs.py
    python docs/explorer_runs.py keeps

A minute, or the named ones only. The site's test says when a file does not fit the model or the chapters any more.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

from machine_runs import model_digest

import illava_lab as il
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Tokens
from illava_lab.widgets import KeepSlider, MergeExplorer, RedundancyExplorer, ScheduleDesigner, TradeoffExplorer

FOLDER = Path(__file__).resolve().parent / "explorers"


class Drop(il.get_strategy("illava")):  # type: ignore[misc]
    """iLLaVA's choice, with nothing merged: as in chapter 04."""

    name, kind = "drop", "prune"

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        """What iLLaVA keeps, and nothing else."""
        chosen = super().map(tokens, keep)
        return TokenMap.keep(chosen.anchor, tokens.count, chosen.score)


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=f"of {', '.join(EXPLORERS)}; without any, all of them")
    lab, model = il.load(), model_digest()
    for name in parser.parse_args().names or EXPLORERS:
        stored = {"model": model, **EXPLORERS[name](lab)}
        file = FOLDER / f"{name}.json"
        file.write_text(json.dumps(stored, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
        print(f"{file}: {file.stat().st_size / 1000:.0f} KB")


def tradeoff(lab: il.Lab) -> dict[str, Any]:
    """The comparison of chapter 04, section 2."""
    task = il.load_task("test").limited(80)
    methods: list[Any] = ["random", "downsample", Drop, "tome", "illava"]
    with tempfile.TemporaryDirectory() as folder:
        il.compare(lab, methods, flops=[0.7, 0.5, 0.35], task=task, timing=False, out=folder)
        explorer = TradeoffExplorer(folder, task)
    explorer.set(point="illava at FLOPs 0.35")
    return explorer.store()


def keeps(lab: il.Lab) -> dict[str, Any]:
    """The slider of chapter 00, section 2."""
    image = il.load_task("test").image("test-0006")
    slider = KeepSlider(lab, image, "How many shapes are in the image?", "illava")
    slider.widget.at = sorted(slider.keeps).index(0.5)
    return slider.store()


def designer(lab: il.Lab) -> dict[str, Any]:
    """The designer of chapter 03, without predicted time: seconds are those of a machine."""
    made = ScheduleDesigner(lab, il.load_task("test").image("test-0006"), "What digit is shown?", "illava")
    made.set("illava-image")
    return made.store()


def merge(lab: il.Lab) -> dict[str, Any]:
    """The explorer of chapter 02, section 6."""
    methods: dict[str, Any] = {"illava": "illava", "illava, ramp reversed": il.get_strategy("illava")(ramp="reversed")}
    methods |= {name: name for name in ("tome", "pool", "fastv", "random")}
    image = il.load_task("test").image("test-0006")
    explorer = MergeExplorer(lab, image, "What is the word?", methods, keep=0.3, patch=76)
    explorer.set(strategy="illava", step=5)
    return explorer.store()


def redundancy(lab: il.Lab) -> dict[str, Any]:
    """The explorer of chapter 01, section 2, with the first of its four pictures: each takes 0.4 MB."""
    image = il.load_task("test").image("test-0006")
    explorer = RedundancyExplorer(lab, {"scene": image}, "What is the word?", patch=20)
    explorer.set(stage="llm", layer=0)
    return explorer.store()


EXPLORERS = {"tradeoff": tradeoff, "keeps": keeps, "designer": designer, "merge": merge, "redundancy": redundancy}

if __name__ == "__main__":
    main()
