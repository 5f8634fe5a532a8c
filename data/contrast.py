"""What teaches the tower's CLS token, as CLIP does: the caption of a scene must be found among those of a batch."""

from __future__ import annotations

import numpy as np
import torch
from scenes import Scene
from torch import Tensor, nn
from torch.nn import functional as F

ROOM = 48  # tokens of the longest caption: nine objects and their places
LAYERS, HEADS = 2, 4


def caption(scene: Scene, rng: np.random.Generator) -> str:
    """All that is placed in a scene, in any order: "a red circle, the digit 3 and the word cat"."""
    names = [f"the {i.kind} {i.value}" if i.kind in ("digit", "word") else f"a {i.name}" for i in scene.items]
    names = [names[i] for i in rng.permutation(len(names))]
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


class TextTower(nn.Module):
    """Caption tokens (N, ROOM), 0 where there are none, to unit vectors (N, width) in the space of the pooled CLS."""

    def __init__(self, words: int, width: int) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(words, width), nn.Embedding(ROOM, width)
        layer = nn.TransformerEncoderLayer(width, HEADS, 3 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, LAYERS, nn.LayerNorm(width), enable_nested_tensor=False)
        self.out = nn.Linear(width, width, bias=False)
        self.scale = nn.Parameter(torch.tensor(float(np.log(1 / 0.07))))
        nn.init.normal_(self.words.weight, std=0.05)
        nn.init.normal_(self.places.weight, std=0.01)

    def forward(self, tokens: Tensor) -> Tensor:
        absent = tokens == 0
        hidden = self.words(tokens) + self.places.weight[: tokens.shape[1]]
        hidden = self.encoder(hidden, src_key_padding_mask=absent)
        there = (~absent)[..., None].to(hidden.dtype)
        return F.normalize(self.out((hidden * there).sum(1) / there.sum(1)).float(), dim=-1)


def likeness(pooled: Tensor, captions: Tensor, scale: Tensor) -> Tensor:
    """(pictures, captions) logits of what belongs together (Radford et al. 2021, arXiv 2103.00020, figure 3)."""
    return F.normalize(pooled.float(), dim=-1) @ captions.T * scale.exp().clamp(max=100)


def contrast_loss(logits: Tensor) -> Tensor:
    """Each picture finds its caption among those of the batch, and each caption its picture."""
    right = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2
