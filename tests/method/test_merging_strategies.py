"""The merging and pooling strategies against the worked cases of the method notes, and against plain re-statements."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import PATCHES, Prompt, make_inputs
from helpers import reference
from helpers.tokens import close, features
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import illava_lab as il
from illava_lab.method.keep import kept

Rows = tuple[list[list[float]], list[int]]  # a dense matrix, and the anchor of each row


def logits(count: int) -> Tensor:
    """(2, N, N): 2 sin(0.5 q + 0.8 k + 1.1 h + 0.23 q k), the generator of the worked cases."""
    h, q, k = (torch.arange(n).double() for n in (2, count, count))
    h, q = h[:, None, None], q[:, None]
    return 2 * torch.sin(0.5 * q + 0.8 * k + 1.1 * h + 0.23 * q * k)


def one_image(x: Tensor, **given: Tensor) -> il.Tokens:
    grid = given.pop("grid", None)
    return il.Tokens("encoder", x[None], grid=grid, **{name: value[None] for name, value in given.items()})


def cls_first(count: int) -> Tensor:
    return torch.arange(count) == 0


# ---------------------------------------------------------------------------------------------- worked cases
def test_case_a_prime_log_sum_exp_in_the_encoder():
    lse = logits(12).logsumexp(-1).mean(0)
    assert lse.argsort().tolist() == [7, 5, 11, 9, 3, 6, 8, 1, 10, 4, 2, 0]
    received = logits(12).softmax(-1).mean((0, 1))
    assert received.argsort().tolist() == [11, 2, 4, 5, 3, 0, 7, 9, 6, 8, 10, 1]
    x = features(12, 0.0)
    out = il.get_strategy("illava")(score="lse").map(one_image(x, lse=lse), keep=9)
    assert out.anchor[0].tolist() == [0, 1, 2, 3, 4, 6, 8, 9, 10]
    close(out.apply(x[None])[0, 7], (4 * x[7] + 3 * x[5] + 2 * x[11] + x[9]) / 10)


def test_case_b_log_sum_exp_in_the_llm_keeps_the_last_tokens():
    hidden_later = torch.ones(18, 18).triu(1).bool()
    lse = logits(18).masked_fill(hidden_later, -math.inf).logsumexp(-1).mean(0)[4:16]
    assert lse.argsort(descending=True).tolist() == list(range(11, -1, -1))
    strategy, x = il.get_strategy("illava")(score="lse"), features(18, 0.4)[4:16]
    first = strategy.map(il.Tokens("llm", x[None], lse=lse[None]), kept(0.7, 12, ""))
    assert first.anchor[0].tolist() == list(range(4, 12))
    left = il.Tokens("llm", first.apply(x[None]), lse=lse[None, 4:])
    second = strategy.map(left, kept(0.7, 8, ""))
    assert first.anchor.gather(1, second.anchor)[0].tolist() == list(range(6, 12))


def test_case_c_clustering():
    x, score = features(12, 0.0), logits(12).softmax(-1).mean((0, 1))
    strategy = il.get_strategy("illava-2026")(score="attention", recycling=0.25)
    out = strategy.map(one_image(x, attention_received=score), keep=9)
    assert out.anchor[0].tolist() == [0, 1, 3, 5, 6, 7, 8, 9, 10]
    merged = out.apply(x[None])[0]
    close(merged[2], [0.288754, -0.446604, 0.676882, -0.332364], 1e-6)
    close(merged[3], [-0.590207, 0.603447, -0.319578, 0.535554], 1e-6)
    matrix = out.matrix()[0]
    close(2 * matrix[2, [2, 11, 4]], [0.421843, 0.322051, 0.256106], 1e-6)
    close(2 * matrix[3, [4, 11, 2]], [0.451318, 0.375511, 0.173171], 1e-6)
    untouched = [0, 1, 4, 5, 6, 7, 8]
    assert torch.equal(merged[untouched], x[out.anchor[0, untouched]])


def test_case_c_group_expansion():
    """Nine tokens touch all three groups. Keeping 4 G tokens gives the groups that an expansion to G groups gives."""
    score = logits(12).softmax(-1).mean((0, 1))
    groups = [{0, 1, 6, 7}, {2, 3, 8, 9}, {4, 5, 10, 11}]  # 2x2 blocks of a 2 x 6 grid
    tokens = one_image(features(12, 0.0), attention_received=score, grid=(2, 6))
    strategy = il.get_strategy("illava-2026")(mode="drop", score="attention", groups=True)
    sizes = set()
    for chosen in range(1, 13):
        top = set(score.argsort(descending=True)[:chosen].tolist())
        expanded = set().union(*(group for group in groups if group & top))
        assert set(strategy.map(tokens, len(expanded)).anchor[0].tolist()) == expanded
        sizes.add((chosen, len(expanded)))
    assert (9, 12) in sizes


def test_case_c_prime_shift():
    x = torch.arange(6.0)[:, None]
    out = il.get_strategy("illava-2026")(mode="shift").map(one_image(x), keep=3)
    close(out.apply(x[None])[0, :, 0], [0, 1, 2.875])


def test_case_d_tome_with_sizes_reset():
    x, protected = features(13, 0.0), cls_first(13)
    strategy = il.get_strategy("tome")(sizes="reset", attention="plain")
    first = strategy.map(one_image(x, keys=features(13, 0.2), protected=protected), keep=9)
    sizes, merged = first.sizes(torch.ones(1, 13)), first.apply(x[None])
    assert sizes[0].tolist() == [1, 1, 1, 2, 1, 2, 2, 1, 2]
    second = strategy.map(il.Tokens("encoder", merged, keys=merged, size=sizes, protected=protected[None, :9]), keep=6)
    close(second.apply(merged)[0, 4], [-0.768704, 0.226596, 0.090275, 0.409276], 1e-6)
    assert not strategy.proportional_attention
    assert il.get_strategy("tome")().proportional_attention


def case_h() -> il.Tokens:
    j = torch.arange(13).double()
    score = 0.5 + 0.5 * torch.sin(2.1 * (j - 1) + 0.3)
    return one_image(features(13, 0.0), keys=features(13, 0.2), cls_attention=score, protected=cls_first(13))


@pytest.mark.parametrize("contextual", [2, 1 / 3])
def test_case_h_visionzip(contextual):
    tokens = case_h()
    out = il.get_strategy("visionzip")(contextual=contextual).map(tokens, keep=6)
    assert out.anchor[0].tolist() == [0, 2, 5, 8, 1, 7], "CLS and dominant, then targets"
    assert [torch.nonzero(row)[:, 0].tolist() for row in out.matrix()[0, 4:]] == [[1, 4, 9], [3, 6, 7, 10, 11, 12]]
    y = out.apply(tokens.hidden)[0]
    assert torch.equal(y[:4], tokens.hidden[0, [0, 2, 5, 8]])
    close(y[4], [1.047012, 0.368342, -1.496279, 0.734128], 1e-6)
    close(y[5], [-0.257534, -0.532263, 1.395336, -1.054309], 1e-6)
    close(out.matrix()[0].sum(1), [1, 1, 1, 1, 2, 2])


def case_i() -> il.Tokens:
    j = torch.arange(60)
    raw = 1 + 8 * ((j == 5) | (j == 17) | (j == 40)) + 0.2 * torch.sin(j.double())
    return one_image(features(60, 0.0), wide_keys=features(60, 0.2), wide_cls_attention=raw / (raw.sum() + 1))


def test_case_i_prumerge():
    tokens = case_i()
    PruMerge = il.get_strategy("prumerge")
    assert torch.nonzero(PruMerge.outliers(tokens)[0])[:, 0].tolist() == [5, 17, 40]
    out = PruMerge().map(tokens, keep=4)
    assert out.anchor[0, :3].tolist() == [40, 5, 17]
    y, matrix = out.apply(tokens.hidden)[0], out.matrix()[0]
    close(y[0], [-1.192366, -0.056170, 1.011586, 0.340347], 1e-6)
    close(y[3], [0.040495, 0.001220, -0.010532, -0.011309], 1e-6)
    close(matrix[3].sum(), 0.674837, 1e-6)
    assert ((matrix[:3] > 0).sum(1) == 33).all(), "itself and 32 neighbours"
    assert set(torch.nonzero(matrix[3])[:, 0].tolist()) == set(range(60)) - {5, 17, 40}
    best = max(set(range(60)) - {5, 17, 40}, key=lambda j: float(tokens.wide_cls_attention[0, j]))
    assert out.anchor[0, 3] == best


def test_case_i_prumerge_plus():
    tokens = case_i()
    out = il.get_strategy("prumerge+")().map(tokens, keep=14)
    assert out.anchor[0, :13].tolist() == [40, 5, 17, 0, 6, 12, 18, 24, 30, 36, 42, 48, 54]
    close(out.apply(tokens.hidden)[0, 3], [-0.044982, 1.198779, -0.536707, -1.020312], 1e-6)


def test_prumerge_plus_with_less_and_more_room_than_the_reference():
    tokens, strategy = case_i(), il.get_strategy("prumerge+")()
    assert strategy.map(tokens, keep=3).anchor[0, :2].tolist() == [40, 5], "outliers first"
    assert strategy.map(tokens, keep=9).anchor[0, :8].tolist() == [40, 5, 17, 0, 12, 24, 36, 48], "thinned evenly"
    more = strategy.map(tokens, keep=20).anchor[0, :19].tolist()
    assert more[:13] == strategy.map(tokens, keep=14).anchor[0, :13].tolist()
    score = tokens.wide_cls_attention[0].tolist()
    assert more[13:] == sorted(set(range(60)) - set(more[:13]), key=lambda j: -score[j])[:6]


def pooled(side: int, cells: int, bins: str) -> Tensor:
    """(cells, cells, side, side) weights of pooling a square to a square."""
    tokens = il.Tokens("encoder", torch.zeros(1, side * side, 1), grid=(side, side))
    return il.get_strategy("pool")(bins=bins).map(tokens, cells * cells).matrix()[0].view(cells, cells, side, side)


@pytest.mark.parametrize(
    ("side", "cells", "bins"),
    [
        (27, 14, [(0, 2), (1, 4), (3, 6), (5, 8)]),
        (24, 7, [(0, 4), (3, 7), (6, 11)]),
        (24, 12, [(0, 2), (2, 4), (4, 6)]),
    ],
)
def test_case_m_adaptive_bins(side, cells, bins):
    weights = pooled(side, cells, "adaptive")
    for u, rows in enumerate(bins):
        for v, columns in enumerate(bins):
            want = torch.zeros(side, side)
            want[slice(*rows), slice(*columns)] = 1 / ((rows[1] - rows[0]) * (columns[1] - columns[0]))
            close(weights[u, v], want)


@pytest.mark.parametrize(
    ("side", "cells", "at"), [(27, 14, [0.4643, 2.3929, 4.3214, 6.25]), (19, 10, [0.45, 2.35, 4.25])]
)
def test_case_m_bilinear_coordinates(side, cells, at):
    weights = pooled(side, cells, "bilinear")
    index = torch.arange(side).double()
    for axis in (2, 3):
        close((weights.sum(5 - axis) @ index).transpose(0, axis - 2)[: len(at), 0], at, 1e-4)
    assert ((weights > 0).sum((2, 3)) <= 4).all()
    x = torch.randn(1, 1, side, side, dtype=torch.float64)
    want = torch.nn.functional.interpolate(x, size=(cells, cells), mode="bilinear", align_corners=False)
    close((weights * x[0, 0]).sum((2, 3)), want[0, 0])


@pytest.mark.parametrize("bins", ["adaptive", "disjoint"])
def test_pool_by_a_whole_factor_averages_square_blocks(bins):
    x = torch.randn(1, 3, 12, 8)
    tokens = il.Tokens("encoder", x.flatten(2).mT.contiguous(), grid=(12, 8))
    out = il.get_strategy("pool")(bins=bins).map(tokens, 6 * 4)
    close(out.apply(tokens.hidden), torch.nn.functional.avg_pool2d(x, 2).flatten(2).mT)


# ---------------------------------------------------------------------------------------------- random shapes
@st.composite
def token_batches(draw, grid: bool = False) -> tuple[il.Tokens, int, int]:
    """(tokens with every statistic, keep, 1 if CLS leads): scores with and without ties, sizes, perhaps a grid."""
    cls, batch = int(draw(st.booleans())), draw(st.integers(1, 3))
    shape = (draw(st.integers(1, 6)), draw(st.integers(1, 6))) if grid else None
    full = shape[0] * shape[1] if grid else draw(st.integers(1, 24))
    count = draw(st.integers(1, full)) if grid and draw(st.booleans()) else full
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**16)))
    tie, n = draw(st.booleans()), count + cls
    rand = lambda *size: torch.randn(*size, generator=random)

    def scores() -> Tensor:
        value = torch.rand(batch, n, generator=random)
        return ((value * 6).floor() + 1) / 8 if tie else value

    place = torch.stack([torch.randperm(full, generator=random)[:count] for _ in range(batch)])
    position = torch.cat([torch.full((batch, cls), -1), place], dim=1) if grid else None
    wide = scores()
    tokens = il.Tokens(
        "encoder",
        rand(batch, n, draw(st.integers(1, 6))),
        size=torch.randint(1, 9, (batch, n), generator=random).float() if not grid or count < full else None,
        position=position,
        protected=cls_first(n).expand(batch, -1) if cls else None,
        grid=shape,
        attention_received=scores(),
        text_attention=scores(),
        cls_attention=scores(),
        lse=scores() * 10 - 5,
        keys=rand(batch, n, 5),
        wide_keys=rand(batch, n, 7),
        wide_cls_attention=wide / (wide.sum(1, keepdim=True) + 0.1),
    )
    return tokens, draw(st.integers(1, count)) + cls, cls


def check(strategy: il.Strategy, case: tuple[il.Tokens, int, int], restate) -> None:
    """Every row of the batch equals `restate(tokens, row, keep, cls)`, in weights, places and result."""
    tokens, keep, cls = case
    out = strategy.map(tokens, keep)
    assert out.anchor.shape == (tokens.batch, keep) and out.tokens == tokens.count
    assert cls == 0 or bool((out.anchor == 0).any(1).all()), "CLS survives"
    y, matrix = out.apply(tokens.hidden), out.matrix()
    assert torch.isfinite(y).all()
    for row in range(tokens.batch):
        assert len(set(out.anchor[row].tolist())) == keep
        if keep == tokens.count:
            want, anchor = torch.eye(keep).tolist(), list(range(keep))
        else:
            want, anchor = restate(tokens, row, keep, cls)
        assert out.anchor[row].tolist() == anchor
        close(matrix[row], torch.tensor(want, dtype=torch.float64))
        close(y[row], (torch.tensor(want, dtype=torch.float64) @ tokens.hidden[row].double()).float())


def by_score(score: list[float], cls: int) -> list[int]:
    return list(range(cls)) + sorted(range(cls, len(score)), key=lambda j: (-score[j], j))


def unit_rows(kept: list[int], count: int) -> list[list[float]]:
    return [[1.0 if j == i else 0.0 for j in range(count)] for i in kept]


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a.double() @ b.double() / a.double().norm() / b.double().norm())


RAMPS = ("reference", "reversed", "uniform", "size")


@given(token_batches(), st.sampled_from(RAMPS), st.sampled_from(["attention", "lse"]),
       st.sampled_from(["encoder", "llm"]))  # fmt: skip
@settings(max_examples=200, deadline=None)
def test_illava_equals_its_restatement(case, ramp, score, stage):
    case[0].stage = stage

    def restate(tokens: il.Tokens, row: int, keep: int, cls: int) -> Rows:
        statistic = {"lse": tokens.lse, "encoder": tokens.attention_received, "llm": tokens.text_attention}
        order = by_score(statistic["lse" if score == "lse" else stage][row].tolist(), cls)
        kept = sorted(order[:keep])
        matrix = unit_rows(kept, tokens.count)
        merged = order[keep - 1 :][::-1]  # the lowest score first, the target last
        n = len(merged)
        weights = {
            "reference": [n - a for a in range(n)],
            "reversed": [a + 1 for a in range(n)],
            "uniform": [1] * n,
            "size": [float(tokens.size[row, j]) for j in merged],
        }[ramp]
        target = matrix[kept.index(merged[-1])]
        for j, w in zip(merged, weights, strict=True):
            target[j] = w / sum(weights)
        return matrix, kept

    check(il.get_strategy("illava")(ramp=ramp, score=score), case, restate)


@given(token_batches(), st.sampled_from(["drop", "shift", "cluster"]), st.sampled_from([0, 0.05, 0.3, 1.0]),
       st.sampled_from(["attention", "lse"]))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_illava_2026_equals_its_restatement(case, mode, recycling, score):
    def restate(tokens: il.Tokens, row: int, keep: int, cls: int) -> Rows:
        values = (tokens.lse if score == "lse" else tokens.attention_received)[row].tolist()
        order = list(range(tokens.count)) if mode == "shift" else by_score(values, cls)
        kept, dropped, x = sorted(order[:keep]), sorted(order[keep:]), tokens.hidden[row].double()
        matrix = unit_rows(kept, tokens.count)
        if mode == "shift":
            weights = {tokens.count - 1: 1.0}
            for last in range(tokens.count - 1, keep - 1, -1):  # average the last two, and delete the last
                weights = {j: w / 2 for j, w in weights.items()} | {last - 1: 0.5}
            matrix[-1] = [weights.get(j, 0.0) for j in range(tokens.count)]
        if mode == "cluster":
            p = keep - cls
            for c in order[cls:keep][p - min(p, max(1, round(p * recycling))) :]:
                best = sorted(dropped, key=lambda j: (-float(x[c] @ x[j]), j))[:5]
                power = [math.exp(float(x[c] @ x[j]) / math.sqrt(x.shape[1])) for j in best]
                line = matrix[kept.index(c)]
                line[c] = 0.5
                for j, e in zip(best, power, strict=True):
                    line[j] = 0.5 * e / sum(power)
        return matrix, kept

    check(il.get_strategy("illava-2026")(mode=mode, recycling=recycling, score=score), case, restate)


@given(token_batches())
@settings(max_examples=200, deadline=None)
def test_illava_2026_nearest_equals_its_restatement(case):
    def restate(tokens: il.Tokens, row: int, keep: int, cls: int) -> Rows:
        kept = sorted(by_score(tokens.attention_received[row].tolist(), cls)[:keep])
        x, size = tokens.hidden[row], tokens.size[row].tolist()
        members = {i: [i] for i in kept}
        for j in range(tokens.count):
            if j not in members:
                # One channel has only cosines of 1 and -1, so ties are common: they go to the smaller index.
                best = max(round(cosine(x[j], x[i]), 9) for i in kept[cls:])
                members[next(i for i in kept[cls:] if round(cosine(x[j], x[i]), 9) == best)].append(j)
        matrix = [[0.0] * tokens.count for _ in kept]
        for line, group in zip(matrix, members.values(), strict=True):
            for j in group:
                line[j] = size[j] / sum(size[m] for m in group)
        return matrix, kept

    check(il.get_strategy("illava-2026")(mode="nearest"), case, restate)


@given(token_batches(grid=True), st.integers(1, 36))
@settings(max_examples=200, deadline=None)
def test_illava_2026_groups_keep_what_an_expansion_keeps(case, chosen):
    """Expand the `chosen` best tokens to whole groups; asking for as many keeps the same, if groups do not tie."""
    tokens, _, cls = case
    strategy = il.get_strategy("illava-2026")(mode="drop", groups=True)
    for row in range(tokens.batch):
        score, place = tokens.attention_received[row].tolist(), tokens.position[row].tolist()
        group = lambda j: (place[j] // tokens.grid[1] // 2, place[j] % tokens.grid[1] // 2)
        touched = {group(j) for j in by_score(score, cls)[cls : cls + chosen]}
        best = [max(score[j] for j in range(cls, tokens.count) if group(j) == g) for g in touched]
        others = [score[j] for j in range(cls, tokens.count) if group(j) not in touched]
        if others and max(others) >= min(best):
            continue
        expanded = list(range(cls)) + [j for j in range(cls, tokens.count) if group(j) in touched]
        assert strategy.map(tokens, len(expanded)).anchor[row].tolist() == expanded


@given(token_batches(), st.sampled_from(["sum", "mean"]), st.sampled_from(["cls", "received"]),
       st.sampled_from([5 / 32, 0.5, 1.0, 0, 3]))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_visionzip_equals_its_restatement(case, merge, score, contextual):
    def restate(tokens: il.Tokens, row: int, keep: int, cls: int) -> Rows:
        values = (tokens.cls_attention if score == "cls" else tokens.attention_received)[row].tolist()
        wanted = contextual if isinstance(contextual, int) else round(keep * contextual)
        wanted = min(wanted, keep - cls)
        dominant = sorted(by_score(values, cls)[: keep - wanted])
        matrix = unit_rows(dominant, tokens.count)
        if wanted == 0:
            return matrix, dominant
        rest = [j for j in range(tokens.count) if j not in dominant]
        step = max(1, len(rest) // wanted)
        targets = rest[::step][:wanted]
        joined: dict[int, list[int]] = {t: [] for t in targets}
        for j in rest:
            if j not in targets:
                joined[max(targets, key=lambda t: cosine(tokens.keys[row, j], tokens.keys[row, t]))].append(j)
        for t, group in joined.items():
            line = [0.0] * tokens.count
            line[t] = 1.0 if merge == "sum" else 1 / (1 + len(group))
            for j in group:
                line[j] = 1 / max(1, len(group)) if merge == "sum" else 1 / (1 + len(group))
            matrix.append(line)
        return matrix, dominant + targets

    check(il.get_strategy("visionzip")(merge=merge, score=score, contextual=contextual), case, restate)


def quartile(values: list[float], q: float) -> float:
    values = sorted(values)
    at = q * (len(values) - 1)
    low = math.floor(at)
    return values[low] + (at - low) * (values[min(low + 1, len(values) - 1)] - values[low])


def plus_order(a: list[float], cls: int, count: int) -> list[int]:
    """The patches that PruMerge+ selects, `count` of them."""
    patches = list(range(cls, len(a)))
    values = [a[j] for j in patches]
    low, high = quartile(values, 0.25), quartile(values, 0.75)
    outliers = sorted((j for j in patches if a[j] > high + 1.5 * (high - low)), key=lambda j: (-a[j], j))
    q = max(1, len(patches) // max(1, len(outliers)) // 3)
    spread = [j for j in patches[:-1:q] if j not in outliers]
    room = max(0, count - len(outliers))
    if room < len(spread):  # the first of every len(spread) / room
        spread = [spread[math.ceil(i * len(spread) / room)] for i in range(room)]
    taken = outliers + spread
    return (taken + sorted((j for j in patches if j not in taken), key=lambda j: (-a[j], j)))[:count]


@given(token_batches(), st.sampled_from(["prumerge", "prumerge+"]), st.sampled_from(["sum", "mean"]),
       st.sampled_from([32, 4, 0]))  # fmt: skip
@settings(max_examples=300, deadline=None)
def test_prumerge_equals_its_restatement(case, name, merge, neighbours):
    def restate(tokens: il.Tokens, row: int, keep: int, cls: int) -> Rows:
        a, keys = tokens.wide_cls_attention[row].tolist(), tokens.wide_keys[row]
        gathered = keep - cls >= 2
        count = keep - cls - gathered
        chosen = by_score(a, cls)[cls:][:count] if name == "prumerge" else plus_order(a, cls, count)
        matrix = unit_rows(list(range(cls)) + chosen, tokens.count)
        for line, i in zip(matrix[cls:], chosen, strict=True):
            others = [j for j in range(cls, tokens.count) if j != i]
            for j in sorted(others, key=lambda j: -cosine(keys[i], keys[j]))[:neighbours]:
                line[j] = a[j]
        anchor = list(range(cls)) + chosen
        if gathered:
            left = [j for j in range(cls, tokens.count) if j not in chosen]
            matrix.append([a[j] if j in left else 0.0 for j in range(tokens.count)])
            anchor.append(min(left, key=lambda j: (-a[j], j)))
        if merge == "mean":
            matrix = [[w / sum(line) for w in line] for line in matrix]
        return matrix, anchor

    check(il.get_strategy(name)(merge=merge, neighbours=neighbours), case, restate)


@given(token_batches(grid=True), st.sampled_from(["adaptive", "bilinear", "disjoint"]))
@settings(max_examples=300, deadline=None)
def test_pool_equals_its_restatement(case, bins):
    def restate(tokens: il.Tokens, row: int, keep: int, cls: int) -> Rows:
        (height, width), cells = tokens.grid, keep - cls
        place = tokens.position[row].tolist()
        raster = sorted(range(cls, tokens.count), key=lambda j: place[j])
        rows = min(max(round(math.sqrt(cells * height / width)), math.ceil(cells / width)), height, cells)
        matrix, anchor = unit_rows(list(range(cls)), tokens.count), list(range(cls))
        if bins == "disjoint" or len(raster) < height * width:
            bounds = [c * len(raster) // cells for c in range(cells + 1)]
            for u in range(rows):
                cut = range(u * cells // rows, (u + 1) * cells // rows)
                band = sorted(raster[bounds[cut.start] : bounds[cut.stop]], key=lambda j: (place[j] % width, place[j]))
                for c in cut:
                    members = band[bounds[c] - bounds[cut.start] : bounds[c + 1] - bounds[cut.start]]
                    size = {j: float(tokens.size[row, j]) for j in members}
                    matrix.append([size.get(j, 0.0) / sum(size.values()) for j in range(tokens.count)])
                    anchor.append(members[(len(members) - 1) // 2])
            return matrix, anchor

        def axis(i: int, length: int, count: int) -> dict[int, float]:
            if bins == "adaptive":
                inside = range(math.floor(i * length / count), math.ceil((i + 1) * length / count))
                return {p: 1 / len(inside) for p in inside}
            at = (i + 0.5) * length / count - 0.5
            low = math.floor(at)
            return {low: 1 - (at - low)} | ({low + 1: at - low} if at > low else {})

        for u in range(rows):
            columns = (u + 1) * cells // rows - u * cells // rows
            for v in range(columns):
                line = [0.0] * tokens.count
                for y, wy in axis(u, height, rows).items():
                    for x, wx in axis(v, width, columns).items():
                        line[raster[y * width + x]] = wy * wx
                matrix.append(line)
                centre = math.floor((u + 0.5) * height / rows), math.floor((v + 0.5) * width / columns)
                anchor.append(raster[centre[0] * width + centre[1]])
        return matrix, anchor

    check(il.get_strategy("pool")(bins=bins), case, restate)


@given(token_batches(), st.integers(0, 12))
@settings(max_examples=200, deadline=None)
def test_tome_with_sizes_reset_equals_its_restatement(case, merges):
    tokens, _, cls = case
    keep = tokens.count - min(merges, (tokens.count - cls) // 2)

    def restate(tokens: il.Tokens, row: int, keep: int, cls: int) -> Rows:
        matrix = reference.tome_matrix(tokens.keys[row], [1.0] * tokens.count, keep, cls).tolist()
        pairs = [next((j for j in range(tokens.count) if line[j] and j % 2), line.index(max(line))) for line in matrix]
        return matrix, pairs

    check(il.get_strategy("tome")(sizes="reset", attention="plain"), (tokens, keep, cls), restate)


# ---------------------------------------------------------------------------------------------- promises of every one
MINE = [
    ("illava", dict(score="lse")),
    *(("illava-2026", dict(mode=mode)) for mode in ("drop", "shift", "cluster", "nearest")),
    ("illava-2026", dict(groups=True)),
    ("visionzip", {}),
    ("visionzip", dict(merge="mean", contextual=2)),
    ("prumerge", {}),
    ("prumerge+", dict(merge="mean")),
    *(("pool", dict(bins=bins)) for bins in ("adaptive", "bilinear", "disjoint")),
]
AVERAGING = ("illava", "illava-2026", "tome", "pool")  # the rows of these sum to 1


def same_tokens(count: int, dtype: torch.dtype, cls: bool, batch: int = 2) -> il.Tokens:
    """Tokens that are all alike, with all statistics alike and tiny: every choice is a tie."""
    x = torch.full((batch, count, 4), 0.5, dtype=dtype)
    score = torch.full((batch, count), 1e-3)
    protected = cls_first(count).expand(batch, -1) if cls else None
    return il.Tokens("encoder", x, grid=(1, 9), protected=protected, keys=x, wide_keys=x, lse=score,
                     attention_received=score, cls_attention=score, wide_cls_attention=score)  # fmt: skip


@pytest.mark.parametrize(("name", "configured"), MINE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_ties_single_tokens_and_half_precision(name, configured, dtype):
    strategy = il.get_strategy(name)(**configured)
    for count, cls in [(1, False), (2, False), (2, True), (9, False), (9, True)]:
        tokens = same_tokens(count, dtype, cls)
        for keep in range(1, count + 1):
            out = strategy.map(tokens, keep)
            y = out.apply(tokens.hidden)
            assert y.shape == (2, keep, 4) and y.dtype == dtype and torch.isfinite(y).all()
            assert torch.equal(out.anchor[0], out.anchor[1])
            assert 0 in out.anchor[0] or not cls
            assert torch.isfinite(out.sizes(tokens.size)).all()
            if name in AVERAGING:
                close(y, tokens.hidden[:, :keep], 1e-2)
        assert torch.equal(strategy.map(tokens, count).anchor[0], torch.arange(count))


@pytest.mark.parametrize(("name", "configured"), [*MINE, ("tome", dict(sizes="reset"))])
@pytest.mark.parametrize("cls", [False, True])
def test_no_value_is_read_on_the_host(name, configured, cls):
    """Tensors of the meta device have no values: whatever waits for one on the host fails on them."""
    given = {key: getattr(same_tokens(9, torch.float32, cls), key).to("meta") for key in (
        "hidden", "keys", "wide_keys", "lse", "attention_received", "cls_attention", "wide_cls_attention")}  # fmt: skip
    protected = cls_first(9).expand(2, -1).to("meta") if cls else None
    tokens = il.Tokens("encoder", given.pop("hidden"), grid=(3, 3), protected=protected, protected_count=1, **given)
    assert il.get_strategy(name)(**configured).map(tokens, 6).apply(tokens.hidden).shape == (2, 6, 4)


@pytest.mark.parametrize("name", ["visionzip", "prumerge"])
def test_no_score_at_all_leaves_no_nan(name):
    tokens = same_tokens(9, torch.float32, cls=True)
    for statistic in ("cls_attention", "wide_cls_attention", "keys", "wide_keys"):
        getattr(tokens, statistic).zero_()
    out = il.get_strategy(name)(merge="mean").map(tokens, 5)
    assert torch.isfinite(out.matrix()).all()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("illava", {"score": "received"}), ("illava-2026", {"mode": "merge"}), ("illava-2026", {"score": "cls"}),
        ("illava-2026", {"recycling": 1.5}), ("illava-2026", {"groups": "yes"}), ("visionzip", {"contextual": 1.5}),
        ("visionzip", {"contextual": -1}), ("visionzip", {"contextual": True}), ("visionzip", {"merge": "add"}),
        ("visionzip", {"score": "text"}), ("prumerge", {"merge": "max"}), ("prumerge+", {"neighbours": -1}),
        ("pool", {"bins": "max"}), ("tome", {"sizes": "kept"}), ("tome", {"attention": "none"}),
    ],
)  # fmt: skip
def test_settings_are_validated(name, wrong):
    with pytest.raises(il.LabError, match=f"{next(iter(wrong))} must be"):
        il.get_strategy(name)(**wrong)


@pytest.mark.parametrize(("name", "configured"), MINE)
def test_the_repr_is_the_configuration(name, configured):
    strategy = il.get_strategy(name)(**configured)
    assert eval(repr(strategy), {type(strategy).__name__: type(strategy)}) == strategy


def test_groups_need_a_grid():
    tokens = one_image(features(8, 0.0), attention_received=torch.rand(8))
    with pytest.raises(il.LabError, match="groups=True needs the grid"):
        il.get_strategy("illava-2026")(groups=True).map(tokens, 4)


def test_default_layers():
    layers = il.get_strategy("illava-2026")().layers
    assert (layers("encoder", 26), layers("llm", 36)) == ([5, 6, 7, 8], [19, 21, 23, 25])
    assert all(1 <= layer < depth for depth in (2, 3, 6) for layer in layers("llm", depth))
    for name in ("visionzip", "prumerge", "prumerge+", "pool"):
        assert il.get_strategy(name)().layers("encoder", 23) == [22], "the last layer that the LLM sees"


# ---------------------------------------------------------------------------------------------- in a model
@pytest.mark.parametrize(("name", "configured"), [*MINE, ("tome", dict(sizes="reset", attention="plain"))])
def test_in_a_model(model, name, configured):
    strategy = il.get_strategy(name)(**configured)
    schedule = il.Schedule.for_budget(strategy, model, keep=0.4)
    inputs = make_inputs([Prompt(text_after=3, seed=1), Prompt(text_after=9, seed=2)])
    bare = model(**inputs).logits.detach()
    needs_cls = name in ("visionzip", "prumerge", "prumerge+")
    if needs_cls and model.config.vision_config.model_type == "siglip_vision_model":
        with pytest.raises(il.LabError, match="needs a CLS token"), il.attach(model, strategy, schedule):
            model(**inputs)
        assert torch.equal(model(**inputs).logits.detach(), bare), "nothing is left of the attempt"
        return
    with il.attach(model, strategy, schedule) as trace, torch.no_grad():
        out = model(**inputs).logits
        alone = model(**make_inputs([Prompt(text_after=9, seed=2)])).logits
    last = inputs["attention_mask"][1].bool()
    torch.testing.assert_close(out[1, last], alone[0], atol=1e-4, rtol=1e-4)
    assert torch.isfinite(alone).all() and not torch.allclose(alone[0, -1], bare[1, -1], atol=1e-4)
    sources = trace.sources(0)
    assert trace.steps[-1].after == len(sources.anchor) == round(PATCHES * 0.4)
    assert len(set(sources.anchor.tolist())) == len(sources.anchor)
    if name in AVERAGING:
        close(sources.weights.sum(1), torch.ones(len(sources.anchor)))


def test_visionzip_scores_by_attention_received_where_there_is_no_cls(model):
    strategy = il.get_strategy("visionzip")(score="received")
    with il.attach(model, strategy, il.Schedule.for_budget(strategy, model, keep=0.4)) as trace, torch.no_grad():
        assert torch.isfinite(model(**make_inputs([Prompt()])).logits).all()
    assert trace.steps[-1].after == round(PATCHES * 0.4)


def test_tome_without_proportional_attention_leaves_the_masks_alone(model):
    """The first merge is the same; what follows it differs by the bias on later attention."""
    inputs, schedule = make_inputs([Prompt()]), il.Schedule({0: 24})
    out = {}
    for attention in ("proportional", "plain"):
        with il.attach(model, il.get_strategy("tome")(attention=attention), schedule) as trace, torch.no_grad():
            out[attention] = model(**inputs).logits[0, -1], trace.steps[0].map.anchor
    assert torch.equal(out["plain"][1], out["proportional"][1])
    assert not torch.allclose(out["plain"][0], out["proportional"][0], atol=1e-5)
