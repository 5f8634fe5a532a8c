"""What `gpu.py` measures: models, prompts, and what reduces them, the most telling first."""

from __future__ import annotations

from fnmatch import fnmatch
from typing import NamedTuple

from prompts import PROMPTS, Prompt

KEEP = 0.5


class Rows(NamedTuple):
    """One table.

    Attributes:
        name: of the table.
        source: what `il.load` opens; None is the embedded model.
        prompt: what each prompt shows.
        batch: prompts at once.
        presets: papers' settings, each with its strategy.
        strategies: those that keep half of the visual tokens.
    """

    name: str
    source: str | None
    prompt: Prompt
    batch: int
    presets: tuple[str, ...]
    strategies: tuple[str, ...] = ()


def _rows(name: str, prompt: Prompt, presets: str, strategies: str = "", batch: int = 1) -> Rows:
    return Rows(name, f"random:{prompt.model}", prompt, batch, tuple(presets.split()), tuple(strategies.split()))


SMALL, LARGE, CROPS_34B, CROPS, FRAMES, QWEN = PROMPTS
BOTH = "illava-image illava-2026-89"
ROWS = (
    _rows(
        "llava-1.5-7b-b1", SMALL, f"{BOTH} fastv-75 tome-16 visionzip-64",
        "illava fastv tome visionzip",
    ),
    _rows("llava-1.5-7b-b16", SMALL, f"{BOTH} visionzip-64", batch=16),
    _rows("onevision-7b-image", CROPS, f"{BOTH} tome-16 fastv-75", "illava"),
    _rows("onevision-7b-video", FRAMES, "illava-video illava-2026-89 tome-16 fastv-75"),
    _rows("qwen2-vl-7b", QWEN, "illava-qwen2-vl illava-2026-89"),
    _rows("llava-1.5-13b", LARGE, BOTH),
    _rows("next-34b", CROPS_34B, BOTH),
)  # fmt: skip
# Only if named: for trying the script where there is no GPU.
TINY = Rows("tiny", None, Prompt("embedded", "one picture of 96 x 96", (96, 96)), 1, (), ("illava", "fastv"))


def chosen(patterns: list[str]) -> list[Rows]:
    """The tables whose names match one of the patterns, in their own order."""
    return [rows for rows in (*ROWS, TINY) if any(fnmatch(rows.name, pattern) for pattern in patterns)]
