"""A prompt as the model gets it: its prefill, what it shows, how much text it has, and the schedule for all that."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from illava_lab.blocks import inference_mode
from illava_lab.hooks.attach import attach
from illava_lab.hooks.changes import before_forward
from illava_lab.method.registry import get_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe
from illava_lab.models.layout import Layout
from illava_lab.schedules.budget import Budget
from illava_lab.schedules.schedule import Schedule

Inputs = dict[str, Tensor]


def prefill(model: nn.Module, inputs: Inputs) -> Any:
    """The forward pass that `generate` starts with: fills a cache, computes the logits of the last position only."""
    with inference_mode():
        return model(**inputs, use_cache=True, logits_to_keep=1)


class _Encoded(Exception):
    """The prompt has come to the language model, and that is enough."""


def layouts(model: nn.Module, inputs: Inputs) -> list[Layout]:
    """What the first prompt shows: its images and videos in order. Runs the encoder, but not the language model."""

    def stop(*_: Any) -> None:
        raise _Encoded

    stopped = before_forward(describe(model).language_model, stop)
    with attach(model, get_strategy("none")(), Schedule()) as trace, suppress(_Encoded), stopped:
        prefill(model, inputs)
    return [trace.layout(image) for image in range(trace.images_per_row[0])] if trace.images_per_row else []


def text_tokens(model: nn.Module, inputs: Inputs) -> int:
    """Tokens of the first prompt that are not visual."""
    visual = torch.tensor(list(describe(model).placeholders.values()), device=inputs["input_ids"].device)
    return int((~torch.isin(inputs["input_ids"][0], visual)).sum())


def schedule_for(model: nn.Module, strategy: Strategy, budget: Budget, inputs: Inputs) -> Schedule:
    """The schedule by which a strategy keeps a budget on the first prompt.

    Raises:
        LabError: the strategy cannot reach the budget on this model.
    """
    if budget.flops is None:
        return budget.plan(strategy, model)
    return budget.plan(strategy, model, text_tokens(model, inputs), layouts(model, inputs))
