"""What a reduction saves: visual tokens, floating-point operations, cache, memory and time; `il.measure`."""

from illava_lab.measuring.cost import Cost, cost, counted_flops, mean_tokens, memory
from illava_lab.measuring.speed import Configuration, Ratio, Speed, attached, ratio, speeds
from illava_lab.measuring.stages import STAGES, stage_seconds
from illava_lab.schedules.flops import flops_by_layer, prefill_flops
from illava_lab.session.prompt import Inputs, layouts, prefill, text_tokens

__all__ = [
    "STAGES",
    "Configuration",
    "Cost",
    "Inputs",
    "Ratio",
    "Speed",
    "attached",
    "cost",
    "counted_flops",
    "flops_by_layer",
    "layouts",
    "mean_tokens",
    "memory",
    "prefill",
    "prefill_flops",
    "ratio",
    "speeds",
    "stage_seconds",
    "text_tokens",
]
