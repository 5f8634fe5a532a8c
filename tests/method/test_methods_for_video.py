"""EVS, DyCoke and FrameFusion against the worked cases of the method notes, and against slow re-statements."""

from __future__ import annotations

import math

import pytest
import torch
from helpers.tokens import close, features
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import illava_lab as il
from illava_lab.method.frames import same_place_before, same_place_in

few = settings(max_examples=60, deadline=None)
NAMES = ("evs", "dycoke", "framefusion")


def make(name: str, **setting: object) -> il.Strategy:
    return il.get_strategy(name)(**setting)


def film(frames: list[Tensor], left: list[int] | None = None, layer: int = 0, **statistics: Tensor) -> il.Tokens:
    """Tokens of one video whose frames are (n, C); `left`: those that an earlier reduction left."""
    x = torch.cat(frames)[None]
    position = torch.arange(x.shape[1])[None] if left is None else torch.tensor([left])
    return il.Tokens(
        "llm", x[:, position[0]], layer=layer, position=position, frames=(len(frames), len(frames[0])), **statistics
    )


def moving(count: int, places: int, step: float, turn: float, channels: int = 4) -> list[Tensor]:
    """x_f = X(places; 0) + step f X(places; turn), or turn f where that turns with time."""
    return [features(places, 0.0, channels) + step * f * features(places, turn * f, channels) for f in range(count)]


def kept(strategy: il.Strategy, tokens: il.Tokens, keep: int) -> list[int]:
    out: list[int] = tokens.position[0, strategy.map(tokens, keep).anchor[0].sort().values].tolist()
    return out


# ---------------------------------------------------------------------------------------------- worked cases
def test_evs_keeps_what_changes() -> None:
    tokens = film(moving(4, 4, 0.5, 1.3))
    score = make("evs").score(tokens)[0]
    assert (score[:4] == 255).all()
    distances = [
        0.09374, 0.06179, 0.07923, 0.04546, 0.44720, 0.23546, 0.40654, 0.62655, 1.98335, 1.98694, 1.98176, 1.95970,
    ]  # fmt: skip
    close(score[4:], distances)
    assert kept(make("evs"), tokens, 8) == [0, 1, 2, 3, 12, 13, 14, 15]
    assert kept(make("evs"), tokens, 4) == [0, 1, 2, 3] and kept(make("evs"), tokens, 2) == [0, 1]
    assert kept(make("evs"), tokens, 12) == [0, 1, 2, 3, *range(8, 16)]


