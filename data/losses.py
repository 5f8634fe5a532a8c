"""What the training of the embedded model minimises before there are answers, and how fast it goes."""

from __future__ import annotations

from concepts import GROUPS, STARTS
from torch import Tensor
from torch.nn import functional as F


def oracle(labels: Tensor, table: Tensor) -> Tensor:
    """(..., C) sums of concept embeddings `table` for the labels (..., groups)."""
    return sum(table[labels[..., i] + int(start)] for i, start in enumerate(STARTS.values()))


def dense_loss(logits: Tensor, labels: Tensor) -> Tensor:
    parts = logits.float().split([len(group) for group in GROUPS.values()], dim=-1)
    return sum(F.cross_entropy(part.flatten(0, 1), labels[..., i].flatten()) for i, part in enumerate(parts))


def align_loss(visual: Tensor, labels: Tensor, table: Tensor) -> Tensor:
    """Squared distance to the oracle tokens, on objects as much as on background, in units of their spread."""
    wanted = oracle(labels, table).detach()
    error = (visual.float() - wanted).square().mean(-1) / wanted.var()
    busy = labels[..., 0] > 0
    return error[busy].mean() + 0.3 * error[~busy].mean()


def rate_at(step: int, steps: int, decay: float) -> float:
    """Warm up, stay, and fall to zero over the last part of the steps."""
    return min(1.0, (step + 1) / 100, (steps - step) / (decay * steps) if decay else 1.0)
