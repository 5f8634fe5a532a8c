"""What tells things from background: `python results/research/signals.py` writes data/signals.csv.

For each signal and encoder layer, of the bare model: the area under the ROC curve (AUC) with which the signal ranks the
patches of things above those of background, the mean over validation pictures. What a patch shows is known from the
scenes that the pictures were drawn from, which `data/make_tasks.py` draws again from the same seed.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from run import commit
from sklearn.metrics import roc_auc_score
from torch import Tensor

import illava_lab as il
from illava_lab.method import Strategy, TokenMap, Tokens, unit

DATA = Path(__file__).parents[2] / "data"
PICTURES = 40


def unlike_mean(x: Tensor) -> Tensor:
    """(B, N, C) -> (B, N): minus the mean cosine to all tokens."""
    return -torch.bmm(unit(x), unit(x).mean(dim=1)[:, :, None])[..., 0]


def unlike_likest(x: Tensor) -> Tensor:
    """(B, N, C) -> (B, N): minus the cosine to the token that is most like it."""
    alike = torch.bmm(unit(x), unit(x).transpose(1, 2))
    alike.diagonal(dim1=1, dim2=2).fill_(-torch.inf)
    return -alike.amax(dim=2)


SIGNALS: dict[str, Callable[[Tokens], Tensor]] = {
    "attention received": lambda tokens: tokens.attention_received,
    "attention of CLS": lambda tokens: tokens.cls_attention,
    "received x length of value": lambda tokens: tokens.attention_received * tokens.values.norm(dim=2),
    "unlike its likest token": lambda tokens: unlike_likest(tokens.keys),
    "unlike the mean key": lambda tokens: unlike_mean(tokens.keys),
    "unlike the mean state": lambda tokens: unlike_mean(tokens.hidden),
}


class Probe(Strategy):
    """Takes nothing away, and notes the signals of every layer."""

    name = "probe"

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        for name, signal in SIGNALS.items():
            found = signal(tokens)[0].float()
            noted[name, tokens.layer] = found[~tokens.protected[0]].numpy()
        return TokenMap.identity(tokens)


noted: dict[tuple[str, int | None], np.ndarray] = {}


def scenes(count: int) -> list:
    """The scenes of the first pictures of the validation task.

    Raises:
        AssertionError: drawn again, one of them is another picture.
    """
    sys.path.insert(0, str(DATA))
    import make_tasks
    from scenes import draw

    made, kind = [], make_tasks.KINDS["test"]

    def make(rng: np.random.Generator, split: str):
        made.append(kind.make(rng, split))
        return made[-1]

    make_tasks.KINDS["test"] = replace(kind, make=make, encode=lambda scene: b"")
    make_tasks.rows("test", "validation", count)
    task = il.load_task("validation")
    for number, scene in enumerate(made):
        assert np.array_equal(np.asarray(draw(scene)), np.asarray(task.image(f"validation-{number:04d}"))), number
    return made


def main() -> None:
    found, lab, task = defaultdict(list), il.load(), il.load_task("validation")
    made = scenes(PICTURES)
    from concepts import patch_labels

    for number, scene in enumerate(made):
        noted.clear()
        thing = patch_labels(scene)[:, 0] > 0
        schedule = il.Schedule(encoder=dict.fromkeys(range(8), 0.9999))  # rounds to all: the strategy is asked
        lab.ask(
            task.image(f"validation-{number:04d}"), "How many shapes are there?", strategy=Probe(), schedule=schedule
        )
        for place, signal in noted.items():
            found[place].append(roc_auc_score(thing, signal))
    rows = [
        {"signal": signal, "layer": layer, "auc": np.mean(areas), "pictures": len(areas)}
        for (signal, layer), areas in found.items()
    ]
    table = pd.DataFrame(rows).assign(
        command="python results/research/signals.py", commit=commit(), date=date.today().isoformat()
    )
    table.to_csv(DATA / "signals.csv", index=False, float_format="%.4f")


if __name__ == "__main__":
    main()
