"""Merge explorer: follow one image through every reduction, and ask any token which patches it stands for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import torch
from PIL import Image
from torch import Tensor

from illava_lab.errors import LabError, one_of
from illava_lab.measuring.rows import several
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.images import ImageLike
from illava_lab.session.answer import Answer
from illava_lab.session.lab import Lab
from illava_lab.trace.sources import Sources
from illava_lab.trace.trace import Trace
from illava_lab.views.pictures import seen_image, token_picture
from illava_lab.views.seen import webp, window_of
from illava_lab.widgets.explorer import Explorer, ExplorerFigure
from illava_lab.widgets.front import script, style
from illava_lab.widgets.panels import Panel, check_place, live


def grid_of(trace: Trace) -> tuple[int, int]:
    """(height, width) in patches of the one image.

    Raises:
        LabError: the image was cut into crops, or the trace is of a video.
    """
    crops, height, width = trace.layout(0).patches
    if crops != 1:
        raise LabError(f"the explorer shows an image that is one grid of patches, this one is {crops}")
    return height, width


def step_names(trace: Trace) -> list[str]:
    """What the positions of the explorer's slider are called: the start, and every reduction."""
    height, width = grid_of(trace)
    start = f"start: {height * width} tokens"
    return [start, *(f"{step.stage} layer {step.layer}: {step.before} → {step.after}" for step in trace.steps)]


def merge_panels(seen: Image.Image, trace: Trace, step: int, patch: int = 0) -> list[Panel]:
    """The scores that a reduction ranked by, the tokens it left, and the patches that one of them stands for.

    Args:
        seen: the image as the model sees it (`illava_lab.views.pictures.seen_image`).
        trace: of one prompt with this image.
        step: after how many reductions; 0 is before the first.
        patch: the token in question is the one that holds (most of) this patch.

    Raises:
        LabError: no such step or patch.
    """
    grid = grid_of(trace)
    patches = grid[0] * grid[1]
    check_place("step", step, len(trace.steps))
    check_place("patch", patch, patches - 1)
    sources = trace.sources(0, step)
    hover = np.array(_patch_texts(sources)).reshape(grid)
    tokens = Panel(
        f"{len(sources.anchor)} tokens after this step" if step else f"{patches} tokens, one a patch",
        grid, token_picture(seen, sources), hover=hover, frames=[patch],
    )  # fmt: skip
    return [_scores(seen, trace, step), tokens, _provenance(seen, sources, patch)]


def members(sources: Sources, patch: int) -> tuple[int, list[int]]:
    """The survivor that holds `patch`, and its patches, heaviest first; (-1, []) where no token stands for it."""
    survivor = int(sources.owner()[patch])
    return survivor, sources.patches(survivor) if survivor >= 0 else []


def _patch_texts(sources: Sources) -> list[str]:
    """For every patch: what has become of it."""
    weights, anchor = sources.weights.numpy(), sources.anchor.tolist()
    count, texts = (weights != 0).sum(1), []
    for patch, survivor in enumerate(sources.owner().tolist()):
        if survivor < 0:
            texts.append(f"patch {patch}: no token stands for it any more")
        elif count[survivor] == 1:
            texts.append(f"patch {patch}: has a token of its own")
        else:
            texts.append(
                f"patch {patch}: weight {weights[survivor, patch]:.3f} of the token at patch {anchor[survivor]},"
                f"<br>which stands for {count[survivor]} patches"
            )
    return texts


def places_before(trace: Trace, step: int) -> Tensor:
    """(N,) the patch in whose place each token stands that reduction number `step` (from 1) looked at, -1 for CLS."""
    this = trace.steps[step - 1]
    if this.stage == "llm":
        return trace.sources(0, step - 1).anchor
    height, width = grid_of(trace)
    place = torch.arange(-trace.cls_tokens, height * width)
    for earlier in trace.steps[: step - 1]:
        place = place[earlier.map.anchor[0].cpu()]
    return place


