"""Keep slider: one question at several keep ratios."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anywidget
import traitlets

from illava_lab.errors import LabError, one_of
from illava_lab.measuring.rows import several
from illava_lab.method.keep import check_share
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.images import ImageLike
from illava_lab.session.answer import Answer
from illava_lab.session.lab import Lab
from illava_lab.views.pictures import after_stage, reduction_figure, seen_image, to_png, token_picture
from illava_lab.views.seen import webp
from illava_lab.widgets.front import script, style
from illava_lab.widgets.output import show_widget

STAGES = (("encoder", "behind the image encoder"), ("llm", "in the last LLM layer"))


class _Figure(anywidget.AnyWidget):
    """The front-end. `catalog`: question, the picture as the model sees it, and what each keep leaves of it, from the
    smallest on; `at`: the position that is shown."""

    _esm = script("keeps")
    _css = style("keeps")
    catalog = traitlets.Dict().tag(sync=True)
    at = traitlets.Int().tag(sync=True)


class KeepSlider:
    """Ask one question at several keep ratios; a slider shows tokens and answer at each.

    Every position is computed when the slider is made, so moving it only swaps pictures. The plain-function twin
    is `illava_lab.views.pictures.reduction_figure`.

    Args:
        keeps: fractions of the visual tokens that the last LLM layer sees; on the slider they grow to the right.

    Attributes:
        answers: what is answered at each of `keeps`, in their order.
        widget: what is displayed.

    Raises:
        LabError: no keep, one that is given twice or outside (0, 1], or as `Lab.ask`.
    """

    def __init__(
        self,
        lab: Lab,
        image: ImageLike,
        question: str,
        strategy: str | Strategy = "illava",
        keeps: Sequence[float] = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05),
    ) -> None:
        self._strategy, self._lab, self._image = make_strategy(strategy), lab, image
        self.question, self.keeps = question, [check_share("keeps", keep) for keep in several("keeps", keeps)]
        if not self.keeps:
            raise LabError(f"keeps must hold at least one fraction in (0, 1], got {keeps!r}")
        self.answers: list[Answer] = [lab.ask(image, question, self._strategy, keep) for keep in self.keeps]
        self.widget = _Figure(catalog=self._catalog(), at=len(self.keeps) - 1)

    def show(self, keep: float) -> None:
        """Display the widget at one of `keeps`, with a picture of that position for viewers that have no kernel.

        Raises:
            LabError: keep is no position of the slider.
        """
        one_of("keep", keep, tuple(self.keeps))
        self.widget.at = sorted(self.keeps).index(keep)
        answer = self.answers[self.keeps.index(keep)]
        title = f"{self._strategy.name}, keep {keep:g}: “{answer.text}”"
        picture = reduction_figure(self._lab, self._image, answer, title)
        show_widget(self.widget, to_png(picture), f"{self.question} -> {answer.text}")

    def store(self) -> dict[str, Any]:
        """All that a page without a kernel needs; `illava.keeps.mount(element, stored)` takes it."""
        return {"catalog": self.widget.catalog, "at": self.widget.at}

    def _catalog(self) -> dict[str, Any]:
        seen = seen_image(self._lab, self._image)
        positions = []
        for keep, answer in sorted(zip(self.keeps, self.answers, strict=True), key=lambda pair: pair[0]):
            panels = []
            for stage, name in STAGES:
                sources = after_stage(answer.trace, stage)
                title = f"{name}: {len(sources.anchor)} tokens"
                panels.append({"title": title, "address": webp(token_picture(seen, sources.crop(0)))})
            odds = answer.words[0][0].probability if answer.words else None
            positions.append({"keep": keep, "answer": answer.text, "odds": odds, "panels": panels})
        panel = {"title": "what the model sees", "address": webp(seen)}
        return {"question": self.question, "method": self._strategy.label, "seen": panel, "positions": positions}
