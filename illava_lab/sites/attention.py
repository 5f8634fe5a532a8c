"""Statistics of attention at one place in a model.

An `AttentionSite` computes from queries and keys only what a strategy asks for: one row where a row is enough, column
sums in blocks, never a full attention matrix kept. It knows no model and holds no hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn

from illava_lab.errors import LabError

Part = TypeVar("Part")

LLM_STATISTICS = (
    "text_attention", "next_text_attention", "text_rows", "text_hidden", "text_wide_keys",
    "normed_hidden", "text_normed_hidden", "embeddings", "text_embeddings",
)  # fmt: skip
# The column sums hold at most so many rows of attention at once, few enough for a CPU's caches; but always as many as
# have so many weights, so that small images cost few calls.
BLOCK_ROWS = 64
CPU_WEIGHTS, ACCELERATOR_WEIGHTS = 2**16, 2**23


class UnequalText(LabError):
    """Prompts of a site differ in how many text tokens follow the image; each such length needs a site of its own."""


@dataclass(eq=False)
class AttentionSite:
    """Queries and keys of one attention over P prompts, and where the tokens of B images are in them.

    Scores are computed once for each prompt, however many of its images ask; only then are those of each image picked.

    Attributes:
        query: (P, H, T, d), key: (P, Hkv, S, d) with H a multiple of Hkv; T == S (prefill).
        scaling: the factor on the logits.
        mask: None, (P, S) validity, or (P or 1, 1, T, S) additive or boolean mask.
        valid: (P, S) bool, False at padding; None when there is none.
        causal: whether later keys are hidden when the mask does not say so.
        visual: (B, N) positions of the visual tokens, or None when all S are the tokens of the site.
        prompt: (B,) long, the prompt in which each image is; None where each has one (B == P).
        has_cls: whether token 0 is CLS.
        hidden: (P, S, C), the whole sequence that the layer after the site receives.
        last: (P,) position of the last text token, or None.
        text: (P, T) positions of the text tokens after the images, or what makes them; None where images differ in
            their number.
        ahead: computes queries and keys of the layer to come; entry: gives the sequence (P, S0, C) that entered the
            LLM, and the positions in it of the visual tokens (B, N0) and of the text after them (P, T); norm: the last
            norm of the LLM. None outside it.
    """

    query: Tensor
    key: Tensor
    scaling: float
    mask: Tensor | None = None
    valid: Tensor | None = None
    causal: bool = False
    visual: Tensor | None = None
    prompt: Tensor | None = None
    has_cls: bool = False
    hidden: Tensor | None = None
    last: Tensor | None = None
    text: Tensor | Callable[[], Tensor | None] | None = None
    ahead: Callable[[], tuple[Tensor, Tensor]] | None = None
    entry: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = None
    norm: nn.Module | None = None

    def statistic(self, name: str) -> Tensor:
        """One of `illava_lab.method.STATISTICS`.

        Raises:
            LabError: this site does not have it.
        """
        if name in ("cls_attention", "wide_cls_attention") and not self.has_cls:
            raise LabError(f"{name} needs a CLS token, which this place has not; {self._offers()}")
        if name in LLM_STATISTICS and self.last is None:
            raise LabError(f"{name} needs the language model, which the image encoder does not see; {self._offers()}")
        value: Tensor = getattr(self, f"_{name}")()
        return value

    def _offers(self) -> str:
        have = ["attention_received", "lse", "keys", "wide_keys"]
        have += ["cls_attention", "wide_cls_attention"] if self.has_cls else []
        have += LLM_STATISTICS if self.last is not None else []
        return f"it has {', '.join(have)}"

    # ---- logits
    def _logits(self, rows: slice | Tensor) -> Tensor:
        """(B, H, R, S) float32 logits of some query rows: a slice common to the batch, or (B, R) positions."""
        if isinstance(rows, slice):
            query = self.query[:, :, rows]
            position = torch.arange(self.query.shape[2], device=query.device)[rows].expand(query.shape[0], -1)
        else:
            position = rows
            index = rows[:, None, :, None].expand(-1, self.query.shape[1], -1, self.query.shape[3])
            query = self.query.gather(2, index)
        batch, heads, count, width = query.shape
        groups = self.key.shape[1]
        grouped = query.reshape(batch, groups, heads // groups * count, width)
        logits = (grouped @ self.key.transpose(-1, -2)).float().view(batch, heads, count, -1).mul_(self.scaling)
        return self._masked(logits, position)

    def _masked(self, logits: Tensor, position: Tensor) -> Tensor:
        mask = self.mask
        if mask is not None and mask.dim() == 4:
            mask = mask[..., : self.key.shape[2]].expand(logits.shape[0], -1, self.query.shape[2], -1)
            index = position[:, None, :, None].expand(-1, mask.shape[1], -1, mask.shape[3])
            mask = mask.gather(2, index)
            return logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask.float()
        if mask is not None:
            logits = logits.masked_fill(~mask[:, None, None, : self.key.shape[2]].bool(), -torch.inf)
        if self.causal:
            later = torch.arange(self.key.shape[2], device=logits.device) > position[:, None, :, None]
            logits = logits.masked_fill(later, -torch.inf)
        return logits

    def _visual_columns(self, x: Tensor) -> Tensor:
        """(B, ..., N): the visual tokens along the last axis of (P, ..., S)."""
        if self.visual is None:
            return x
        return tokens_at(x.movedim(-1, 1), self.visual, self.prompt).movedim(1, -1)

    def _visual_tokens(self, x: Tensor) -> Tensor:
        """(B, N, ...): the visual tokens of (P, S, ...)."""
        return x if self.visual is None else tokens_at(x, self.visual, self.prompt)

    def _text_tokens(self, x: Tensor, text: Tensor) -> Tensor:
        """(B, T, ...): the text after each image, from (P, S, ...) and its positions (P, T)."""
        return tokens_at(x, text if self.prompt is None else text[self.prompt], self.prompt)

    # ---- statistics
    def _query_blocks(self) -> list[slice]:
        """Stretches of rows whose float32 weights need at most the bytes of the queries, unless these are few anyway.

        With a copy of them for the softmax this is still less than what the MLP of any model needs, so that a block
        does not make the peak.
        """
        batch, heads, count, width = self.query.shape
        rows = min(BLOCK_ROWS, count * width * self.query.itemsize // (4 * self.key.shape[2]))
        enough = CPU_WEIGHTS if self.query.device.type == "cpu" else ACCELERATOR_WEIGHTS
        rows = max(1, rows, enough // (batch * heads * self.key.shape[2]))
        return [slice(start, start + rows) for start in range(0, count, rows)]

    def _attention_received(self) -> Tensor:
        total = torch.zeros(self.key.shape[0], self.key.shape[2], device=self.key.device)
        for block in self._query_blocks():
            weights = self._logits(block).softmax(-1)
            if self.valid is None:
                total += weights.sum((1, 2))
            else:
                total += weights.sum(1).masked_fill(~self.valid[:, block, None], 0.0).sum(1)
        queries = self.query.shape[2] if self.valid is None else self.valid.sum(1, keepdim=True)
        return self._visual_columns(total / (self.query.shape[1] * queries))

    def _lse(self) -> Tensor:
        blocks = [self._logits(block).logsumexp(-1).mean(1) for block in self._query_blocks()]
        return self._visual_columns(torch.cat(blocks, dim=1))

    def _row(self, rows: Tensor) -> Tensor:
        return self._visual_columns(self._logits(rows).softmax(-1).mean(1))

    def _cls_attention(self) -> Tensor:
        return self._row(self.key.new_zeros(self.key.shape[0], 1, dtype=torch.long))[:, 0]

    def _text_attention(self) -> Tensor:
        return self._row(_given("last", self.last)[:, None])[:, 0]

    def _text_rows(self) -> Tensor:
        return self._row(self._text_positions())

    def _text_positions(self) -> Tensor:
        text = self.text() if callable(self.text) else self.text
        if text is None:
            raise UnequalText("rows of all text tokens need prompts with equally many text tokens after the image")
        return text

    def _keys(self) -> Tensor:
        return self._visual_tokens(self.key.float().mean(1))

    def _wide_keys(self) -> Tensor:
        return self._visual_tokens(self.key.transpose(1, 2)).flatten(2)

    def _wide_cls_attention(self) -> Tensor:
        query, key = (x.transpose(1, 2).flatten(2).float() for x in (self.query[:, :, :1], self.key))
        scaling: float = key.shape[2] ** -0.5
        return (query @ key.transpose(1, 2) * scaling).softmax(-1)[:, 0]

    def _text_hidden(self) -> Tensor:
        return self._text_tokens(_given("hidden", self.hidden), self._text_positions())

    def _text_wide_keys(self) -> Tensor:
        return self._text_tokens(self.key.transpose(1, 2), self._text_positions()).flatten(2)

    def _next_text_attention(self) -> Tensor:
        query, key = _given("ahead", self.ahead)()
        return replace(self, query=query, key=key)._text_attention()

    def _normed_hidden(self) -> Tensor:
        normed: Tensor = _given("norm", self.norm)(self._visual_tokens(_given("hidden", self.hidden)))
        return normed

    def _text_normed_hidden(self) -> Tensor:
        normed: Tensor = _given("norm", self.norm)(self._text_hidden())
        return normed

    def _embeddings(self) -> Tensor:
        sequence, visual, _ = _given("entry", self.entry)()
        return tokens_at(sequence, visual, self.prompt)

    def _text_embeddings(self) -> Tensor:
        self._text_positions()  # refuses where rows have different numbers
        sequence, _, text = _given("entry", self.entry)()
        return self._text_tokens(sequence, text)


def _given(name: str, value: Part | None) -> Part:
    if value is None:
        raise LabError(f"this AttentionSite was made without {name}")
    return value


def tokens_at(x: Tensor, at: Tensor, prompt: Tensor | None = None) -> Tensor:
    """(B, n, ...): what x (P, S, ...) has at the positions `at` (B, n) of prompt `prompt[b]`, or b."""
    if prompt is None:
        prompt = torch.arange(len(at), device=at.device)
    return x[prompt[:, None], at]
