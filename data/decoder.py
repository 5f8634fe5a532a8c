"""The decoder behind what is shown: packed questions, what they minimise, and which are right."""

from __future__ import annotations

import torch
from packing import IGNORED
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

Batch = dict[str, Tensor]


def run(decoder: nn.Module, shown: Tensor, places: Tensor, batch: Batch, middle: int = 0) -> tuple[Tensor, ...]:
    """Hidden states of the packed text; with `middle`, those of what is shown behind so many layers, and `looks` of the
    next layer, too.

    Args:
        decoder: a Llama or Qwen2 model.
        shown: (rows, L, C) embeddings of the prompt up to the questions.
        places: (rows, L) their positions; the text's begin behind the last.
    """
    hidden = torch.cat([shown, decoder.get_input_embeddings()(batch["ids"])], 1)
    position = torch.cat([places, batch["position"] + batch["begin"]], 1)
    block = F.pad(batch["block"], (shown.shape[1], 0))  # 0: what all questions may see
    seen = torch.ones(block.shape[1], block.shape[1], dtype=torch.bool, device=block.device).tril()
    seen = seen & ((block[:, None, :] == block[:, :, None]) | (block[:, None, :] == 0))
    rotary, inside = decoder.rotary_emb(hidden, position), hidden
    for number, layer in enumerate(decoder.layers, 1):
        hidden = layer(hidden, attention_mask=seen[:, None], position_ids=position, position_embeddings=rotary)
        if number == middle:
            inside = hidden
    text = decoder.norm(hidden)[:, shown.shape[1] :]
    if not middle:
        return (text,)
    return text, inside[:, : shown.shape[1]], looks(decoder.layers[middle], inside, rotary, shown.shape[1])


def looks(layer: nn.Module, hidden: Tensor, rotary: tuple[Tensor, Tensor], length: int) -> Tensor:
    """(rows, key heads, T, L) logarithms of the attention that the text pays to the `length` tokens of what is shown,
    among these alone: of one layer, the first head of each group that shares its keys."""
    attend, hidden = layer.self_attn, layer.input_layernorm(hidden)
    query, key = (
        part(hidden).unflatten(-1, (-1, attend.head_dim)).transpose(1, 2) for part in (attend.q_proj, attend.k_proj)
    )
    query, key = apply_rotary_pos_emb(query[:, :: attend.num_key_value_groups], key, *rotary)
    scores = query[:, :, length:] @ key[:, :, :length].transpose(-1, -2) * attend.scaling
    return scores.float().log_softmax(-1)


def answer_loss(head: nn.Module, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss, and for every packed question: category, whether it came later in its conversation, and whether all of its
    answer's tokens come first by greedy choice."""
    where = batch["target"] != IGNORED
    logits, target = head(hidden[where]).float(), batch["target"][where]
    right = logits.argmax(-1) == target
    question = (torch.arange(len(where), device=where.device)[:, None] * 100 + batch["asked"])[where]
    _, index = question.unique(return_inverse=True)
    count = int(index.max()) + 1
    wrong = torch.zeros(count, device=where.device).index_add(0, index, (~right).float())
    about = torch.stack([batch["category"][where], batch["later"][where]], 1)
    about = torch.zeros(count, 2, dtype=torch.long, device=where.device).index_copy(0, index, about)
    return F.cross_entropy(logits, target), torch.cat([about, (wrong == 0).long()[:, None]], 1)
