"""What the training of the embedded models minimises before there are answers, and how fast it goes."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def oracle(labels: Tensor, tables: list[Tensor]) -> Tensor:
    """(..., C) sums of concept embeddings for the labels (..., groups): a table (concepts, C) for each group."""
    return sum(table[labels[..., i]] for i, table in enumerate(tables))


def dense_loss(logits: list[Tensor], labels: Tensor) -> Tensor:
    """`logits`: (..., concepts) for each group of `labels` (..., groups)."""
    return sum(F.cross_entropy(part.flatten(0, 1), labels[..., i].flatten()) for i, part in enumerate(logits))


def align_loss(visual: Tensor, labels: Tensor, tables: list[Tensor]) -> Tensor:
    """Squared distance to the oracle tokens, on objects as much as on background, in units of their spread."""
    wanted = oracle(labels, tables).detach()
    error = (visual.float() - wanted).square().mean(-1) / wanted.var()
    busy = labels[..., 0] > 0
    return error[busy].mean() + 0.3 * error[~busy].mean()


@torch.no_grad()
def fit(layer: nn.Linear, x: Tensor, y: Tensor) -> None:
    """Set a linear layer to the least-squares map from x (N, in) to y (N, out)."""
    x = F.pad(x, (0, 1), value=1.0).double()
    square = x.T @ x
    ridge = 1e-4 * square.diagonal().mean() * torch.eye(len(square)).to(square)
    solution = torch.linalg.solve(square + ridge, x.T @ y.double())
    layer.weight.copy_(solution[:-1].T)
    layer.bias.copy_(solution[-1])


def rate_at(step: int, steps: int, decay: float) -> float:
    """Warm up, stay, and fall to zero over the last part of the steps."""
    return min(1.0, (step + 1) / 100, (steps - step) / (decay * steps) if decay else 1.0)
