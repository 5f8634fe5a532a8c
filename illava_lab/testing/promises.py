"""The promises that hooks, traces and comparisons rely on. Each is one small function below; `PROMISES` lists them.

Each is tried on cases from small to large, so the first case that breaks it is the smallest. A promise is judged alone:
what another one reports is passed over.
"""

from __future__ import annotations

import dataclasses
import random
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from math import ceil
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from illava_lab.errors import LabError
from illava_lab.method.strategy import STAGES, Paper, Stage, Strategy, TokenMap, Tokens
from illava_lab.testing.examples import Case, NotHere, changed, squarest_grid, tensors

TOLERANCE = 1e-4

Outcome = Literal["passed", "broken", "not applicable"]


@dataclass(frozen=True)
class Result:
    """One promise of one strategy: the smallest `case` that breaks it; what is wrong, or why it was not asked."""

    strategy: str
    promise: str
    says: str
    outcome: Outcome
    message: str = ""
    case: str = ""


class _Broken(Exception):
    """Found while a promise is checked: it is broken, for the reason that is the text."""


class _Elsewhere(Exception):
    """This case says nothing about this promise; another one reports what is wrong."""


# ---------------------------------------------------------------------------------------------- the strategy on trial
class Subject:
    """A strategy, with the cases that it must handle."""

    def __init__(self, strategy: Strategy) -> None:
        self.strategy, self.cls = strategy, type(strategy)
        self._broken: dict[str, bool] = {}

    @property
    def label(self) -> str:
        """The name, and the settings that are not the defaults."""
        fields = dataclasses.fields(self.strategy) if dataclasses.is_dataclass(self.strategy) else ()
        changed = [f"{f.name}={v!r}" for f in fields if (v := getattr(self.strategy, f.name)) != f.default]
        name = self.strategy.name or self.cls.__name__
        return f"{name}({', '.join(changed)})" if changed else str(name)

    # ---- cases
    @cached_property
    def sites(self) -> dict[Case, str]:
        """Each place that the strategy's stages have (as a Case of 9 patches) -> why it cannot run there, or ""."""
        stages = STAGES if self.strategy.kind == "none" else self.strategy.stages
        places = {
            "image": [dict(cls=True), dict()],
            "encoder": [dict(cls=True), dict(), dict(cls=True, reduced=True), dict(reduced=True)],
            "llm": [dict(), dict(reduced=True)],
        }
        return {
            (case := self._middle(Case(stage, 9, 0, **place))): self._refusal(case)
            for stage in STAGES if stage in stages for place in places[stage]
        }  # fmt: skip

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
        keep = max(keep, case.protected + ceil(case.patches * self.strategy.smallest_keep))
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
        out = dict.fromkeys(case for case in found if case is not None)
        if self.strategy.kind != "none":
            out = [case for case in out if case.keep < case.count]
        return sorted(out, key=lambda case: (case.count, case.batch, case.keep))

    # ---- answers
    def ask(self, tokens: Tokens, keep: int) -> Any:
        """What the strategy returns, with the global random numbers always in the same state."""
        with _random_state(0):
            return self.strategy.map(tokens, keep)

    def map(self, case: Case, tokens: Tokens | None = None, here: bool = False) -> TokenMap:
        """A map that can be read: tensors that fit together, indices in range.

        Args:
            here: whether this promise reports what fails, rather than `maps_every_case` and those after it.
        """
        cause = None
        try:
            out = self.ask(case.tokens() if tokens is None else tokens, case.keep)
            promise, wrong = "maps_every_case", _malformed(out, case)
        except NotHere as error:
            raise _Elsewhere(str(error)) from error
        except Exception as error:
            promise, wrong, cause = "maps_every_case", _crash(error), error
        if not wrong:
            promise, wrong = "anchors_unique", _wrong_anchors(out, case, unique=False)
        if not wrong:
            promise, wrong = "sources_exist", _wrong_edges(out)
        if wrong:
            raise (_Broken if here and not self.breaks(promise) else _Elsewhere)(wrong) from cause
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
            "anchors_unique": _wrong_anchors(out, case),
            "weights_finite": "" if ((weights >= 0) & (weights < torch.inf)).all() else "a weight is NaN or below 0",
        }
        return next((wrong for promise, wrong in faults.items() if wrong and not self.breaks(promise)), "")


