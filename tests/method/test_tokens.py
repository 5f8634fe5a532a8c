"""What a strategy sees, and what Tab completes of it."""

from __future__ import annotations

import pytest
import torch
from IPython.core.completer import IPCompleter, provisionalcompleter
from IPython.core.interactiveshell import InteractiveShell
from torch import Tensor

import illava_lab as il


class Counting:
    """A site that notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def statistic(self, name: str) -> Tensor:
        self.asked.append(name)
        return torch.zeros(1, 3)


@pytest.mark.parametrize("jedi", [True, False])
def test_tab_completes_statistics_and_computes_none(jedi: bool) -> None:
    site = Counting()
    tokens = il.Tokens("encoder", torch.zeros(1, 3, 2), site=site)
    completer = IPCompleter(shell=InteractiveShell(), namespace={"tokens": tokens})
    completer.use_jedi = jedi
    typed = "tokens.cls_"
    with provisionalcompleter():
        offered = {completion.text.rpartition(".")[2] for completion in completer.completions(typed, len(typed))}
    assert offered == {"cls_attention", "cls_value_attention"}
    assert {"hidden", "count", *il.STATISTICS} <= set(dir(tokens))
    assert site.asked == []
    assert torch.equal(tokens.lse, tokens.lse) and site.asked == ["lse"]


def test_an_error_inside_of_a_statistic_is_not_hidden() -> None:
    class Failing:
        def statistic(self, name: str) -> Tensor:
            raise AttributeError("the site lacks a mask")

    tokens = il.Tokens("encoder", torch.zeros(1, 3, 2), site=Failing())
    with pytest.raises(AttributeError, match="the site lacks a mask"):
        tokens.lse.mean()
    with pytest.raises(AttributeError, match="Tokens has no 'les'; statistics are attention_received, "):
        tokens.les.mean()


def test_what_is_given_as_a_function_is_made_when_it_is_read_and_once() -> None:
    called: list[str] = []

    def make(name: str, value: Tensor):
        return lambda: called.append(name) or value

    size, position = torch.full((2, 3), 2.0), torch.tensor([[5, 1, 2], [0, 3, 4]])
    protected = torch.tensor([[True, False, False]] * 2)
    tokens = il.Tokens(
        "encoder", torch.zeros(2, 3, 4), size=make("size", size), position=make("position", position),
        protected=make("protected", protected), protected_count=1, attention_received=torch.rand(2, 3),
    )  # fmt: skip
    assert (tokens.has_protected, tokens.protected_count, tokens.count, tokens.room(3)) == (True, 1, 3, 2)
    assert called == []
    for _ in range(2):
        assert tokens.size is size and tokens.position is position and tokens.protected is protected
    assert called == ["size", "position", "protected"]


def test_a_strategy_pays_only_for_what_it_reads() -> None:
    def never() -> Tensor:
        raise AssertionError("nobody should read this")

    x, score = torch.randn(2, 9, 4), torch.rand(2, 9)
    for name, given in (("illava", "attention_received"), ("tome", "keys"), ("illava-2026", "attention_received")):
        reads = {"size": None} if name == "tome" else {"size": never}
        tokens = il.Tokens("encoder", x, position=never, **reads, **{given: x if given == "keys" else score})
        assert il.get_strategy(name)().map(tokens, 6).apply(x).shape == (2, 6, 4)


@pytest.mark.parametrize("name", ["size", "position", "protected"])
def test_shapes_are_checked_when_they_are_known(name: str) -> None:
    wrong, x = torch.zeros(2, 4), torch.zeros(2, 3, 4)
    with pytest.raises(il.LabError, match=rf"{name} must have shape \(2, 3\) like hidden, got \(2, 4\)"):
        il.Tokens("encoder", x, **{name: wrong})
    tokens = il.Tokens("encoder", x, **{name: lambda: wrong})
    with pytest.raises(il.LabError, match=rf"{name} must have shape \(2, 3\) like hidden, got \(2, 4\)"):
        getattr(tokens, name)


def test_an_error_inside_of_a_given_function_is_not_hidden() -> None:
    def failing() -> Tensor:
        raise AttributeError("the call has no cache")

    with pytest.raises(AttributeError, match="the call has no cache"):
        il.Tokens("encoder", torch.zeros(1, 3, 2), size=failing).size.sum()


def test_defaults_name_their_dtype_and_device() -> None:
    tokens = il.Tokens("encoder", torch.zeros(2, 3, 4, dtype=torch.bfloat16, device="meta"))
    assert (tokens.size.dtype, tokens.size.device.type) == (torch.float32, "meta")
    assert (tokens.position.dtype, tokens.position.device.type) == (torch.long, "meta")
    assert (tokens.protected.dtype, tokens.protected.device.type) == (torch.bool, "meta")
