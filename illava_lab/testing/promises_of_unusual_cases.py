"""Promises of unusual cases: everything kept, nearly nothing kept, equal scores, NaN."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Tokens
from illava_lab.testing.cases import Case
from illava_lab.testing.promise import Broken, Elsewhere, promise
from illava_lab.testing.subject import Subject
from illava_lab.testing.tensors import changed


# ---- unusual cases
def _everything(subject: Subject) -> list[Case]:
    sites = [site for site, refusal in subject.sites.items() if not refusal]
    cases = [replace(site, patches=n, batch=batch) for n, batch in ((2, 1), (3, 1), (4, 2), (9, 2)) for site in sites]
    return [replace(case, keep=case.count) for case in sorted(cases, key=lambda case: case.count)]


@promise(_everything)
def keep_everything(subject: Subject, case: Case) -> str | None:
    """Keeping every token changes nothing."""
    tokens = case.tokens()
    out = subject.map(case, here=True)
    if out.slots != case.count:
        raise Elsewhere("another number of slots came out")
    if not torch.equal(out.apply(tokens.hidden), tokens.hidden):
        return "tokens change although all stay: begin with if keep == tokens.count: return TokenMap.identity(tokens)"
    return None


def _single(subject: Subject) -> list[Case]:
    sites = [site for site, refusal in subject.sites.items() if not refusal and not site.reduced]
    return [replace(site, patches=1, keep=site.protected + 1, batch=batch) for site in sites for batch in (1, 2)]


@promise(_single)
def one_token(subject: Subject, case: Case) -> str | None:
    """A single visual token stays."""
    return subject.unsound(subject.map(case, here=True), case) or None


def _least(subject: Subject) -> list[Case]:
    sites = [replace(site, patches=n) for n in (2, 3, 9) for site, refusal in subject.sites.items() if not refusal]
    found = [subject.keeping(site, max(1, site.protected + least)) for site in sites for least in (1, 0)]
    cases = dict.fromkeys(case for case in found if case is not None and case.keep < case.count)
    return sorted(cases, key=lambda case: (case.count, case.keep))


@promise(_least)
def keep_one(subject: Subject, case: Case) -> str | None:
    """The least that can be kept, one token beside the protected ones, or only these."""
    try:
        return subject.unsound(subject.map(case, here=True), case) or None
    except Broken as broken:
        if isinstance(broken.__cause__, LabError) and case.keep == case.protected:
            raise Elsewhere("it refuses to keep protected tokens alone") from None
        raise


@promise(lambda subject: subject.cases(4, 9, equal=True) + subject.cases(4, 9))
def ties(subject: Subject, case: Case) -> str | None:
    """Equal tokens, and equal scores, are no problem."""
    tokens = case.tokens()
    if not case.equal:
        tokens = changed(tokens, lambda name, x: torch.full_like(x, 0.1) if name in _SCORES else x)
    wrong = subject.unsound(subject.map(case, tokens, here=True), case)
    if not wrong:
        return None
    return f"with {'equal tokens' if case.equal else 'all scores equal'}: {wrong}"


_SCORES = (
    "attention_received", "cls_attention", "wide_cls_attention", "lse",
    "text_attention", "next_text_attention", "text_rows",
)  # fmt: skip


@promise(lambda subject: subject.cases(4, 9))
def nan_survived(subject: Subject, case: Case) -> str | None:
    """NaN is refused with a LabError, or survived: it is not preferred to numbers, and the count is right."""
    before = set(subject.map(case).anchor[0].tolist())
    answers: dict[int, TokenMap] = {}
    for token in [*range(case.protected, case.count), None]:
        tokens = changed(case.tokens(), partial(_with_nan, token))
        what = "every token" if token is None else f"token {token}"
        try:
            out = subject.map(case, tokens, here=True)
        except Broken as broken:
            if isinstance(broken.__cause__, LabError):
                continue
            raise Broken(f"with NaN in {what}, {broken}") from None
        if token is None or _all_nan(out, tokens):  # weights may be NaN then
            out = replace(out, self_weight=None, slot=None, source=None, weight=None)
        elif out.score is not None or out.weight is None:  # what merges without ranking may as well leave NaN apart
            answers[token] = out
        if wrong := subject.unsound(out, case):
            return f"with NaN in {what}, {wrong}: replace NaN (torch.nan_to_num), or raise a LabError"

    # A method that compares all tokens may make every score NaN. Then no order is defined: whichever tokens survive,
    # they are the same wherever NaN was.
    same_for_all = len(answers) > 1 and len({tuple(sorted(out.anchor[0].tolist())) for out in answers.values()}) == 1
    for token, out in answers.items():
        if token in before or token not in out.anchor[0] or same_for_all or _is_a_tie(out, case, token):
            continue
        return (
            f"token {token} is kept when it is NaN, and is not when it is a number: sorting puts NaN first; use "
            "`ranking` or `highest`, or replace NaN"
        )
    return None


def _all_nan(out: TokenMap, tokens: Tokens) -> bool:
    """Whether the strategy says that it ranked by NaN alone, protected tokens aside."""
    return out.score is not None and bool((out.score.isnan() | tokens.protected).all())


def _is_a_tie(out: TokenMap, case: Case, token: int) -> bool:
    """Whether the strategy's own scores give no reason to drop `token` rather than any of those that are dropped."""
    if out.score is None:
        return False
    score = out.score[0]
    dropped = torch.ones(case.count, dtype=torch.bool, device=score.device).scatter(0, out.anchor[0], False)
    return not bool((dropped & ~score.isnan() & (score != score[token])).any())


def _with_nan(token: int | None, name: str, x: Tensor) -> Tensor:
    """NaN in one token's entries, or in all."""
    of_others = (name.startswith("text_") and name not in _SCORES) or name in ("embeddings", "joint_text")
    if name in ("position", "size", "protected") or (of_others and token is not None):
        return x
    index = torch.full_like(x, token is None, dtype=torch.bool)
    if token is not None:
        (index.select(-1, token) if name in _SCORES else index.select(1, token)).fill_(True)
    return x.masked_fill(index, torch.nan)