@contextmanager
def _random_state(seed: int) -> Iterator[None]:
    """Global random numbers start from `seed`, and are afterwards as if nobody had drawn any."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    _seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)


def _drawn() -> tuple:
    """Changes when anybody draws a global random number."""
    _, keys, place, *_ = np.random.get_state()
    return random.getstate(), keys.tobytes(), place, torch.get_rng_state().numpy().tobytes()


def _crash(error: Exception) -> str:
    text = " ".join(str(error).split())
    if isinstance(error, LabError):
        return f"map refuses what it must handle: {text}"
    return f"map fails with {type(error).__name__}: {text[:200]}"


def _malformed(out: Any, case: Case) -> str:
    if not isinstance(out, TokenMap):
        return f"map returned {type(out).__name__}: return a TokenMap, for example TokenMap.keep(anchor, tokens.count)"
    if not isinstance(out.anchor, Tensor) or out.anchor.dim() != 2 or out.anchor.shape[0] != case.batch:
        return f"anchor must have shape (batch, slots) = ({case.batch}, {case.keep}), got {_shape(out.anchor)}"
    if out.tokens != case.count:
        return f"TokenMap.tokens must be the number of tokens that enter, {case.count}, got {out.tokens!r}"
    if out.self_weight is not None and _shape(out.self_weight) != _shape(out.anchor):
        return f"self_weight must have the shape of anchor, {_shape(out.anchor)}, got {_shape(out.self_weight)}"
    return ""


def _wrong_anchors(out: TokenMap, case: Case, unique: bool = True) -> str:
    if out.anchor.dtype != torch.long:
        return f"anchors are {out.anchor.dtype}: an index is torch.long"
    if out.anchor.numel() and not 0 <= int(out.anchor.min()) <= int(out.anchor.max()) < case.count:
        return f"anchor {_outside(out.anchor, case.count)} is no token; there are 0 to {case.count - 1}"
    for row, anchors in enumerate(out.anchor.tolist() if unique else []):
        if twice := [a for a in anchors if anchors.count(a) > 1]:
            times = anchors.count(twice[0])
            return f"token {twice[0]} is the anchor of {times} slots in row {row}: give each place once"
    return ""


def _wrong_edges(out: TokenMap) -> str:
    edges = {"slot": out.slot, "source": out.source, "weight": out.weight}
    if all(value is None for value in edges.values()):
        return ""
    shapes = {name: _shape(value) for name, value in edges.items()}
    if len(set(shapes.values())) > 1 or len(shapes["slot"]) != 2 or shapes["slot"][0] != out.anchor.shape[0]:
        return f"slot, source and weight must all have shape (batch, edges), got {', '.join(map(str, shapes.values()))}"
    for name, limit, what in (("slot", out.slots, "slots"), ("source", out.tokens, "tokens")):
        index = edges[name]
        if index.dtype != torch.long:
            return f"{name} is {index.dtype}: an index is torch.long"
        if index.numel() and not 0 <= int(index.min()) <= int(index.max()) < limit:
            return f"{name} {_outside(index, limit)} is out of range: {what} are 0 to {limit - 1} within each row"
    return ""


def _shape(x: Any) -> tuple[int, ...]:
    return tuple(getattr(x, "shape", ()))


def _outside(index: Tensor, limit: int) -> int:
    return int(index[(index < 0) | (index >= limit)][0])


def _same(one: TokenMap, other: TokenMap) -> bool:
    return torch.equal(one.anchor, other.anchor) and torch.allclose(
        one.matrix(), other.matrix(), rtol=0, atol=TOLERANCE, equal_nan=True
    )


# ---------------------------------------------------------------------------------------------- promises
@dataclass(frozen=True)
class Promise:
    """One promise: `check` says of each of its `cases` what is wrong, until one breaks it."""

    name: str
    says: str
    cases: Callable[[Subject], Iterable[Any]]
    check: Callable[[Subject, Any], str | None]

    def result(self, subject: Subject) -> Result:
        """Passed, broken with the first case that breaks it, or not applicable."""
        answer = (subject.label, self.name, self.says)
        asked, reason = 0, "there is no such case in the stages of this strategy"
        for case in self.cases(subject):
            try:
                wrong = self.check(subject, case)
            except _Elsewhere as elsewhere:
                reason = str(elsewhere)
                continue
            except _Broken as broken:
                wrong = str(broken)
            asked += 1
            if wrong:
                return Result(*answer, "broken", wrong, str(case) if isinstance(case, Case) else "")
        return Result(*answer, "passed") if asked else Result(*answer, "not applicable", reason)


PROMISES: dict[str, Promise] = {}


def _promise(cases: Callable[[Subject], Iterable[Any]]) -> Callable:
    def add(check: Callable[[Subject, Any], str | None]) -> Callable:
        name = check.__name__.strip("_")
        PROMISES[name] = Promise(name, " ".join((check.__doc__ or "").split()), cases, check)
        return check

    return add


def _once(subject: Subject) -> list[None]:
    return [None]


def _ordinary(subject: Subject) -> list[Case]:
    one_by_one = subject.cases(3, 4, 5, 6, 9, keeps=(0.3, 0.5, 0.8))
    return one_by_one + subject.cases(16, 25, keeps=(0.3, 0.6, 0.9), batch=3)


def _few(subject: Subject) -> list[Case]:
    return subject.cases(4, 9, 16, batch=3)


# ---- the class
@_promise(_once)
def metadata(subject: Subject, case: None) -> str | None:
    """Name, kind, stages, paper and docstring say what it is."""
    own, cls = subject.strategy, subject.cls
    if not isinstance(own.name, str) or not own.name or own.name != own.name.strip():
        return f'name is {own.name!r}: give it the word that users type, such as name = "my-method"'
    if own.kind not in ("none", "prune", "merge", "pool"):
        return f'kind is {own.kind!r}: it must be "prune", "merge" or "pool"'
    known = isinstance(own.stages, tuple) and all(stage in STAGES for stage in own.stages)
    if not known or not (own.stages or own.kind == "none"):
        return f"stages is {own.stages!r}: it must be a tuple taken from {STAGES}"
    if own.paper is not None and not isinstance(own.paper, Paper):
        return f"paper is {own.paper!r}: it must be a Paper(title, arxiv, year), or None"
    if not (cls.__doc__ or "").strip() or cls.__doc__.startswith(f"{cls.__name__}("):  # what dataclass makes up
        return "the class has no docstring: say in one sentence what is kept, then the formula and its source"
    if own.memory not in ("linear", "quadratic"):
        return f'memory is {own.memory!r}: it must be "linear" or "quadratic"'
    for attribute, kind in (("averages", bool), ("proportional_attention", bool)):
        if not isinstance(getattr(own, attribute), kind):
            return f"{attribute} is {getattr(own, attribute)!r}: it must be True or False"
    if not 0 <= own.smallest_keep < 1:
        return f"smallest_keep is {own.smallest_keep!r}: it must be a fraction, 0 for no limit"
    return None


def _settings(subject: Subject) -> list[str]:
    return [field.name for field in dataclasses.fields(subject.strategy)]


@_promise(_once)
def settings_validated(subject: Subject, case: None) -> str | None:
    """Settings cannot be changed later, and a choice that does not exist is refused with a LabError."""
    if not dataclasses.is_dataclass(subject.cls) or not subject.cls.__dataclass_params__.frozen:
        return "the class is no frozen dataclass: do not decorate it again, subclasses of Strategy are one already"
    for name in _settings(subject):
        if not isinstance(getattr(subject.strategy, name), str):
            continue
        try:
            replace(subject.strategy, **{name: "no such choice"})
        except LabError:
            continue
        except Exception as error:
            return f"{name}='no such choice' raises {type(error).__name__}, not LabError: use one_of in __post_init__"
        return f"{name}='no such choice' is accepted: add one_of({name!r}, self.{name}, (...)) to __post_init__"
    return None


def choices(strategy: Strategy) -> list[Strategy]:
    """The strategy, and one more for each other value of each setting that is a choice: a word, or True and False."""
    out = [strategy]
    for field in dataclasses.fields(strategy):
        value = getattr(strategy, field.name)
        allowed: list[Any] = [not value] if isinstance(value, bool) else []
        if isinstance(value, str):
            try:
                replace(strategy, **{field.name: "no such choice"})
            except LabError as error:  # the message of one_of names them
                allowed = re.findall(r"'([^']*)'", str(error).partition(", got ")[0])
        out += [replace(strategy, **{field.name: other}) for other in allowed if other != value]
    return out


def _other_settings(strategy: Strategy) -> list[Strategy]:
    """`choices`, and instances with other numbers, where the class accepts them."""
    out = choices(strategy)
    for field in dataclasses.fields(strategy):
        value = getattr(strategy, field.name)
        if type(value) in (int, float):
            try:
                out.append(replace(strategy, **{field.name: value + 1 if type(value) is int else value / 2}))
            except LabError:
                continue
    return out


@_promise(_once)
def repr_round_trips(subject: Subject, case: None) -> str | None:
    """The repr is the configuration: evaluating it gives an equal strategy."""
    for strategy in _other_settings(subject.strategy):
        text = repr(strategy).replace(subject.cls.__qualname__, subject.cls.__name__, 1)
        try:
            again = eval(text, {subject.cls.__name__: subject.cls})
        except Exception as error:
            return f"repr gives {text}, which fails with {type(error).__name__}: leave __repr__ to the dataclass"
        if again != strategy:
            return f"repr gives {text}, which makes another strategy: every setting must be a field that __init__ takes"
    return None


@_promise(lambda subject: subject.cases(4, 9)[:8])
def instances_independent(subject: Subject, case: Case) -> str | None:
    """An instance with other settings changes nothing for this one, and mapping leaves no trace on it."""
    replace(subject.strategy)  # the newest instance, should that matter, has the settings of this one
    before, state = subject.map(case), repr(vars(subject.strategy))
    for other in _other_settings(subject.strategy)[1:]:
        try:
            other.map(case.tokens(), case.keep)
        except Exception:
            continue  # other settings may need another place
    if repr(vars(subject.strategy)) != state:
        return "map changes the attributes of the strategy: compute what it needs from the tokens, each time"
    if not _same(before, subject.map(case)):
        return "once there are instances with other settings this one gives another map: keep settings in self only"
    return None


# ---- a map for every case
@_promise(lambda subject: subject.strategy.stages)
def statistics_exist(subject: Subject, stage: Stage) -> str | None:
    """It asks only for what the stage has."""
    refusals = [refusal for site, refusal in subject.sites.items() if site.stage == stage and not site.reduced]
    if all(refusals):
        return f"{refusals[0]}: ask for one of these, or leave {stage!r} out of stages"
    return None


@_promise(_ordinary)
def maps_every_case(subject: Subject, case: Case) -> str | None:
    """It returns a TokenMap for every ordinary case, without an error."""
    try:
        out = subject.ask(case.tokens(), case.keep)
    except Exception as error:
        return _crash(error)
    return _malformed(out, case)


@_promise(_ordinary)
def count_kept(subject: Subject, case: Case) -> str | None:
    """As many slots come out as were asked for."""
    out = subject.map(case)
    if out.slots != case.keep:
        return f"{out.slots} slots came out: `keep` counts all slots, protected tokens included"
    return None


@_promise(_ordinary)
def anchors_unique(subject: Subject, case: Case) -> str | None:
    """Anchors are tokens of their row, and no token is the anchor of two slots."""
    try:
        out = subject.ask(case.tokens(), case.keep)
    except Exception as error:
        raise _Elsewhere(_crash(error)) from error
    if wrong := _malformed(out, case):
        raise _Elsewhere(wrong)
    return _wrong_anchors(out, case)


@_promise(_ordinary)
def sources_exist(subject: Subject, case: Case) -> str | None:
    """No token appears from nowhere: what a slot is made of are tokens of its own row."""
    tokens = case.tokens()
    try:
        out = subject.ask(tokens, case.keep)
    except Exception as error:
        raise _Elsewhere(_crash(error)) from error
    if wrong := _malformed(out, case) or _wrong_anchors(out, case, unique=False):
        raise _Elsewhere(wrong)
    if wrong := _wrong_edges(out):
        return wrong
    want = out.matrix() @ tokens.hidden.double()
    got = out.apply(tokens.hidden).double()
    if torch.isfinite(want).all() and not torch.allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE):
        return "apply gives something else than the map's weights times the tokens: return a plain TokenMap"
    return None


@_promise(_ordinary)
def weights_finite(subject: Subject, case: Case) -> str | None:
    """Weights are finite and not negative."""
    weights = subject.map(case).matrix()
    bad = (~torch.isfinite(weights) | (weights < 0)).nonzero()
    if len(bad):
        row, slot, token = bad[0].tolist()
        weight = f"{weights[row, slot, token]:.3g}"
        return f"token {token} enters slot {slot} of row {row} with weight {weight}: check divisions and signs"
    return None


@_promise(_ordinary)
def rows_sum_to_one(subject: Subject, case: Case) -> str | None:
    """Every slot is an average: its weights sum to 1."""
    if not subject.strategy.averages:
        raise _Elsewhere("averages = False: the method adds")
    total = subject.map(case).matrix().sum(dim=2)
    if not torch.isfinite(total).all():
        raise _Elsewhere("weights are not finite")
    bad = ((total - 1).abs() > TOLERANCE).nonzero()
    if len(bad):
        row, slot = bad[0].tolist()
        return (
            f"rows of the map do not sum to 1 (row {row}, slot {slot} sums to {total[row, slot]:.4g}): divide by the "
            "total weight of its members, or set averages = False if that is the method's rule"
        )
    return None


def _with_protected(subject: Subject) -> list[Case]:
    """CLS; and in the LLM one line end, some, and as many as patches."""
    cases = [case for case in subject.cases(3, 6, 9, batch=2) if case.cls]
    llm = [case for case in subject.cases(3, 6, 9, 16, batch=2) if case.stage == "llm"]
    for case in llm:
        for newlines in sorted({1, 3, case.patches}):
            cases.append(replace(case, newlines=newlines, keep=case.keep + newlines))
    return sorted(cases, key=lambda case: (case.count, case.keep))


@_promise(_with_protected)
def protected_survive(subject: Subject, case: Case) -> str | None:
    """Protected tokens keep their slots unchanged: CLS in the encoder, line ends anywhere in the LLM."""
    tokens = case.tokens()
    out = subject.map(case, tokens, here=bool(case.newlines))
    if case.newlines and (wrong := subject.unsound(out, case)):
        return wrong
    for row, lost in enumerate(tokens.protected):
        for token in lost.nonzero()[:, 0].tolist():
            slots = (out.anchor[row] == token).nonzero()[:, 0].tolist()
            if not slots:
                return f"protected token {token} of row {row} is gone: use `ranking` or `highest`, which put them first"
            weights = out.matrix()[row, slots[0]]
            if abs(weights[token] - 1) > TOLERANCE or abs(weights.sum() - 1) > TOLERANCE:
                return f"protected token {token} of row {row} is merged with others: leave tokens.protected out of it"
    return None


# ---- unusual cases
def _everything(subject: Subject) -> list[Case]:
    sites = [site for site, refusal in subject.sites.items() if not refusal]
    cases = [replace(site, patches=n, batch=batch) for n, batch in ((2, 1), (3, 1), (4, 2), (9, 2)) for site in sites]
    return [replace(case, keep=case.count) for case in sorted(cases, key=lambda case: case.count)]


@_promise(_everything)
def keep_everything(subject: Subject, case: Case) -> str | None:
    """Keeping every token changes nothing."""
    tokens = case.tokens()
    out = subject.map(case, here=True)
    if out.slots != case.count:
        raise _Elsewhere("another number of slots came out")
    if not torch.equal(out.apply(tokens.hidden), tokens.hidden):
        return "tokens change although all stay: begin with if keep == tokens.count: return TokenMap.identity(tokens)"
    return None


def _single(subject: Subject) -> list[Case]:
    sites = [site for site, refusal in subject.sites.items() if not refusal and not site.reduced]
    return [replace(site, patches=1, keep=site.protected + 1, batch=batch) for site in sites for batch in (1, 2)]


@_promise(_single)
def one_token(subject: Subject, case: Case) -> str | None:
    """A single visual token stays."""
    return subject.unsound(subject.map(case, here=True), case) or None


def _least(subject: Subject) -> list[Case]:
    sites = [replace(site, patches=n) for n in (2, 3, 9) for site, refusal in subject.sites.items() if not refusal]
    cases = [subject.keeping(site, max(1, site.protected + least)) for site in sites for least in (1, 0)]
    cases = dict.fromkeys(case for case in cases if case is not None and case.keep < case.count)
    return sorted(cases, key=lambda case: (case.count, case.keep))


@_promise(_least)
def keep_one(subject: Subject, case: Case) -> str | None:
    """The least that can be kept, one token beside the protected ones, or only these."""
    try:
        return subject.unsound(subject.map(case, here=True), case) or None
    except _Broken as broken:
        if isinstance(broken.__cause__, LabError) and case.keep == case.protected:
            raise _Elsewhere("it refuses to keep protected tokens alone") from None
        raise


@_promise(lambda subject: subject.cases(4, 9, equal=True) + subject.cases(4, 9))
def ties(subject: Subject, case: Case) -> str | None:
    """Equal tokens, and equal scores, are no problem."""
    tokens = case.tokens()
    if not case.equal:
        tokens = changed(tokens, lambda name, x: torch.full_like(x, 0.1) if name in _SCORES else x)
    wrong = subject.unsound(subject.map(case, tokens, here=True), case)
    if not wrong:
        return None
    return f"with {'equal tokens' if case.equal else 'all scores equal'}: {wrong}"


_SCORES = ("attention_received", "cls_attention", "wide_cls_attention", "lse")
_SCORES += ("text_attention", "next_text_attention", "text_rows")


@_promise(lambda subject: subject.cases(4, 9))
def nan_survived(subject: Subject, case: Case) -> str | None:
    """NaN is refused with a LabError, or survived: it is not preferred to numbers, and the count is right."""
    clean = subject.map(case)
    kept = set(clean.anchor[0].tolist())
    for token in [*range(case.protected, case.count), None]:
        tokens = changed(case.tokens(), lambda name, x, token=token: _with_nan(name, x, token))
        what = "every token" if token is None else f"token {token}"
        try:
            out = subject.map(case, tokens, here=True)
        except _Broken as broken:
            if isinstance(broken.__cause__, LabError):
                continue
            raise _Broken(f"with NaN in {what}, {broken}") from None
        if token is None:  # weights may be NaN then
            out = replace(out, self_weight=None, slot=None, source=None, weight=None)
        if wrong := subject.unsound(out, case):
            return f"with NaN in {what}, {wrong}: replace NaN (torch.nan_to_num), or raise a LabError"
        ranked = out.score is not None or out.weight is None  # what merges may as well leave NaN apart
        if token is not None and ranked and token not in kept and token in out.anchor[0]:
            return (
                f"token {token} is kept when it is NaN, and is not when it is a number: sorting puts NaN first; use "
                "`ranking` or `highest`, or replace NaN"
            )
    return None


def _with_nan(name: str, x: Tensor, token: int | None) -> Tensor:
    """NaN in one token's entries, or in all."""
    of_others = (name.startswith("text_") and name not in _SCORES) or name == "embeddings"
    if name in ("position", "size", "protected") or (of_others and token is not None):
        return x
    index = torch.full(x.shape, token is None)
    if token is not None:
        (index.select(-1, token) if name in _SCORES else index.select(1, token)).fill_(True)
    return x.masked_fill(index, torch.nan)