def test_dycoke_thins_three_frames_of_four() -> None:
    tokens = film(moving(8, 5, 0.3, 1.3))
    left = kept(make("dycoke"), tokens, 25)
    thinned = {1: [0, 4], 2: [0, 4], 3: [1, 4], 5: [1, 4], 7: [1, 3]}
    assert left == [5 * f + j for f in range(8) for j in thinned.get(f, range(5))]
    one_more = set(kept(make("dycoke"), tokens, 26)) - set(left)
    assert one_more and next(iter(one_more)) // 5 == 1, "what is left over goes to the first thinned frame"
    per_frame = [position // 5 for position in kept(make("dycoke"), tokens, 8)]
    assert per_frame == [0, 0, 0, 4, 4, 4, 6, 6], "whole frames are thinned alike where the budget is below them"


def test_framefusion_merges_over_time_then_prunes() -> None:
    frames = [features(3, 0.0) + 0.35 * f * features(3, 2.0) for f in range(4)]
    tokens, x = film(frames), torch.cat(frames)
    out = make("framefusion").map(tokens, 9)  # in the notes places are one larger: text comes before
    assert out.anchor[0].tolist() == [0, 1, 2, 3, 5, 6, 8, 9, 11]
    close(out.apply(tokens.hidden)[0, 1], [0.90893, -0.28525, -0.66634, 0.85194])
    assert out.sizes(tokens.size)[0].tolist() == [1, 4, 1, 1, 1, 1, 1, 1, 1]
    out = make("framefusion").map(tokens, 10)
    assert out.anchor[0].tolist() == [0, 1, 2, 3, 4, 5, 6, 8, 9, 11]
    close(out.apply(tokens.hidden)[0, 4], x[[4, 7, 10]].mean(0))
    received = torch.linspace(0.1, 0.2, 12)[None].flip(1)
    received[0, 7] = 1.0
    later = film(frames, layer=1, attention_received=received)
    assert kept(make("framefusion", theta=0.99), later, 3) == [0, 1, 7] and make("framefusion").map(later, 3).merges
    assert not make("framefusion", theta=0.99).map(later, 3).weight.any(), "nothing is alike enough"
    assert kept(make("framefusion", theta=0.8), later, 10) == out.anchor[0].tolist()


# ---------------------------------------------------------------------------------------------- slow re-statements
def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


@st.composite
def films(draw: st.DrawFn) -> tuple[il.Tokens, dict[tuple[int, int], Tensor], int]:
    """Random videos of which tokens may be missing: tokens, (frame, place) -> state, and how many to keep."""
    count, places = draw(st.integers(1, 9)), draw(st.integers(1, 5))
    every = count * places
    left = sorted(draw(st.sets(st.integers(0, every - 1), min_size=1))) if draw(st.booleans()) else [*range(every)]
    noise = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    frames = [torch.randn(places, 5, generator=noise, dtype=torch.float64) for _ in range(count)]
    frames = [frame + 1.0 for frame in frames]  # so that many are alike
    received = torch.rand(1, len(left), generator=noise)
    tokens = film(frames, left, layer=draw(st.integers(0, 1)), attention_received=received)
    state = {divmod(position, places): frames[position // places][position % places] for position in left}
    return tokens, state, draw(st.integers(1, len(left)))


def before_of(state: dict[tuple[int, int], Tensor], f: int, j: int) -> tuple[int, int] | None:
    return next(((g, j) for g in range(f - 1, -1, -1) if (g, j) in state), None)


@few
@given(films())
def test_evs_is_its_rule(case: tuple[il.Tokens, dict[tuple[int, int], Tensor], int]) -> None:
    tokens, state, keep = case
    order = [*state]

    def changed(at: tuple[int, int]) -> float:
        other = before_of(state, *at)
        return math.inf if other is None else 1 - cosine(state[at], state[other])

    best = sorted(order, key=lambda at: (-changed(at), at))[:keep]
    places = tokens.frames[1]
    assert kept(make("evs"), tokens, keep) == sorted(f * places + j for f, j in best)


@few
@given(films())
def test_dycoke_is_its_rule(case: tuple[il.Tokens, dict[tuple[int, int], Tensor], int]) -> None:
    tokens, state, keep = case
    count, places = tokens.frames
    whole = [f for f in range(count) if f % 4 == 0 or (f % 4 == 2 and f - 2 >= count - 4)]

    def by_rank(f: int, step: int) -> list[tuple[int, int]]:
        own = [at for at in state if at[0] == f]
        other = {at: state.get((f - step, at[1])) for at in own}
        return sorted(own, key=lambda at: (-2.0 if other[at] is None else cosine(state[at], other[at]), at))

    step = {0: 4, 1: 1, 2: 2, 3: 1}
    ranked = {f: by_rank(f, step[f % 4]) for f in range(count)}
    queue = [
        ranked[f][r]
        for group in (whole, [f for f in range(count) if f not in whole])
        for r in range(places)
        for f in group
        if r < len(ranked[f])
    ]
    assert kept(make("dycoke"), tokens, keep) == sorted(f * places + j for f, j in queue[:keep])


@few
@given(films())
def test_framefusion_is_its_rule(case: tuple[il.Tokens, dict[tuple[int, int], Tensor], int]) -> None:
    tokens, state, keep = case
    order, theta = [*state], 0.6
    other = {at: before_of(state, *at) for at in order}
    alike = {at: -2.0 if other[at] is None else cosine(state[at], state[other[at]]) for at in order}
    at_entry, received = tokens.layer == 0, dict(zip(order, tokens.attention_received[0].tolist(), strict=True))
    may = [at for at in order if alike[at] >= (-1.5 if at_entry else theta)]
    away = sorted(may, key=lambda at: (-alike[at], [-n for n in at]))[: len(order) - keep]
    rest = [at for at in order if at not in may]
    dropped = sorted(rest, key=lambda at: (0 if at_entry else received[at], [-n for n in at]))
    dropped = dropped[: len(order) - keep - len(away)]
    members: dict[tuple[int, int], list[Tensor]] = {at: [] for at in order if at not in [*away, *dropped]}
    for at in order:
        root = at
        while root in away:
            root = other[root]
        if root in members:
            members[root].append(state[at])
    out = make("framefusion").map(tokens, keep)
    assert out.anchor[0].tolist() == [order.index(at) for at in members]
    close(out.apply(tokens.hidden)[0], torch.stack([torch.stack(own).mean(0) for own in members.values()]))


# ---------------------------------------------------------------------------------------------- beside the rules
def test_what_lies_at_the_same_place() -> None:
    tokens = film([torch.randn(2, 3) for _ in range(4)], left=[0, 1, 3, 4, 7])
    assert same_place_before(tokens)[0].tolist() == [-1, -1, 1, 0, 2]
    frame = torch.tensor([[1, 1, -1, 9, 0]])
    assert same_place_in(tokens, frame)[0].tolist() == [-1, 2, -1, -1, 1]


@pytest.mark.parametrize("name", NAMES)
def test_a_picture_has_no_frames(name: str) -> None:
    tokens = il.Tokens("llm", torch.randn(1, 9, 4), grid=(3, 3), attention_received=torch.rand(1, 9))
    with pytest.raises(il.LabError, match="these are no tokens of a video"):
        make(name).map(tokens, 4)


def test_theta_is_a_cosine() -> None:
    for theta in (1.5, True, "0.6", float("nan")):
        with pytest.raises(il.LabError, match="theta must be a cosine, from -1 to 1"):
            make("framefusion", theta=theta)