def ranking(trace: Trace, step: int) -> tuple[np.ndarray, np.ndarray] | None:
    """What reduction number `step` (from 1) ranked by: (N,) patches, best first, and (N,) the scores of their tokens.

    None where the method does not rank single tokens.
    """
    scores = trace.steps[step - 1].scores
    if scores is None:
        return None
    before = places_before(trace, step)
    row, place = scores[0].float().cpu()[before >= 0].numpy(), before[before >= 0].numpy()
    order = np.argsort(-row, kind="stable")
    return place[order], row[order]


def _scores(seen: Image.Image, trace: Trace, step: int) -> Panel:
    title, grid = "score that this step ranked by", grid_of(trace)
    if step == 0:
        return Panel("no reduction yet", grid, seen, note="move the slider")
    ranked = ranking(trace, step)
    if ranked is None:
        return Panel(title, grid, seen, note="this method does not<br>rank single tokens")
    values = np.full(grid[0] * grid[1], np.nan)
    values[ranked[0]] = ranked[1]
    hover = np.full(len(values), "no token stands here any more", dtype=object)
    for rank, (where, score) in enumerate(zip(*ranked, strict=True), start=1):
        hover[where] = f"token at patch {where}:<br>score {score:.4g}, rank {rank} of {len(ranked[0])}"
    limits = float(ranked[1].min()), float(ranked[1].max())
    return Panel(title, grid, seen, values.reshape(grid), limits, "score", hover=hover.reshape(grid))


def _provenance(seen: Image.Image, sources: Sources, patch: int) -> Panel:
    survivor, own = members(sources, patch)
    grey = seen.convert("L").convert("RGB")
    if survivor < 0:
        return Panel(f"patch {patch} is gone", sources.grid, grey, frames=[patch], note="no token stands for it")
    weights = sources.weights[survivor].numpy()
    hover = np.array([f"patch {i}: weight {w:.4f}" for i, w in enumerate(weights)]).reshape(sources.grid)
    shown = np.where(weights == 0, np.nan, weights).reshape(sources.grid)
    home = int(sources.anchor[survivor])
    title = f"the token at patch {home}: {len(own)} patch{'es' if len(own) > 1 else ''}"
    limits, legend = (min(0.0, float(weights.min())), float(weights.max())), "weight of each patch in it"
    return Panel(title, sources.grid, grey, shown, limits, legend, hover=hover, frames=[home])


def merge_figure(seen: Image.Image, trace: Trace, step: int, patch: int = 0) -> go.Figure:
    """What the explorer shows, as a plotly figure: its plain-function twin. Arguments as in `merge_panels`."""
    return live(merge_panels(seen, trace, step, patch))


def _named(strategies: Any) -> dict[str, Any]:
    """Label -> strategy, at least one, none of them twice."""
    chosen = strategies
    if not isinstance(strategies, Mapping):
        made = [(one, make_strategy(one)) for one in several("strategies", strategies)]
        chosen = {strategy.label: one for one, strategy in made}
        if len(chosen) < len(made):
            raise LabError(f"strategies holds one twice: {', '.join(strategy.label for _, strategy in made)}")
    if not chosen:
        raise LabError(f"strategies must name at least one strategy, got {strategies!r}")
    return dict(chosen)


# ---------------------------------------------------------------------------------------------- for the page
def _step(trace: Trace, step: int) -> dict[str, Any]:
    """What the page draws after some reductions, in short lists.

    `anchor`: the patch in whose place each token stands; `groups`: [token, its patches, heaviest first, their weights
    in millionths] of each that is more than that patch; `owner`: who holds most of each patch, where some are in
    several tokens; `ranked`: the scores of the step, best first.
    """
    sources = trace.sources(0, step)
    weights, anchor, groups = sources.weights.numpy(), sources.anchor.tolist(), []
    for token, row in enumerate(weights):
        own = np.flatnonzero(row)
        if own.tolist() != [anchor[token]] or row[own[0]] != 1:
            own = own[np.argsort(-np.abs(row[own]), kind="stable")]
            groups.append([token, own.tolist(), [_millionths(weight) for weight in row[own].tolist()]])
    out: dict[str, Any] = {"name": step_names(trace)[step], "anchor": anchor, "groups": groups}
    if ((weights != 0).sum(0) > 1).any():
        out["owner"] = sources.owner().tolist()
    ranked = ranking(trace, step) if step else None
    if ranked:
        scores = [float(f"{score:.4g}") if np.isfinite(score) else None for score in ranked[1].tolist()]
        out["ranked"] = {"places": ranked[0].tolist(), "scores": scores}
    return out


