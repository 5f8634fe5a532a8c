"""What several tests do with an attached model."""

from __future__ import annotations

import torch
from conftest import IMAGE_TOKEN, VIDEO_TOKEN
from helpers.qwen import QWENS

import illava_lab as il
from illava_lab.trace.trace import Trace

GREEDY = dict(do_sample=False, suppress_tokens=[IMAGE_TOKEN, VIDEO_TOKEN], eos_token_id=None, pad_token_id=0)


def has_video(kind: str) -> bool:
    return kind in ("next-video", "onevision", *QWENS)


def keep_everything(schedule: il.Schedule) -> il.Schedule:
    return il.Schedule(dict.fromkeys(schedule.encoder, 1.0), dict.fromkeys(schedule.llm, 1.0))


def lengths(cache) -> list[int]:
    """Tokens in each layer of a cache that holds keys; layers with linear attention hold none."""
    return [layer.keys.shape[2] for layer in cache.layers if hasattr(layer, "keys")]


@torch.no_grad()
def forward(model, inputs) -> torch.Tensor:
    return model(**inputs).logits[inputs["attention_mask"].bool()]


def told_apart(trace: Trace) -> bool:
    """False where two scores of the last call are nearer than rounding moves them: their order is then chance."""
    for step in trace.steps:
        if step.scores is not None:
            score = step.scores.sort(dim=1).values
            gap = score.diff(dim=1) / score[:, 1:].abs()
            if ((gap > 0) & (gap < 3e-6)).any():
                return False
    return True


def structure(model) -> set[str]:
    """Everything that hooks could leave behind: attributes of instances, hooks, forwards, configurations."""
    out = set()
    for name, module in model.named_modules():
        out |= {f"{name}.{key}".lstrip(".") for key in vars(module)}
        for kind in (
            "_forward_hooks",
            "_forward_pre_hooks",
            "_forward_hooks_always_called",
            "_forward_hooks_with_kwargs",
        ):
            out |= {f"{name}:{kind}:{id(hook)}" for hook in getattr(module, kind).values()}
        out |= {
            f"{name}.forward:{id(module.__dict__.get('forward'))}",
            f"{name}.config:{id(getattr(module, 'config', None))}",
        }
    return out
