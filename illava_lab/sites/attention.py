"""Statistics of attention at one place in a model.

An `AttentionSite` computes from queries and keys only what a strategy asks for: one row where a row is enough, sums of
columns without the matrix (`illava_lab.sites.sums`). It knows no model and holds no hooks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor, nn

from illava_lab.errors import LabError
from illava_lab.method.rows import row_index
from illava_lab.sites.scores import Scores, Spans, products
from illava_lab.sites.sums import column_sums, row_lse

Part = TypeVar("Part")

LLM_STATISTICS = (
    "text_attention", "next_text_attention", "text_rows", "text_hidden", "text_wide_keys",
    "normed_hidden", "text_normed_hidden", "embeddings", "text_embeddings", "joint_hidden", "joint_text",
)  # fmt: skip
ENTRY_STATISTICS = tuple(
    name for name in LLM_STATISTICS if name not in ("text_attention", "text_rows", "text_wide_keys")
)


PATCH_STATISTICS = {"patch_attention": "attention_received", "patch_lse": "lse"}  # and the same of tokens
CLS_STATISTICS = ("cls_attention", "wide_cls_attention", "cls_value_attention")


class UnequalText(LabError):
    """Prompts of a site differ in how many text tokens follow the image; each such length needs a site of its own."""


@dataclass(eq=False)
class AttentionSite:
    """Queries and keys of one attention over P prompts, and where the tokens of B images are in them.

    Scores are computed once for each prompt, however many of its images ask; only then are those of each image picked.

    Attributes:
        query: (P, H, T, d), key: (P, Hkv, S, d) with H a multiple of Hkv; T == S (prefill).
        scaling: the factor on the logits.
        mask: None, (P, S) which keys are seen, or (P or 1, H or 1, T or 1, at least S) additive or boolean.
        valid: (P, S) bool, False at padding, which sees nothing and is seen by nobody; None when there is none.
        causal: whether later keys are hidden; only where the mask has not four dimensions, which says it itself.
        visual: (B, N) positions of the visual tokens, or None when all S are the tokens of the site.
        prompt: (B,) long, the prompt in which each image is; None where each has one (B == P).
        has_cls: whether token 0 is CLS.
        hidden: (P, S, C), the whole sequence that the layer after the site receives.
        last: (P,) position of the last text token, one number where all prompts have it in common (which takes fewer
            operations), or None outside the LLM.
        text: (P, T) positions of the text tokens after the images, or what makes them; None where images differ in
            their number.
        ahead: computes queries and keys of the layer to come; entry: gives the sequence (P, S0, C) that entered the
            LLM, and the positions in it of the visual tokens (B, N0) and of the text after them (P, T); norm: the last
            norm of the LLM. None outside it.
        row_lse: (P, H, T) float32, the natural log-sum-exp of the scaled and masked logits of each query, where the
            attention that ran gave it away; what it holds at padding does not matter.
        spans: where the sequences of a packed prompt begin and end; None where each prompt is one.
        value: (P, Hkv, S, d).
        joint: gives the patches (B, N, d) and the question (B, M, d) in the space that a text tower shares with the
            image encoder; None where there is no such tower.
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
    last: Tensor | int | None = None
    text: Tensor | Callable[[], Tensor | None] | None = None
    ahead: Callable[[], tuple[Tensor, Tensor]] | None = None
    entry: Callable[[], tuple[Tensor, Tensor, Tensor]] | None = None
    norm: nn.Module | None = None
    row_lse: Tensor | None = None
    spans: Spans | None = None
    value: Tensor | None = None
    joint: Callable[[], tuple[Tensor, Tensor]] | None = None

    def statistic(self, name: str) -> Tensor:
        """One of `illava_lab.method.STATISTICS`.

        Raises:
            LabError: this site does not have it.
        """
        if name == "noted":
            raise LabError("noted is what the strategy notes at earlier encoder layers, and nothing was noted here")
        if name in CLS_STATISTICS and not self.has_cls:
            raise LabError(f"{name} needs a CLS token, which this place has not; {self._offers()}")
        if name in LLM_STATISTICS and self.last is None:
            raise LabError(f"{name} needs the language model, which the image encoder does not see; {self._offers()}")
        if name in ("joint_hidden", "joint_text"):
            if self.joint is None:
                raise LabError(f"{name} needs the text tower of CLIP, which this checkpoint has not; {self._offers()}")
            return self.joint()[name == "joint_text"]
        value: Tensor = getattr(self, f"_{name}")()
        return value

    def _offers(self) -> str:
        have = ["attention_received", "lse", "patch_attention", "patch_lse", "keys", "wide_keys", "values"]
        have += CLS_STATISTICS if self.has_cls else []
        without = () if self.joint is not None else ("joint_hidden", "joint_text")
        have += [name for name in LLM_STATISTICS if name not in without] if self.last is not None else []
        return f"it has {', '.join(have)}"

    @cached_property
    def scores(self) -> Scores:
        """The logits of this attention, and which key each query sees."""
        return Scores(self.query, self.key, self.scaling, self.mask, self.valid, self.causal, self.spans)

    def received(self) -> Tensor:
        """(P, S) float32: the attention that each token receives, summed over queries, mean over heads."""
        return column_sums(self.scores, self.row_lse) / self.query.shape[1]

    # ---- what images have of what prompts have
    def _visual_columns(self, x: Tensor) -> Tensor:
        """(B, N): the visual tokens of (P, S)."""
        if self.visual is None:
            return x
        one = len(x) == len(self.visual) == 1
        return (x if one or self.prompt is None else x[self.prompt]).gather(1, self.visual)

    def _visual_tokens(self, x: Tensor) -> Tensor:
        """(B, N, ...): the visual tokens of (P, S, ...)."""
        return x if self.visual is None else tokens_at(x, self.visual, self.prompt)

    def _text_tokens(self, x: Tensor, text: Tensor) -> Tensor:
        """(B, T, ...): the text after each image, from (P, S, ...) and its positions (P, T)."""
        return tokens_at(x, text if self.prompt is None else text[self.prompt], self.prompt)

    # ---- statistics
    def _attention_received(self) -> Tensor:
        queries = self.query.shape[2] if self.valid is None else self.valid.sum(1, keepdim=True)
        sums = column_sums(self.scores, self.row_lse)
        return self._visual_columns(sums / (queries * self.query.shape[1]))

    def _lse(self) -> Tensor:
        rows = row_lse(self.scores) if self.row_lse is None else self.row_lse.float()
        return self._visual_columns(rows.mean(1))

    def _patch_attention(self) -> Tensor:
        return self._attention_received()[..., None]

    def _patch_lse(self) -> Tensor:
        return self._lse()[..., None]

    def _row(self, row: Tensor | int) -> Tensor:
        """(B, N): what one query of each prompt pays, at (P,) positions or at one that all have in common."""
        return self._visual_columns(self.scores.logits_of_rows(row).softmax(-1).mean((1, 2)))

    def _cls_attention(self) -> Tensor:
        return self._row(0)

    def _text_attention(self) -> Tensor:
        if self.last is None:
            raise LabError("this AttentionSite was made without last")
        return self._row(self.last)

    def _text_rows(self) -> Tensor:
        rows = self.scores.logits_of_rows(self._text_positions()).softmax(-1).mean(1)
        return self._visual_tokens(rows.mT).mT

    def _text_positions(self) -> Tensor:
        text = self.text() if callable(self.text) else self.text
        if text is None:
            raise UnequalText("rows of all text tokens need prompts with equally many text tokens after the image")
        return text

    def _keys(self) -> Tensor:
        return self._visual_tokens(self.key.mean(1, dtype=torch.float32))

    def _wide_keys(self) -> Tensor:
        return self._visual_tokens(self.key.transpose(1, 2)).flatten(2)

    def _wide_cls_attention(self) -> Tensor:
        query, key = (x.transpose(1, 2).flatten(2).unsqueeze(1) for x in (self.query[:, :, :1], self.key))
        return self._over_all(products(query, key, key.shape[3] ** -0.5))[:, 0, 0]

    def _over_all(self, logits: Tensor) -> Tensor:
        """The softmax of (P, h, 1, S) over the tokens that are there."""
        if self.valid is not None:
            logits = logits.masked_fill(~self.valid[:, None, None], -torch.inf)
        return logits.softmax(-1)

    def _values(self) -> Tensor:
        return self._visual_tokens(_given("value", self.value).mean(1, dtype=torch.float32))

    def _cls_value_attention(self) -> Tensor:
        value = _given("value", self.value)
        return self._visual_columns(self._over_all(products(value[:, :, :1], value, 1.0)).mean((1, 2)))

    def _text_hidden(self) -> Tensor:
        return self._text_tokens(_given("hidden", self.hidden), self._text_positions())

    def _text_wide_keys(self) -> Tensor:
        return self._text_tokens(self.key.transpose(1, 2), self._text_positions()).flatten(2)

    def _next_text_attention(self) -> Tensor:
        query, key = _given("ahead", self.ahead)()
        return replace(self, query=query, key=key, row_lse=None)._text_attention()

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


@dataclass(eq=False)
class EntrySite:
    """What a strategy can ask in front of the first layer of the LLM: no layer has run, so nothing of its attention.

    Attributes:
        site: an `AttentionSite` whose queries and keys mean nothing.
    """

    site: AttentionSite

    def statistic(self, name: str) -> Tensor:
        """One of `illava_lab.method.STATISTICS`.

        Raises:
            LabError: this site does not have it.
        """
        if name not in ENTRY_STATISTICS:
            have = ", ".join(name for name in ENTRY_STATISTICS if self.site.joint or not name.startswith("joint"))
            raise LabError(f"{name} needs attention of the layer before, and here is none; it has {have}")
        return self.site.statistic(name)


def _given(name: str, value: Part | None) -> Part:
    if value is None:
        raise LabError(f"this AttentionSite was made without {name}")
    return value


def tokens_at(x: Tensor, at: Tensor, prompt: Tensor | None = None) -> Tensor:
    """(B, n, ...): what x (P, S, ...) has at the positions `at` (B, n) of prompt `prompt[b]`, or b."""
    if len(x) == 1:
        return x[0, at]
    return x[row_index(at) if prompt is None else prompt.unsqueeze(1), at]
