"""Keep slider: one question at several keep ratios."""

from __future__ import annotations

from collections.abc import Sequence

import ipywidgets

from illava_lab.errors import LabError, one_of
from illava_lab.measuring.rows import several
from illava_lab.method.keep import check_share
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.images import ImageLike
from illava_lab.session.answer import Answer
from illava_lab.session.lab import Lab
from illava_lab.views.pictures import reduction_figure, to_png
from illava_lab.views.words import as_html
from illava_lab.widgets.output import show_widget


class KeepSlider:
    """Ask one question at several keep ratios; a slider shows tokens and answer at each.

    Every position is computed when the slider is made, so moving it only swaps a picture. The plain-function twin
    is `illava_lab.views.pictures.reduction_figure`.

    Args:
        keeps: fractions of the visual tokens that the last LLM layer sees, in the order of the slider.

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
        strategy = make_strategy(strategy)
        self.question, self.keeps = question, [check_share("keeps", keep) for keep in several("keeps", keeps)]
        if not self.keeps:
            raise LabError(f"keeps must hold at least one fraction in (0, 1], got {keeps!r}")
        self.answers: list[Answer] = [lab.ask(image, question, strategy, keep) for keep in self.keeps]
        self._pngs = [
            to_png(reduction_figure(lab, image, answer, f"{strategy.name}, keep {keep:g}: “{answer.text}”"))
            for keep, answer in zip(self.keeps, self.answers, strict=True)
        ]
        positions = [(f"{keep:g}", i) for i, keep in enumerate(self.keeps)]
        self.slider = ipywidgets.SelectionSlider(
            options=positions, readout=False, layout=ipywidgets.Layout(width="320px")
        )
        # The same as a list: a slider's handle has no name that a screen reader could say.
        self.keep = ipywidgets.Dropdown(options=positions, description="keep", layout=ipywidgets.Layout(width="160px"))
        ipywidgets.link((self.slider, "value"), (self.keep, "value"))
        self.text = ipywidgets.HTML()
        self.picture = ipywidgets.Image(format="png", layout=ipywidgets.Layout(max_width="800px"))
        self.box = ipywidgets.VBox([ipywidgets.HBox([self.keep, self.slider]), self.text, self.picture])
        self.slider.observe(lambda change: self._show(change["new"]), names="value")
        self._show(0)

    def _show(self, index: int) -> None:
        self.picture.value = self._pngs[index]
        self.text.value = f"<b>{as_html(self.question)}</b> &rarr; {as_html(self.answers[index].text)}"

    def show(self, keep: float) -> None:
        """Display the widget at one of `keeps`, with a picture of that position for viewers that have no kernel.

        Raises:
            LabError: keep is no position of the slider.
        """
        one_of("keep", keep, tuple(self.keeps))
        self.slider.value = start = self.keeps.index(keep)
        show_widget(self.box, self._pngs[start], f"{self.question} -> {self.answers[start].text}")
