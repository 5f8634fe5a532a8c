"""The strategy on trial, with the cases that it must handle."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
import torch

from illava_lab.errors import LabError, reason, spelled
from illava_lab.method.strategy import Strategy
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import STAGES, Stage, Tokens
from illava_lab.testing.cases import Case
from illava_lab.testing.examples import NotHere
from illava_lab.testing.faults import malformed, wrong_anchors, wrong_edges
from illava_lab.testing.promise import PROMISES, Broken, Elsewhere
from illava_lab.testing.tensors import squarest_grid


class Escaped(Exception):
    """What is no `Exception` came out of a strategy; says what."""


class Subject:
    """A strategy, with the cases that it must handle."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy, self.cls = strategy, type(strategy)
        self._broken: dict[str, bool] = {}

    @property
    def label(self) -> str:
        """The name, and the settings that are not the defaults."""
        try:
            return spelled(str(self.strategy.label or self.cls.__name__))
        except KeyboardInterrupt:
            raise
        except BaseException:  # a setting, say, that cannot be printed: a promise reports it
            return self.cls.__name__

    # ---- cases
    @cached_property
    def sites(self) -> dict[Case, str]:
        """Each place that the strategy's stages have (as a Case of 9 patches) -> why it cannot run there, or ""."""
        stages = STAGES if self.strategy.kind == "none" else self.strategy.stages
        film = {"video": True} if "image" not in self.strategy.media else {}
        places: dict[Stage, list[dict[str, Any]]] = {
            "image": [dict(cls=True), dict()],
            "encoder": [dict(cls=True), dict(), dict(cls=True, reduced=True), dict(reduced=True)],
            "llm": [dict(entry=self.strategy.first_llm_layer == 0, **film), dict(reduced=True, **film)],
        }
        writer = self.strategy if self.strategy.looks(24) else None
        cases = [
            self._middle(Case(stage, 9, 0, **place, writer=writer, layer=self._layer(stage)))
            for stage in STAGES if stage in stages for place in places[stage]
        ]  # fmt: skip
        return {case: self._refusal(case) for case in cases}

    def _layer(self, stage: Stage) -> int | None:
        """A layer that can be asked about, where not every one can."""
        return None if self.cls.at is Strategy.at else self.strategy.layers(stage, 24)[0]

    def _middle(self, case: Case) -> Case:
        return self.keeping(case, case.protected + ceil(case.patches * 0.75)) or replace(case, keep=case.count)

    def _refusal(self, case: Case) -> str:
        try:
            self.ask(case.tokens(), case.keep)
        except NotHere as error:
            return str(error)
        except LabError as error:  # a method may need what an earlier reduction took away
            return str(error) if case.reduced else ""
        except Exception:  # any other failure is what `maps_every_case` reports
            return ""
        return ""

    def keeping(self, case: Case, keep: int) -> Case | None:
        """The case with a `keep` near this one that the method can reach, or None when there is none."""
        if self.strategy.kind == "none":
            return replace(case, keep=case.count)
        keep = max(keep, case.protected + ceil(case.patches * self.strategy.smallest_keep_in(case.stage)))
        if keep > case.protected:
            keep = case.protected + self.strategy.reachable_keep(keep - case.protected, squarest_grid(case.patches))
        return replace(case, keep=keep) if 1 <= keep <= case.count else None

    def cases(self, *sizes: int, keeps: Sequence[float] = (0.5, 0.8), batch: int = 1, **change: Any) -> list[Case]:
        """From small to large, in every place: of so many patches, keep those fractions, but at least 2 and not all."""
        found = []
        for patches in sizes:
            for site in (site for site, refusal in self.sites.items() if not refusal):
                case = replace(site, patches=patches, batch=batch, **change)
                for keep in keeps:
                    found.append(self.keeping(case, case.protected + max(2, round(patches * keep))))
        out = list(dict.fromkeys(case for case in found if case is not None))
        if self.strategy.kind != "none":
            out = [case for case in out if case.keep < case.count]
        return sorted(out, key=lambda case: (case.count, case.batch, case.keep))

    # ---- answers
    def ask(self, tokens: Tokens, keep: int) -> Any:
        """What the strategy returns, with the global random numbers always in the same state."""
        with random_state(0):
            try:
                return self.strategy.map(tokens, keep)
            except (Exception, KeyboardInterrupt):
                raise
            except BaseException as error:  # such as sys.exit: no reason for the check to end, and with status 0
                raise Escaped(reason(error)) from error

    def map(self, case: Case, tokens: Tokens | None = None, here: bool = False) -> TokenMap:
        """A map that can be read: tensors that fit together, indices in range.

        Args:
            here: whether this promise reports what fails, rather than `maps_every_case` and those after it.
        """
        cause = None
        try:
            out = self.ask(case.tokens() if tokens is None else tokens, case.keep)
            promise, wrong = "maps_every_case", malformed(out, case)
        except NotHere as error:
            raise Elsewhere(str(error)) from error
        except Exception as error:
            promise, wrong, cause = "maps_every_case", crash(error), error
        if not wrong:
            promise, wrong = "anchors_unique", wrong_anchors(out, case, unique=False)
        if not wrong:
            promise, wrong = "sources_exist", wrong_edges(out)
        if wrong:
            raise (Broken if here and not self.breaks(promise) else Elsewhere)(wrong) from cause
        return out

    def breaks(self, promise: str) -> bool:
        """Whether a promise is broken already in ordinary cases: then it need not be said again of unusual ones."""
        if promise not in self._broken:
            self._broken[promise] = PROMISES[promise].result(self).outcome == "broken"
        return self._broken[promise]

    def unsound(self, out: TokenMap, case: Case) -> str:
        """What is wrong with the map of an unusual case, and is right in ordinary ones."""
        weights = out.matrix()
        faults = {
            "count_kept": "" if out.slots == case.keep else f"{out.slots} slots came out",
            "anchors_unique": wrong_anchors(out, case),
            "weights_finite": "" if ((weights >= 0) & (weights < torch.inf)).all() else "a weight is NaN or below 0",
        }
        return next((wrong for promise, wrong in faults.items() if wrong and not self.breaks(promise)), "")


@contextmanager
def random_state(seed: int) -> Iterator[None]:
    """Global random numbers start from `seed`, and are afterwards as if nobody had drawn any."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    seed_everything(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def drawn() -> tuple[Any, ...]:
    """Changes when anybody draws a global random number."""
    of_numpy = np.random.get_state(legacy=False)["state"]
    return random.getstate(), of_numpy["key"].tobytes(), of_numpy["pos"], torch.get_rng_state().numpy().tobytes()


def crash(error: Exception) -> str:
    if isinstance(error, LabError):
        return f"map refuses what it must handle: {reason(error)}"
    return f"map fails with {error if isinstance(error, Escaped) else reason(error)[:200]}"


def once(subject: Subject) -> list[None]:
    return [None]


def ordinary(subject: Subject) -> list[Case]:
    one_by_one = subject.cases(3, 4, 5, 6, 9, keeps=(0.3, 0.5, 0.8))
    return one_by_one + subject.cases(16, 25, keeps=(0.3, 0.6, 0.9), batch=3)


def few(subject: Subject) -> list[Case]:
    return subject.cases(4, 9, 16, batch=3)