# ---- batches, dtypes, side effects
@_promise(_few)
def batch_equals_single(subject: Subject, case: Case) -> str | None:
    """Each row of a batch gives what it gives alone."""
    out = subject.map(case)
    for row in range(case.batch):
        alone = subject.map(replace(case, batch=1), _rows_of(case.tokens(), [row]))
        if not _same(alone, _rows_of_map(out, [row])):
            return f"row {row} gives another map in a batch than alone: do not mix rows (mean over dim 0, or a view)"
    return None


@_promise(_few)
def batch_permutes(subject: Subject, case: Case) -> str | None:
    """Rows in another order give their maps in that order."""
    order = [*range(1, case.batch), 0]
    if not _same(subject.map(case, _rows_of(case.tokens(), order)), _rows_of_map(subject.map(case), order)):
        return "rows in another order give other maps: a row's map must not depend on its number"
    return None


def _rows_of(tokens: Tokens, rows: list[int]) -> Tokens:
    return changed(tokens, lambda name, x: x[rows].clone())


def _rows_of_map(out: TokenMap, rows: list[int]) -> TokenMap:
    parts = {name: getattr(out, name) for name in ("anchor", "self_weight", "slot", "source", "weight")}
    return TokenMap(tokens=out.tokens, **{name: x if x is None else x[rows] for name, x in parts.items()})


