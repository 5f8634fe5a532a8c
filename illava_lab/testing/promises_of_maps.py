"""Promises of every map: as many slots as asked for, of tokens that exist, with weights that make sense."""

from __future__ import annotations

from dataclasses import replace

import torch

from illava_lab.method.tokens import Stage
from illava_lab.testing.cases import Case
from illava_lab.testing.faults import TOLERANCE, malformed, wrong_anchors, wrong_edges
from illava_lab.testing.promise import Elsewhere, promise
from illava_lab.testing.subject import Subject, crash, ordinary


# ---- a map for every case
@promise(lambda subject: subject.strategy.stages)
def statistics_exist(subject: Subject, stage: Stage) -> str | None:
    """It asks only for what the stage has."""
    refusals = [refusal for site, refusal in subject.sites.items() if site.stage == stage and not site.reduced]
    if all(refusals):
        return f"{refusals[0]}: ask for one of these, or leave {stage!r} out of stages"
    return None


@promise(ordinary)
def maps_every_case(subject: Subject, case: Case) -> str | None:
    """It returns a TokenMap for every ordinary case, without an error."""
    try:
        out = subject.ask(case.tokens(), case.keep)
    except Exception as error:
        return crash(error)
    return malformed(out, case)


@promise(ordinary)
def count_kept(subject: Subject, case: Case) -> str | None:
    """As many slots come out as were asked for."""
    out = subject.map(case)
    if out.slots != case.keep:
        return f"{out.slots} slots came out: `keep` counts all slots, protected tokens included"
    return None


@promise(ordinary)
def anchors_unique(subject: Subject, case: Case) -> str | None:
    """Anchors are tokens of their row, and no token is the anchor of two slots."""
    try:
        out = subject.ask(case.tokens(), case.keep)
    except Exception as error:
        raise Elsewhere(crash(error)) from error
    if wrong := malformed(out, case):
        raise Elsewhere(wrong)
    return wrong_anchors(out, case)


@promise(ordinary)
def sources_exist(subject: Subject, case: Case) -> str | None:
    """No token appears from nowhere: what a slot is made of are tokens of its own row."""
    tokens = case.tokens()
    try:
        out = subject.ask(tokens, case.keep)
    except Exception as error:
        raise Elsewhere(crash(error)) from error
    if wrong := malformed(out, case) or wrong_anchors(out, case, unique=False):
        raise Elsewhere(wrong)
    if wrong := wrong_edges(out):
        return wrong
    want = out.matrix() @ tokens.hidden.double()
    got = out.apply(tokens.hidden).double()
    if torch.isfinite(want).all() and not torch.allclose(got, want, rtol=TOLERANCE, atol=TOLERANCE):
        return "apply gives something else than the map's weights times the tokens: return a plain TokenMap"
    return None


@promise(ordinary)
def weights_finite(subject: Subject, case: Case) -> str | None:
    """Weights are finite and not negative."""
    weights = subject.map(case).matrix()
    bad = (~torch.isfinite(weights) | (weights < 0)).nonzero()
    if len(bad):
        row, slot, token = bad[0].tolist()
        weight = f"{weights[row, slot, token]:.3g}"
        return f"token {token} enters slot {slot} of row {row} with weight {weight}: check divisions and signs"
    return None


@promise(ordinary)
def rows_sum_to_one(subject: Subject, case: Case) -> str | None:
    """Every slot is an average: its weights sum to 1."""
    if not subject.strategy.averages:
        raise Elsewhere("averages = False: the method adds")
    total = subject.map(case).matrix().sum(dim=2)
    if not torch.isfinite(total).all():
        raise Elsewhere("weights are not finite")
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


@promise(_with_protected)
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
