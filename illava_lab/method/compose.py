"""compose: one strategy of several, which goes wherever a strategy goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from illava_lab.method.composed import Composed
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy

AnyStrategy = str | Strategy | type[Strategy]


def compose(
    *,
    encoder: AnyStrategy | Mapping[int, AnyStrategy] | None = None,
    llm: AnyStrategy | Mapping[int, AnyStrategy] | None = None,
    frames: str = "together",
) -> Strategy:
    """One strategy of several: ``compose(encoder="tome", llm="fastv")``, which is also called ``"tome+fastv"``.

    It goes wherever a strategy goes. A budget is shared over the stages as iLLaVA's image preset does, and within a
    stage as its strategy does.

    Args:
        encoder, llm: the strategy of a stage: a registered name, a Strategy class or an instance. Or layer -> strategy,
            ``llm={2: "fastv", 16: "pyramiddrop"}``: these layers then share a budget alike, and no others can be
            scheduled.
        frames: in the LLM the tokens of a video are reduced "together", so that some frames may lose more than others;
            or those of "each" frame on their own, as the code of iLLaVA 2026 does it. The host then waits at each
            such layer, and nothing is captured in graphs.

    Raises:
        LabError: nothing to compose, an unknown strategy, one that does not serve its stage or its layer, two that both
            take notes in the encoder, or with ``frames="each"`` one that leaves some frames more tokens than others.
    """
    settings: list[Any] = [_made(encoder), _made(llm), frames]
    return Composed(*settings)


def _made(given: Any) -> Any:
    if given is None:
        return None
    if isinstance(given, Mapping):
        return {layer: make_strategy(own) for layer, own in given.items()}
    return make_strategy(given)
