"""The same tokens give the same bits: twice, on any device, whatever the process has set as its defaults."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from helpers.every import cases, in_every_strategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import illava_lab as il
from illava_lab.method import adding
from illava_lab.method.ask import ask
from illava_lab.testing.tensors import tensors

# What `torch.use_deterministic_algorithms` documents as not deterministic on CUDA, going forward.
NEVER = {
    "scatter_add", "index_add", "index_copy", "index_reduce", "put", "histc", "bincount", "kthvalue", "median",
    "nanmedian", "resize",
}  # fmt: skip


class Refuse(TorchDispatchMode):
    """Fails where an operation may give other bits on CUDA the next time."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        name = operation.overloadpacket.__name__.removesuffix("_")
        refused = name in NEVER
        refused |= name == "cumsum" and args[0].is_floating_point()
        refused |= name == "scatter" and isinstance(args[3], Tensor)
        refused |= name == "scatter_reduce" and args[4] in ("sum", "mean", "prod")
        if name == "index_put" and not (args[3] if len(args) > 3 else kwargs.get("accumulate", False)):
            # Where no place is written twice, there is no order in which to write.
            places = torch.stack([place.flatten() for place in torch.broadcast_tensors(*args[1])], dim=1)
            refused |= len(places.unique(dim=0)) < len(places)
        assert not refused, f"{operation} gives other bits on CUDA"
        return operation(*args, **kwargs)


@contextmanager
def as_on_an_accelerator() -> Iterator[None]:
    """Maps add as they do on a device that is no CPU."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(adding, "ADD_IN_ORDER", set())
        yield


def bits(strategy: il.Strategy, tokens: il.Tokens, keep: int) -> list[Tensor]:
    """All that comes of a reduction."""
    out = ask(strategy, tokens, keep)
    size = torch.full_like(tokens.size, 3.0)
    score = [] if out.score is None else [out.score]
    return [out.anchor, out.apply(tokens.hidden), out.sizes(tokens.size), out.sizes(size), out.matrix(), *score]


def assert_same(got: list[Tensor], want: list[Tensor]) -> None:
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@in_every_strategy
def test_an_accelerator_adds_in_order_and_gets_what_a_cpu_gets(strategy: il.Strategy) -> None:
    for case in cases(strategy):
        want = bits(strategy, case.tokens(), case.keep)
        tokens = case.tokens()  # statistics are of the hooks, and given here
        with as_on_an_accelerator(), Refuse():
            got = bits(strategy, tokens, case.keep)
        assert torch.equal(got[0], want[0]), case
        for one, other in zip(got[1:], want[1:], strict=True):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6, equal_nan=True)


def test_what_is_refused_is_refused() -> None:
    x, at = torch.zeros(1, 3), torch.tensor([[0, 0]])
    row = torch.zeros(1, 1, dtype=torch.long)
    for call in (
        lambda: x.scatter_add(1, at, x[:, :2]),
        lambda: x.index_add(1, at[0], x[:, :2]),
        lambda: x.cumsum(1),
        lambda: x.scatter(1, at, x[:, :2]),
        lambda: x.index_put((row, at), x[:, :2]),
        lambda: x.scatter_reduce(1, at, x[:, :2], "mean"),
    ):
        with pytest.raises(AssertionError, match="other bits on CUDA"), Refuse():
            call()
    with Refuse():
        x.index_put((row, at), x[:, :2], accumulate=True)
        x.index_put((row, torch.tensor([[1, 0]])), x[:, :2])


@in_every_strategy
def test_deterministic_algorithms_give_the_usual_bits(strategy: il.Strategy) -> None:
    for case in cases(strategy):
        want = bits(strategy, case.tokens(), case.keep)
        torch.use_deterministic_algorithms(True)  # also fills with NaN whatever was not written
        try:
            assert_same(bits(strategy, case.tokens(), case.keep), want)
            with as_on_an_accelerator():
                bits(strategy, case.tokens(), case.keep)
        finally:
            torch.use_deterministic_algorithms(False)


@contextmanager
def other_defaults() -> Iterator[None]:
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    torch.set_default_dtype(torch.bfloat16)
    torch.set_default_device("meta")
    try:
        yield
    finally:
        torch.set_default_dtype(dtype)
        torch.set_default_device(device)


def bare(tokens: il.Tokens) -> il.Tokens:
    """The same without what has a default: sizes are made where they are read, and places where all are patches."""
    default = ("hidden", "size") if tokens.has_protected else ("hidden", "size", "position")
    given = {name: x for name, x in tensors(tokens).items() if name not in default}
    return il.Tokens(tokens.stage, tokens.hidden, layer=tokens.layer, grid=tokens.grid, frames=tokens.frames, **given)


@in_every_strategy
@pytest.mark.parametrize("made_inside", [False, True])
def test_defaults_of_the_process_change_nothing(strategy: il.Strategy, made_inside: bool) -> None:
    for case in cases(strategy):
        if case.reduced and made_inside:
            continue  # where patches are missing, places have no default
        tokens = [bare(case.tokens()) if made_inside else case.tokens() for _ in range(2)]
        want = bits(strategy, tokens[0], case.keep)
        with other_defaults():
            got = bits(strategy, tokens[1], case.keep)
        assert_same(got, want)


@in_every_strategy
def test_autocast_changes_nothing(strategy: il.Strategy) -> None:
    for case in cases(strategy):
        want = bits(strategy, case.tokens(), case.keep)
        with torch.autocast("cpu", torch.bfloat16):
            got = bits(strategy, case.tokens(), case.keep)
        assert_same(got, want)


def test_promises_are_kept_whatever_the_defaults() -> None:
    with other_defaults():
        assert il.check_strategy("illava-2026").passed


def test_what_is_kept_for_a_device_serves_every_mode() -> None:
    """Numbers of the host are cached: made in inference mode, they are used in training."""
    x, strategy = torch.randn(1, 36, 4, requires_grad=True), il.get_strategy("pool")()
    with torch.inference_mode():
        strategy.map(il.Tokens("encoder", x, grid=(6, 6)), 10)
    strategy.map(il.Tokens("encoder", x, grid=(6, 6)), 10).apply(x).sum().backward()
    assert x.grad is not None and x.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["pool", "stride", "random"])
def test_a_tensor_without_values_leaves_nothing_behind(name: str) -> None:
    from torch._subclasses.fake_tensor import FakeTensorMode

    strategy, real = il.get_strategy(name)(), il.Tokens("encoder", torch.randn(1, 35, 4), grid=(5, 7))
    with FakeTensorMode() as mode:
        fake = il.Tokens("encoder", mode.from_tensor(real.hidden), grid=(5, 7))
        assert strategy.map(fake, 11).apply(fake.hidden).shape == (1, 11, 4)
    first = strategy.map(real, 11).apply(real.hidden)
    assert first.isfinite().all()
    with FakeTensorMode() as mode:
        fake = il.Tokens("encoder", mode.from_tensor(real.hidden), grid=(5, 7))
        assert strategy.map(fake, 11).apply(fake.hidden).shape == (1, 11, 4)
    assert torch.equal(strategy.map(real, 11).apply(real.hidden), first)
