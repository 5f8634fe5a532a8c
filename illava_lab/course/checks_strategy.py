"""The automatic checks of chapter 05: a score by place, a mended strategy, a merge, and a strategy of one's own."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable

import pandas as pd
import torch
from torch import Tensor

from illava_lab.course.exercises import exercise, need, tensor
from illava_lab.method.registry import strategies
from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Tokens
from illava_lab.testing import check_strategy

LINES = 15


@exercise
def check_centre(function: Callable[[Tokens], Tensor]) -> str:
    """Scores (B, N) that fall with the distance of a token's place from the centre of the image."""
    places = torch.tensor([[12, 11, 7, 6, 0], [0, 7, 6, 12, 11]])  # on a grid of 5 x 5; 12 is the centre
    tokens = Tokens("llm", torch.zeros(2, 5, 3), position=places, grid=(5, 5))
    got = tensor(function(tokens), (2, 5))
    first, second = ({int(p): float(s) for p, s in zip(*row, strict=True)} for row in zip(places, got, strict=True))
    need(got.isfinite().all(), "a score is infinite or NaN")
    need(
        first == second,
        f"patch 12 scores {first[12]:.3g} in one image and {second[12]:.3g} in the other: after an earlier reduction "
        "a token's number "
        "is not its place; use tokens.position",
    )
    need(first[12] > first[0], "patch 12, the centre, must score above patch 0, a corner: the highest scores are kept")
    need(
        abs(first[11] - first[7]) < 1e-6,
        f"patches 11 and 7 are both one step from the centre, to the left and up, but score {first[11]:.3g} and "
        f"{first[7]:.3g}: "
        "a place has a row (position // width) and a column (position % width)",
    )
    need(
        first[12] > first[11] > first[6] > first[0],
        "scores must fall with the distance: patches 12, then 11 and 7, then 6, then 0",
    )
    return "the score follows the place of a token, not its number."


@exercise
def check_mended(cls: type[Strategy]) -> str:
    """A scorer that keeps the largest deviations from the image's mean, and keeps every promise."""
    _keeps_promises(cls)
    x = torch.tensor(
        [[[1.0, 0.0], [9.0, 9.0], [1.0, 0.2], [1.0, 0.1]], [[0.0, 5.0], [0.0, 5.1], [0.0, 4.9], [-7.0, 0.0]]]
    )
    for stage in ("encoder", "llm"):
        kept = cls().map(Tokens(stage, x), keep=1).anchor[:, 0].tolist()
        need(
            kept == [1, 3],
            f"tokens 1 and 3 stand out of their images by far and must be kept first; yours keeps {kept}",
        )
    return "every row counts alone, and what stands out is kept."


@exercise
def check_nearest(function: Callable[[Tensor, Tensor, Tensor], Tensor]) -> str:
    """hidden (B, N, C), anchor (B, M), source (B, R) -> (B, R): for each source the slot with the likest anchor."""
    one = torch.tensor([[2.0, 0.2], [1.0, 0.0], [0.1, 1.0], [0.0, 1.0], [1.0, 1.1], [6.0, 6.0]])
    hidden = torch.stack([one, one[[0, 3, 2, 1, 4, 5]]])  # in the second image two anchors have changed places
    anchor, source = torch.tensor([[1, 3, 5]] * 2), torch.tensor([[0, 2, 4]] * 2)
    answer = function(hidden, anchor, source)
    if isinstance(answer, Tensor):
        need(not answer.is_floating_point(), f"a slot is a whole number (torch.long), got {answer.dtype}")
    slots = tensor(answer, (2, 3)).long()
    need(
        slots.min() >= 0 and slots.max() < 3,
        f"{int(slots.max())} is the number of a token; there are slots 0, 1 and 2, one for each anchor",
    )
    got = slots.tolist()
    need(
        got[0][0] != 2,
        "token 0 joined slot 2, whose anchor is long, not alike: use the cosine, which does not depend on length",
    )
    need(
        got[0][2] == 2,
        f"token 4 points the same way as the anchor of slot 2, but joined slot {got[0][2]}: the *most* similar one is "
        "asked for",
    )
    need(got[0] == [0, 1, 2], f"in the first image tokens 0, 2 and 4 belong to slots 0, 1 and 2, yours go to {got[0]}")
    need(
        got[1] == [1, 0, 2],
        f"in the second image they belong to slots 1, 0 and 2, yours go to {got[1]}: each row has tokens of its own",
    )
    return "every dropped token finds the survivor that it resembles most."


@exercise
def check_own(cls: type[Strategy], table: pd.DataFrame | None) -> str:
    """A registered strategy of at most 15 lines that keeps every promise and has rows in the table."""
    _keeps_promises(cls)
    need(strategies().get(cls.name) is cls, f"{cls.name!r} is not in the registry: put @il.register above the class")
    lines = code_lines(cls)
    need(lines <= LINES, f"its methods have {lines} lines of code; at most {LINES} are asked for")
    need(table is not None, "it keeps its promises; now put it into the table")
    assert table is not None
    rows = table[table["strategy"] == cls.name]
    need(not rows.empty, f"the table has no row of {cls.name!r}: compare it")
    failed = rows[rows["status"] != "ok"]
    need(failed.empty, f"it fails on the model: {failed['status'].iloc[0] if len(failed) else ''}")
    budgets = set(table.loc[table["strategy"] == "random", "flops"])
    need(
        set(rows["flops"]) == budgets,
        f"random was measured at {_listed(budgets)} of the FLOPs, yours at {_listed(set(rows['flops']))}",
    )
    against = (
        rows.set_index("flops")["accuracy"] - table[table["strategy"] == "random"].set_index("flops")["accuracy"]
    ) * 100
    told = ", ".join(
        f"{points:+.1f} points against random at {flops:g} of the FLOPs"
        for flops, points in against.sort_index().items()
    )
    return f"{cls.name} keeps every promise in {lines} lines. Measured: {told}."


def code_lines(cls: type) -> int:
    """Lines of code in a class's own methods, without blank lines, comments, docstrings; one line a statement."""
    count = 0
    for name, member in vars(cls).items():
        if inspect.isfunction(member) and not name.startswith("__"):  # those with underscores are the dataclass's
            tree = ast.parse(textwrap.dedent(inspect.getsource(member))).body[0]
            assert isinstance(tree, ast.FunctionDef | ast.AsyncFunctionDef)
            if ast.get_docstring(tree) is not None:
                del tree.body[0]
            count += len(ast.unparse(tree).splitlines())
    return count


def _keeps_promises(cls: type[Strategy]) -> None:
    need(
        isinstance(cls, type) and issubclass(cls, Strategy),
        f"a class like `class Mine(il.Scorer)` is expected, got {cls!r}",
    )
    for result in check_strategy(cls, raises=False).broken:
        need(False, f"{result.promise} is broken: {result.message}")


def _listed(budgets: set[float]) -> str:
    return " and ".join(f"{budget:g}" for budget in sorted(budgets))
