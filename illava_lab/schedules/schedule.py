"""Schedule: a plan, with the ways to come by one that the papers and budgets give."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from illava_lab.method.strategy import Strategy
from illava_lab.method.tokens import Stage
from illava_lab.models.layout import Layout
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.reach import plan_for_budget
from illava_lab.schedules.transfer import preset_plan


class Schedule(Plan):
    """Layer -> how much to keep, for the image encoder and for the LLM; and how much of the picture goes in at all.

    `Plan` says what the parts mean. Write one down, ``Schedule(encoder={3: 0.8, 4: 0.8}, llm={2: 0.5})``, or take that
    of a paper (`preset`) or of a budget (`for_budget`).
    """

    @classmethod
    def of(cls, plan: Plan) -> Schedule:
        """The same plan as a Schedule."""
        return cls(plan.encoder, plan.llm, plan.image)

    @staticmethod
    def preset(name: str, model: nn.Module) -> Schedule:
        """The layers of a paper's setting by its name; see `illava_lab.presets`.

        A preset also has a strategy and settings of it, which a schedule cannot hold: ``lab.ask(..., preset=name)``
        runs all of it.

        Raises:
            LabError: no such preset, or a model with too few layers for it.
        """
        return Schedule.of(preset_plan(name, model))

    @staticmethod
    def for_budget(
        strategy: str | Strategy | type[Strategy],
        model: nn.Module,
        *,
        keep: float | None = None,
        flops: float | None = None,
        stages: Sequence[Stage] | None = None,
        text_tokens: int = 64,
        layouts: Sequence[Layout] | None = None,
    ) -> Schedule:
        """The schedule by which a strategy, at the layers it stands for, reaches a budget.

        A method of both stages shares the reduction as iLLaVA's image preset does (its encoder leaves 361 of 729, its
        LLM 0.70 of those); within a stage, `Strategy.counts` says how the layers share it.

        Args:
            model: only its configuration and shapes are read; it may be on the meta device.
            keep: fraction of an image's visual tokens that the last LLM layer sees.
            flops: instead of `keep`, the fraction of the bare model's prefill FLOPs, scoring and merging included.
            stages: where to reduce; None for the strategy's `home`.
            text_tokens: tokens of the prompt beside the placeholders of images and videos, for `flops`.
            layouts: what the prompt shows (`il.measure.layouts`), for `flops`; None for one typical image.

        Returns:
            The schedule that comes nearest. FLOPs agree within 1 %, but where single tokens are coarser than that, or
            the method cannot leave any count it likes ("downsample").

        Raises:
            LabError: keep or flops outside (0, 1], both or neither of them; a strategy with no stage left; a budget
                that the strategy cannot reach in this model, with the least that it can.
        """
        return Schedule.of(
            plan_for_budget(
                strategy, model, keep=keep, flops=flops, stages=stages, text_tokens=text_tokens, layouts=layouts
            )
        )
