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
    assert offered == {"cls_attention"}
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