def _dtypes(subject: Subject) -> list[Case]:
    devices = ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]
    dtypes = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
    return [case for device in devices for dtype in dtypes for case in subject.cases(4, 9, device=device, dtype=dtype)]


@_promise(_dtypes)
def dtype_and_device_kept(subject: Subject, case: Case) -> str | None:
    """What comes out has the dtype and the device of what went in."""
    tokens = case.tokens()
    out = subject.map(case, tokens, here=case.dtype in (torch.float16, torch.float64) or case.device != "cpu")
    y = out.apply(tokens.hidden)
    if y.dtype != tokens.hidden.dtype or y.device != tokens.hidden.device:
        return f"{y.dtype} on {y.device} came out: make new tensors with dtype and device of the tokens"
    return None


@_promise(lambda subject: subject.cases(4, 9, batch=2, dtype=torch.bfloat16))
def bfloat16_works(subject: Subject, case: Case) -> str | None:
    """Tokens in bfloat16, which numpy does not know and where sums lose digits, are mapped like others."""
    out = subject.map(case, here=True)
    if wrong := subject.unsound(out, case):
        return wrong
    off = float((out.matrix().sum(dim=2) - 1).abs().max())
    if subject.strategy.averages and off > 0.01 and not subject.breaks("rows_sum_to_one"):
        return f"a row of weights is off 1 by {off:.2g}: compute weights in float32, TokenMap casts the result once"
    return None


