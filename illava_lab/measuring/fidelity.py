"""fidelity: how far a reduced model moves away from itself, on pictures and questions that nobody has labelled."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach, is_attached
from illava_lab.measuring.rows import BASELINE, Row, baseline, budgets, check_count, named_strategies, rows
from illava_lab.method.registry import make_strategy
from illava_lab.method.strategy import Strategy
from illava_lab.models.families import describe
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.lab import ImageOrVideo, Lab


def fidelity(
    lab: Lab,
    shown: Sequence[ImageOrVideo | Sequence[ImageOrVideo]],
    questions: Sequence[str],
    strategies: str | Strategy | type[Strategy] | Sequence[str | Strategy | type[Strategy]],
    keep: Sequence[float] | float,
    *,
    max_new_tokens: int = 64,
    seed: int = 0,
) -> pd.DataFrame:
    """Compare reduced models with the unreduced one, answer token by answer token; nobody has to know what is right.

    The unreduced model answers greedily. A reduced one then reads the same prompt, chooses what to keep of it, and is
    held against that answer: before each of its tokens, given those that come before it ("teacher forcing"), how far is
    the one distribution over the next token from the other?

    Each question takes one `generate` of the unreduced model, and one of each reduced one; after a first token that
    differs, one more forward pass, on the cache that is there, over what is left of the unreduced model's answer.

    Args:
        shown: for each question a picture, a `Video` or a list of them, as in `Lab.inputs`.
        strategies: registered names, Strategy classes or instances. "none" makes one row a question, and is run again
            for it: what is not 0 there is noise of the machine.
        keep: fractions of the visual tokens that the last LLM layer sees.
        max_new_tokens: where answers are cut off.
        seed: of strategies that have one and are not given as instances.

    Returns:
        One row per question, strategy and keep: `number` of the question (from 0), `question`, `strategy`, `keep`,

        - `tokens`: T, answer tokens of the unreduced model, its end included.
        - `kl`: mean over these of KL(unreduced || reduced), in nats. 0 is no difference; there is no upper bound.
        - `agreement`: share of these at which both models' most likely token is the same.
        - `equal`: whether the reduced model, writing on its own, writes the same tokens, its end included.
        - `first_difference`: number of the first token (from 0) that differs then, <NA> where none does.
        - `reference`, `answer`: what the unreduced and the reduced model write.

    Raises:
        LabError: before the model runs: an empty list, numbers of questions and pictures that do not match, a picture
            that cannot be read, a video for a model that takes none, an empty question, an unknown strategy, one that
            cannot reach a keep on this model, a keep outside (0, 1], or a model with a strategy attached.
    """
    if is_attached(lab.model):
        raise LabError("fidelity needs the unreduced model, but a strategy is attached to it; leave that block first")
    check_count("max_new_tokens", max_new_tokens)
    plan = _plan(lab, strategies, keep, seed)
    for name, value in (("shown", shown), ("questions", questions)):
        if not isinstance(value, (list, tuple)) or not value:
            raise LabError(f"{name} must be a list with one entry for each question, got {value!r}")
    if len(shown) != len(questions):
        raise LabError(f"shown must hold one entry for each of {len(questions)} questions, got {len(shown)}")
    for entry, question in zip(shown, questions, strict=True):
        lab.inputs([entry], [question])  # a broken picture is found before minutes of work, not after

    out: list[dict[str, Any]] = []
    for number, (entry, question) in enumerate(zip(shown, questions, strict=True)):
        inputs = lab.inputs([entry], [question])
        answer, logits = _follow(lab, inputs, max_new_tokens)
        for row in plan:
            with attach(lab.model, row.strategy, row.schedule):
                own, own_logits = _follow(lab, inputs, max_new_tokens, answer)
            kl, agreement = divergence(logits, own_logits)
            parted = first_difference(answer, own)
            out.append(
                {"number": number, "question": question, "strategy": row.name, "keep": row.share, "tokens": len(answer)}
                | {"kl": kl, "agreement": agreement, "equal": parted is None, "first_difference": parted}
                | {"reference": _text(lab, answer), "answer": _text(lab, own)}
            )
    return pd.DataFrame(out).astype({"first_difference": "Int64"})


def divergence(reference: Tensor, reduced: Tensor) -> tuple[float, float]:
    """Mean KL(reference || reduced) in nats, and the share of rows with the same largest entry.

    Args:
        reference, reduced: (T, V) logits.
    """
    p, q = (logits.double().log_softmax(-1) for logits in (reference, reduced))
    kl = kl_div(q, p, reduction="none", log_target=True).sum(-1).mean()
    return float(kl), float((p.argmax(-1) == q.argmax(-1)).double().mean())


def first_difference(one: Tensor, other: Tensor) -> int | None:
    """Where two rows of tokens, (S,) and (T,), differ first; where one is the other's beginning, at its end."""
    shared = min(len(one), len(other))
    apart = (one[:shared] != other[:shared]).nonzero()
    if len(apart):
        return int(apart[0])
    return None if len(one) == len(other) else shared


# ---------------------------------------------------------------------------------------------- doing it
def _plan(lab: Lab, strategies: Any, keep: Any, seed: int) -> list[Row]:
    """What to run for every question.

    Raises:
        LabError: see `fidelity`.
    """
    named = named_strategies(strategies, seed)
    given = [strategies] if isinstance(strategies, (str, Strategy, type)) else list(strategies)
    bare = [baseline()] if any(make_strategy(one).name == BASELINE for one in given) else []
    plan = [*bare, *rows(lab.model, named, budgets(keep, None), text_tokens=0)]
    for row in plan:
        if not isinstance(row.schedule, Schedule):
            raise LabError(f"{row.name} at keep {row.share:g}: {row.schedule}")
        row.schedule.check(describe(lab.model), row.strategy)
    return plan


def _follow(lab: Lab, inputs: dict[str, Tensor], longest: int, answer: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The model's own greedy answer (S,), and its logits (T, V) before each token of `answer`, by default its own.

    As long as both go the same way, what it writes is what it is asked about; only after that it has to be led.
    """
    out = lab._generate(inputs, longest, return_dict_in_generate=True, output_logits=True)
    own, logits = out.sequences[0, inputs["input_ids"].shape[1] :], torch.cat(out.logits)
    parted = None if answer is None else first_difference(answer, own)
    if parted is None:
        return own, logits
    logits, cache = logits[: parted + 1], out.past_key_values
    if parted + 1 == len(answer):
        return own, logits
    too_much = len(own) - 1 - parted  # of its own last token, the cache knows nothing yet
    if too_much:
        cache.crop(-too_much)
    mask = inputs["attention_mask"]
    mask = torch.cat([mask, mask.new_ones(1, len(answer) - 1)], dim=1)
    led = _led(lab.model, answer[None, parted:-1], mask, cache)
    return own, torch.cat([logits, led.to(logits)])


@torch.inference_mode()
def _led(model: nn.Module, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """(K, V) logits after each of the tokens (1, K), the last ones of `mask`, in one pass on a cache."""
    # Qwen-VL makes positions for the whole mask, not for the new tokens; these are what `generate` gives.
    moved = getattr(model.model, "rope_deltas", None)
    ahead = torch.arange(ids.shape[1], device=ids.device) - ids.shape[1]
    positions = {} if moved is None else {"position_ids": mask.sum(1, keepdim=True) + ahead + moved}
    return model(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, **positions).logits[0]


def _text(lab: Lab, tokens: Tensor) -> str:
    return lab.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
