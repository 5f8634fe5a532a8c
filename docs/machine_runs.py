"""Compute the runs that the site's machine shows: docs/machine.json. After a new embedded model, or a changed method:

    python docs/machine_runs.py

A minute. The site's test says when the file does not fit the model any more.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import illava_lab as il
from illava_lab.widgets import Machine

FILE = Path(__file__).resolve().parent / "machine.json"
PICTURES = {"shapes": "shapes.png", "digit": "digit.png", "word": "word.png"}
QUESTIONS = {
    "shapes": ["What color is the circle?", "How many stars are there?"],
    "digit": ["What digit is shown?", "What color is the ring?"],
    "word": ["What word is written?", "How many squares are there?"],
}
STRATEGIES = ("illava", "tome", "fastv", "visionzip", "random", "downsample")
KEEPS = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
SHARES = (0.25, 0.5, 0.75)  # kept at a single layer, where its handle is moved
NOTE = (
    "The runs on this page were computed before: a handle goes to the nearest of them. In a notebook, "
    "illava_lab.widgets.Machine computes whatever you ask for."
)


def main() -> None:
    """Write the file."""
    lab = il.load()
    samples = il.data_dir() / "samples"
    pictures = {name: samples / file for name, file in PICTURES.items()}
    machine = Machine(lab, pictures, QUESTIONS, "illava", 0.3, strategies=STRATEGIES, keeps=KEEPS)
    stored = {"model": model_digest(), "note": NOTE, **machine.store(wanted(lab))}
    FILE.write_text(json.dumps(stored, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
    print(f"{FILE}: {len(stored['runs'])} runs, {FILE.stat().st_size / 1000:.0f} KB")


def wanted(lab: il.Lab) -> list[dict[str, Any]]:
    """Every question without reduction and with every method at every budget; iLLaVA at every single layer."""
    out = []
    for picture, questions in enumerate(QUESTIONS.values()):
        for question in questions:
            asked = {"picture": picture, "question": question}
            out.append({**asked, "method": "none", "keep": 1, "schedule": None})
            for method in STRATEGIES:
                out += [{**asked, "method": method, "keep": keep, "schedule": None} for keep in KEEPS]
        for schedule in single_layers(lab):
            asked = {"picture": picture, "question": questions[0]}
            out.append({**asked, "method": "illava", "keep": 0.3, "schedule": schedule})
    return out


def single_layers(lab: il.Lab) -> list[dict[str, Any]]:
    """Schedules that reduce at one layer only."""
    anatomy = il.describe(lab.model)
    layers = {"encoder": range(anatomy.depth("encoder")), "llm": range(1, anatomy.depth("llm"))}
    return [
        {"image": None, "encoder": {}, "llm": {}, stage: {str(layer): share}}
        for stage, numbers in layers.items()
        for layer in numbers
        for share in SHARES
    ]


def model_digest() -> str:
    """Which weights the embedded model has."""
    return hashlib.sha256((il.data_dir() / "model" / "model.safetensors").read_bytes()).hexdigest()


if __name__ == "__main__":
    main()