@_promise(lambda subject: subject.cases(4, 9, 25, batch=2))
def deterministic(subject: Subject, case: Case) -> str | None:
    """The same tokens give the same map, and global random numbers are left alone."""
    subject.map(case)
    maps = []
    for seed in (1, 2):
        with _random_state(seed):
            before = _drawn()
            maps.append(subject.strategy.map(case.tokens(), case.keep))
            if before != _drawn():
                return "map draws from or seeds the global random numbers: use torch.Generator().manual_seed(self.seed)"
    if not _same(*maps):
        return "the same tokens give another map the second time: results may depend on tokens and settings only"
    return None


@_promise(lambda subject: subject.cases(4, 9, batch=2))
def inputs_unchanged(subject: Subject, case: Case) -> str | None:
    """The tokens that it is given stay as they are."""
    tokens = case.tokens()
    before = {name: (x, x.clone()) for name, x in tensors(tokens).items()}
    subject.map(case, tokens)
    after = tensors(tokens)
    for name, (same, copy) in before.items():
        if after.get(name) is not same or not torch.equal(same, copy):
            return f"map changes tokens.{name}: use operations without a trailing underscore, or clone() first"
    return None


# ---- cost
class _Largest(TorchDispatchMode):
    """Bytes of the largest tensor that is made while it is open; those of `tokens` are not counted."""

    def __init__(self, tokens: Tokens) -> None:
        super().__init__()
        self.bytes, self.own = 0, {x.untyped_storage().data_ptr() for x in tensors(tokens).values()}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = function(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self.own:
                self.bytes = max(self.bytes, x.untyped_storage().nbytes())
        return out


@_promise(lambda subject: [case for case in subject.cases(1024, keeps=(0.5, 0.8)) if not case.reduced])
def memory_as_declared(subject: Subject, case: Case) -> str | None:
    """The largest tensor grows with the number of tokens as `memory` declares: linear, or quadratic."""
    small = subject.keeping(replace(case, patches=256), case.protected + (case.keep - case.protected) // 4)
    largest = []
    for each in (small, case):
        tokens = each.tokens()
        with _Largest(tokens) as mode:
            subject.map(each, tokens)
        largest.append(mode.bytes)
    power, growth = (1 if subject.strategy.memory == "linear" else 2), largest[1] / max(largest[0], 1)
    if growth > 4 ** (power + 0.5):
        much = f"grows {growth:.0f} times, to {largest[1] / 1024:.0f} KiB, for 4 times the tokens"
        if power == 1:
            return f'the largest tensor {much}: make no tokens-by-tokens matrix, or declare memory = "quadratic"'
        return f"the largest tensor {much}, more than quadratic: compare pairs of tokens at most"
    return None
