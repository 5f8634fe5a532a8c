"""Rows that differ in how many tokens they have left, because each picture decides.

Rows of a tower are one tensor. So those that keep fewer are filled up to the longest, with tokens that nobody attends
to, that no strategy sees, and that are gone behind the projector.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from illava_lab.hooks.attachment import Attachment
from illava_lab.hooks.towers.rows import Rows, with_holes
from illava_lab.method.ask import ask, by_count, own_counts, take_note
from illava_lab.method.keep import kept
from illava_lab.method.tokens import Tokens
from illava_lab.sites.attention import AttentionSite
from illava_lab.trace.step import Step
from illava_lab.trace.survivors import Uneven


class UnevenRows(Rows):
    """One call of such a tower; see `Form`.

    Attributes:
        groups: rows that have equally many tokens left, and how many these are, CLS included. They come first in a row.
    """

    def __init__(self, attachment: Attachment, args: tuple, kwargs: dict[str, Any]) -> None:
        super().__init__(attachment, args, kwargs)
        every = self.survivors
        self.survivors = Uneven(every.count, every.device, every.make_place, every.make_size)
        self.groups = {every.count: list(range(len(every.place)))}

    # ---- a layer
    def weigh(self, key: Tensor, mask: Tensor | None) -> Tensor | None:
        proportional = self.attachment.strategy.proportional_attention
        if not self.steps or (len(self.groups) == 1 and not proportional):
            return mask
        if self._log_size is None:
            size = self.survivors.size
            size = size if proportional else (size > 0).to(size.dtype)
            self._log_size = size.log().view(len(size), 1, 1, -1).to(key.device, key.dtype)
        return self._log_size if mask is None else mask + self._log_size

    def reduce(self, layer: int, hidden: Tensor) -> Tensor:
        assert self._attention is not None
        query, key, value, mask, scaling = self._attention
        self._attention = None
        self.survivors = self.survivors.to(hidden.device)
        valid = None if len(self.groups) == 1 else self.survivors.size > 0
        site = AttentionSite(query, key, scaling, mask, valid, has_cls=bool(self.skip), hidden=hidden, value=value)
        shared, looks = _Once(site), layer in self.attachment.looks
        schedule, strategy, parts, notes = self.attachment.schedule, self.attachment.strategy, [], []
        for count, rows in self.groups.items():
            tokens = self._tokens(layer, hidden, rows, count, shared)
            if looks:
                notes.append((rows, take_note(strategy, tokens, None if self.noted is None else tokens.noted)))
            if layer not in schedule.encoder:
                continue
            counts = own_counts(strategy, tokens, schedule.encoder[layer])
            if counts is None:
                left = kept(schedule.encoder[layer], count - self.skip, f"encoder layer {layer}") + self.skip
                counts = [left] * len(rows)
            parts += [(tokens, own, [rows[i] for i in own], left) for left, own in by_count(counts).items()]
        if notes:
            self.noted = _filled_up(notes, hidden.shape[1])
        return self._go_on(layer, parts) if parts else hidden

    def _tokens(self, layer: int, hidden: Tensor, rows: list[int], count: int, site: _Once) -> Tokens:
        survivors, anatomy = self.survivors, self.anatomy
        noted: dict[str, Any] = {} if self.noted is None else {"noted": self.noted[rows, :count]}
        return Tokens(
            "encoder",
            hidden[rows, :count],
            layer=layer,
            size=survivors.size[rows, :count],
            position=survivors.place[rows, :count],
            protected=survivors.place[rows, :count] < 0 if self.skip else None,
            protected_count=self.skip,
            grid=anatomy.grid,
            plan=self.attachment.schedule.plan("encoder"),
            site=_Part(site, rows, count),
            **noted,
        )

    def _go_on(self, layer: int, parts: list[tuple[Tokens, list[int], list[int], int]]) -> Tensor:
        """Ask for the maps of all parts, and make one tensor of what they leave."""
        places = self.anatomy.patches
        states, size, place, notes = [], [], [], []
        self._log_size, self.groups = None, {}
        for tokens, own, rows, left in parts:
            some = tokens.rows(own)
            reduction = ask(self.attachment.strategy, some, left)
            self.steps.append(Step("encoder", layer, rows, reduction, some.count - self.skip, left - self.skip))
            states.append((rows, reduction.apply(some.hidden)))
            size.append((rows, reduction.sizes(some.size)))
            place.append((rows, some.position.gather(1, reduction.anchor)))
            if self.noted is not None:
                notes.append((rows, some.noted[some.row, reduction.anchor]))
            self.groups.setdefault(left, []).extend(rows)
        longest = max(self.groups)
        sizes, where = _filled_up(size, longest), _filled_up(place, longest, places)
        self.noted = _filled_up(notes, longest) if notes else None
        self.survivors = Uneven(longest, sizes.device, lambda: where, lambda: sizes)
        return _filled_up(states, longest)

    # ---- the projector
    def leave_projector(self, out: Tensor) -> Tensor:
        return with_holes(out, self.patches.place, self.anatomy.patches + 1, self._hole)[:, :-1].contiguous()

    # ---- what is left
    @property
    def counts(self) -> list[int] | None:  # type: ignore[override]
        if not self.steps:
            return None
        found = {row: count - self.skip for count, rows in self.groups.items() for row in rows}
        return [found[row] for row in sorted(found)]


class _Once:
    """Statistics of all rows of a site, each computed once."""

    def __init__(self, site: AttentionSite) -> None:
        self._site, self._known = site, dict[str, Tensor]()

    def statistic(self, name: str) -> Tensor:
        if name not in self._known:
            self._known[name] = self._site.statistic(name)
        return self._known[name]


class _Part:
    """Those of the first tokens of some rows."""

    def __init__(self, site: _Once, rows: list[int], count: int) -> None:
        self._site, self._rows, self._count = site, rows, count

    def statistic(self, name: str) -> Tensor:
        return self._site.statistic(name)[self._rows, : self._count]


def _filled_up(parts: list[tuple[list[int], Tensor]], longest: int, fill: int = 0) -> Tensor:
    """(R, longest, ...) of parts (r, n, ...) with their rows, all of which are there; `fill` behind shorter ones."""
    rows, like = sum(len(rows) for rows, _ in parts), parts[0][1]
    out = like.new_full((rows, longest, *like.shape[2:]), fill)
    for own, x in parts:
        out[own, : x.shape[1]] = x
    return out
