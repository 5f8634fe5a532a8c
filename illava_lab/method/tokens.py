"""What a strategy sees: the visual tokens at one place in a model, and statistics about them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from numbers import Integral
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.brought import upload
from illava_lab.method.keep import Keep
from illava_lab.method.rows import row_index

# "image" is before the model: a smaller picture goes in.
Stage = Literal["image", "encoder", "llm"]
STAGES: tuple[Stage, ...] = ("image", "encoder", "llm")

Medium = Literal["image", "video"]

STATISTICS: dict[str, str] = {
    "attention_received": "(B, N): mean attention that each token receives, over heads and queries",
    "cls_attention": "(B, N): attention that CLS pays to each token, mean over heads",
    "text_attention": "(B, N): attention that the last text token pays to each visual token, mean over heads",
    "next_text_attention": "(B, N): attention that the last text token would pay in the layer to come, mean over heads",
    "text_rows": "(B, T, N): attention that the text tokens after the image pay to each visual token, mean over heads",
    "lse": "(B, N): log-sum-exp of each query's attention logits, mean over heads",
    "patch_attention": "(B, N, K): attention that each of a token's K patches receives; 1 but in towers of cells",
    "patch_lse": "(B, N, K): log-sum-exp of each of these patches' queries, mean over heads",
    "keys": "(B, N, d): attention keys, mean over heads",
    "wide_keys": "(B, N, H*d): attention keys, heads side by side",
    "wide_cls_attention": "(B, N): attention of CLS with one head as wide as the model",
    "values": "(B, N, d): attention values, mean over heads",
    "cls_value_attention": "(B, N): softmax of the products of CLS's value with those of all tokens, mean over heads",
    "noted": "(B, N) or (B, N, k): what the strategy noted of each token at earlier layers (`Strategy.note`)",
    "text_hidden": "(B, T, C): hidden states of the text tokens after the image",
    "text_wide_keys": "(B, T, H*d): keys of the text tokens after the image, heads side by side",
    "normed_hidden": "(B, N, C): hidden states through the last norm of the LLM",
    "text_normed_hidden": "(B, T, C): hidden states of the text tokens after the image through that norm",
    "embeddings": "(B, N0, C): all tokens of the image as they entered the LLM",
    "text_embeddings": "(B, T, C): the text tokens after the image as they entered the LLM",
    "joint_hidden": "(B, N, d): the patches in the space that a text tower shares with the image encoder (CLIP)",
    "joint_text": "(B, M, d): the question in that space, of whose parts of 77 words M were made",
}


Given = Tensor | Callable[[], Tensor] | None


class Tokens:
    """The visual tokens at one reduction site. Read-only.

    Attributes:
        stage: "image", "encoder" or "llm".
        layer: 0-based index of the layer at which the reduction happens.
        hidden: (B, N, C) hidden states of B images.
        size: (B, N) float, how many image patches each token stands for.
        position: (B, N) long, whose place each token holds: in raster order, crop after crop; -1 for CLS.
        protected: (B, N) bool, tokens that must survive (CLS in the encoder; line ends in the LLM, anywhere, though
            attached models keep those without showing them).
        grid: (height, width) of the patch grid, or None when there is none (an image in crops, a video).
        frames: (frames, tokens of each) that `position` counts through, of a video in the LLM; else None.
            `same_place_before` and its like say what lies where a token lies in other frames.
        plan: layer -> how much is kept, of the layers of this stage that reduce; empty where nobody said.
        row: (B, 1) long, 0 to B-1: ``x[tokens.row, index]`` are rows of x (B, N, C) by index (B, M).

    `size`, `position` and `protected` may be given as functions without arguments: each is called when the value is
    first read, if it is, and only once.

    The statistics (`STATISTICS` lists them) are computed when first read, and only then. A statistic passed as a
    keyword is used as it is, so a strategy can be tried on plain tensors, without a model.

    Raises:
        LabError: unknown stage or statistic, or a tensor whose shape does not fit `hidden` (of a function, when read).
    """

    def __init__(
        self,
        stage: Stage,
        hidden: Tensor,
        *,
        layer: int = 0,
        size: Given = None,
        position: Given = None,
        protected: Given = None,
        protected_count: int | None = None,
        grid: tuple[int, int] | None = None,
        frames: tuple[int, int] | None = None,
        plan: Mapping[int, Keep] | None = None,
        site: Any = None,
        **statistics: Tensor,
    ) -> None:
        if stage not in STAGES:
            raise LabError(f"stage must be one of {', '.join(STAGES)}, got {stage!r}")
        if not isinstance(hidden, Tensor) or hidden.dim() != 3:
            got = f"shape {tuple(hidden.shape)}" if isinstance(hidden, Tensor) else type(hidden).__name__
            raise LabError(f"hidden must be a tensor of (batch, tokens, channels), got {got}")
        unknown = sorted(set(statistics) - set(STATISTICS))
        if unknown:
            raise LabError(f"unknown statistic {unknown[0]!r}; known are {', '.join(STATISTICS)}")
        self.stage, self.layer, self.hidden, self.grid, self.plan = stage, layer, hidden, grid, plan or {}
        self.frames = frames
        self._given: dict[str, Given] = {"size": size, "position": position, "protected": protected}
        for name, value in self._given.items():
            if isinstance(value, Tensor):
                self._checked(name, value)
        self._protected_count = protected_count
        self._site = site
        self._statistics = dict(statistics)

    def _checked(self, name: str, value: Tensor) -> Tensor:
        shape = (self.batch, self.count)
        if tuple(value.shape) != shape:
            raise LabError(f"{name} must have shape {shape} like hidden, got {tuple(value.shape)}")
        return value

    def _read(self, name: str) -> Tensor | None:
        """What was given, or what the function gives that was."""
        given = self._given[name]
        return self._checked(name, given()) if callable(given) and not isinstance(given, Tensor) else given

    @cached_property
    def size(self) -> Tensor:
        given = self._read("size")
        if given is None:
            return torch.ones(self.batch, self.count, dtype=torch.float32, device=self.hidden.device)
        return given

    @cached_property
    def position(self) -> Tensor:
        given = self._read("position")
        if given is None:
            return torch.arange(self.count, dtype=torch.long, device=self.hidden.device).expand(self.batch, -1)
        return given

    @property
    def has_protected(self) -> bool:
        """Whether any token may be protected (known without looking at the device)."""
        return self._given["protected"] is not None

    @cached_property
    def protected(self) -> Tensor:
        given = self._read("protected")
        if given is None:
            return torch.zeros(self.batch, self.count, dtype=torch.bool, device=self.hidden.device)
        return given

    @cached_property
    def row(self) -> Tensor:
        return row_index(self.hidden)

    @cached_property
    def protected_count(self) -> int:
        """Protected tokens per row; the most of any row. Counted on the device, unless it was given."""
        if not self.has_protected:
            return 0
        given = self._protected_count
        return int(self.protected.sum(dim=1).max()) if given is None else given

    def room(self, keep: int) -> int:
        """How many of `keep` slots are left beside the protected tokens.

        Raises:
            LabError: the protected tokens alone are more than `keep`, or it is no whole number.
        """
        if not isinstance(keep, Integral):
            raise LabError(f"keep must be a number of tokens, got {keep!r}")
        if keep < self.protected_count:
            raise LabError(f"keep must be at least {self.protected_count}, the number of protected tokens, got {keep}")
        return keep - self.protected_count

    @property
    def batch(self) -> int:
        return self.hidden.shape[0]

    @property
    def count(self) -> int:
        """N, the number of tokens per row, protected ones included."""
        return self.hidden.shape[1]

    def rows(self, index: Sequence[int]) -> Tokens:
        """Some of the rows. Statistics are computed for all rows, once, and then picked."""
        at = upload(np.array(index, dtype=np.int64), self.hidden.device)
        return Tokens(
            self.stage,
            self.hidden[at],
            layer=self.layer,
            size=lambda: self.size[at],
            position=lambda: self.position[at],
            protected=(lambda: self.protected[at]) if self.has_protected else None,
            protected_count=self.protected_count,
            grid=self.grid,
            frames=self.frames,
            plan=self.plan,
            site=_SomeRows(self, at),
        )

    def _statistic(self, name: str) -> Tensor:
        if name not in self._statistics:
            if self._site is None:
                have = ", ".join(self._statistics) or "none"
                raise LabError(
                    f"{name} was not given; statistics given here: {have}. Pass it as Tokens(..., {name}=...)"
                )
            self._statistics[name] = self._site.statistic(name)
        return self._statistics[name]

    def __getattr__(self, name: str) -> Tensor:
        if name in STATISTICS:  # its property ended in an AttributeError, which Python hides: it is raised here again
            return self._statistic(name)
        if name in ("size", "position", "protected"):  # and so are those of functions that were given
            self._read(name)
        raise AttributeError(f"Tokens has no {name!r}; statistics are {', '.join(STATISTICS)}")

    def __repr__(self) -> str:
        return f"Tokens(stage={self.stage!r}, layer={self.layer}, shape={tuple(self.hidden.shape)})"


class _SomeRows:
    """Where statistics of some rows come from."""

    def __init__(self, tokens: Tokens, at: Tensor) -> None:
        self._tokens, self._at = tokens, at

    def statistic(self, name: str) -> Tensor:
        return self._tokens._statistic(name)[self._at]


def _property(name: str) -> property:
    def read(self: Tokens) -> Tensor:  # the type is what a completer looks at: without it, some would compute the value
        return self._statistic(name)

    return property(read, doc=STATISTICS[name])


for _name in STATISTICS:  # properties of the class, so that Tab completes them and a question mark explains them
    setattr(Tokens, _name, _property(_name))