def _millionths(weight: float) -> int:
    """A weight in millionths, of which rounding half up makes the three digits that Python writes."""
    number, want = round(weight * 1e6), int(f"{abs(weight):.3f}".replace(".", ""))
    off = want - (abs(number) + 500) // 1000  # not 0 at halves, which Python rounds to even
    return number + (off if number >= 0 else -off)


class _Figure(ExplorerFigure):
    """The front-end. Of the catalogue: question, picture as the model sees it, its grid and where that lies (`window`),
    and each strategy with its answer and its steps."""

    _esm = script("merge")
    _css = style("merge")


class MergeExplorer(Explorer):
    """Step through the reductions of several strategies; click or hover a token to see the patches it stands for.

    Every strategy answers the question once, when the explorer is made; moving a control only looks things up, on the
    page itself. What is pointed at lights up in all panels.

    Args:
        strategies: names, strategies, or label -> strategy.
        keep: fraction of the visual tokens that the last LLM layer sees.
        patch: the patch that is picked at first.

    Attributes:
        answers: label -> `Answer`.
        settings: what is shown now: strategy, step, patch.
        widget: what is displayed.

    Raises:
        LabError: no strategy, one that is given twice, a patch that is not there, or as `Lab.ask`.
    """

    def __init__(
        self,
        lab: Lab,
        image: ImageLike,
        question: str,
        strategies: Sequence[str | Strategy] | Mapping[str, str | Strategy] = ("illava", "tome", "fastv", "random"),
        keep: float = 0.5,
        patch: int = 0,
    ) -> None:
        chosen = _named(strategies)
        self.question, self._seen = question, seen_image(lab, image)
        self.answers: dict[str, Answer] = {
            label: lab.ask(image, question, strategy, keep) for label, strategy in chosen.items()
        }
        super().__init__(
            _Figure(catalog=self._catalog()), {"strategy": next(iter(self.answers)), "step": 0, "patch": patch}
        )

    def fitted(self, settings: dict[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
        """As the page does: where the other strategy has fewer steps, its last one."""
        one_of("strategy", settings["strategy"], tuple(self.answers))
        if "step" in asked:
            return settings
        return settings | {"step": min(settings["step"], len(self.answers[settings["strategy"]].trace.steps))}

    def panels(self, strategy: str, step: int, patch: int) -> list[Panel]:
        """As `merge_panels`, of one of the strategies."""
        return merge_panels(self._seen, self.answers[strategy].trace, step, patch)

    def describe(self, strategy: str, step: int, patch: int) -> str:
        """What has become of the picked patch, and what is answered, in two sentences."""
        answer = self.answers[strategy]
        sources = answer.trace.sources(0, step)
        survivor, own = members(sources, patch)
        if survivor < 0:
            fate = "no token stands for it any more"
        elif len(own) == 1:
            fate = "it has a token of its own"
        else:
            heaviest = ", ".join(f"{i} ({float(sources.weights[survivor, i]):.3f})" for i in own[:4])
            home = int(sources.anchor[survivor])
            fate = f"it is in the token at patch {home}, which stands for {len(own)} patches, heaviest {heaviest}"
        return f"{strategy}, {step_names(answer.trace)[step]}. Patch {patch}: {fate}. {self.question} → {answer.text}"

    def _catalog(self) -> dict[str, Any]:
        trace = next(iter(self.answers.values())).trace
        grid = grid_of(trace)
        strategies = [
            {
                "label": label,
                "answer": answer.text,
                "steps": [_step(answer.trace, step) for step in range(len(answer.trace.steps) + 1)],
            }
            for label, answer in self.answers.items()
        ]
        window = window_of(trace.sources(0, 0).boxes.view(*grid, 4))
        return {
            "question": self.question, "seen": webp(self._seen), "grid": list(grid), "window": list(window),
            "strategies": strategies,
        }  # fmt: skip
