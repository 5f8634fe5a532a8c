"""Proportional attention in the language model: a token that stands for s tokens counts s times.

``A = softmax(q k^T / sqrt(d) + log s)``, which is equation 1 of Token Merging (arXiv 2210.09461) for its encoder.
Without it, a softmax over fewer tokens gives those that are left, and the text, more than they had.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from illava_lab.hooks.llm.groups import Group
from illava_lab.hooks.llm.sequence import Sequence
from illava_lab.method.brought import upload


def entry_counts(group: Group) -> Tensor:
    """(I, n) float32: how many visual tokens of the unreduced picture each stands for. Sizes count patches, of which a
    visual token may be made of several, or of a part."""
    layout, survivors = group.images[0].encoded.layout, group.survivors
    return survivors.size / upload(layout.sizes.numpy(), group.at.device)[survivors.place]


def log_sizes(groups: list[Group], sequence: Sequence) -> Tensor:
    """(B, L) float32: log of how many of its image's visual tokens each token stands for, 0 for text."""
    out = torch.zeros((len(sequence.row), sequence.length), dtype=torch.float32, device=sequence.device)
    for group in groups:
        assert group.counts is not None
        logs = group.counts.clamp_min(torch.finfo(torch.float32).tiny).log()
        out = out.index_put((group.row, group.at), logs.to(out.device))
    return out


def weighed(bias: Tensor, key: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
    """The mask of an attention whose keys have this bias.

    Args:
        bias: (B, L) of the prompts; what was generated behind them has none.
        key: (B, Hkv, S, d) all keys; mask: (B or 1, 1, T, S or more) bool or additive, or None.
        causal: without a mask, whether there are as many queries as keys, of which each sees those before it; else
            there is one, which sees all.

    Returns:
        (B, 1, T, S) or (B, 1, 1, S), additive, in the dtype of the keys.
    """
    count, least = key.shape[2], torch.finfo(key.dtype).min
    bias = F.pad(bias, (0, count - bias.shape[1])).to(key.device, key.dtype)[:, None, None]
    if mask is None and causal:
        mask = torch.ones((1, 1, count, count), dtype=torch.bool, device=key.device).tril_()
    if mask is None:
        return bias
    mask = mask[..., :count]
    return torch.where(mask, bias, least) if mask.dtype == torch.bool else (mask + bias).clamp_min_(least)
