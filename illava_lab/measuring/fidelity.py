"""fidelity: how far a reduced model moves away from itself, on pictures and questions that nobody has labelled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import kl_div
from tqdm.auto import tqdm

from illava_lab.errors import LabError, reason
from illava_lab.hooks.attach import attach, is_attached
from illava_lab.hooks.compat import CACHE, cache_of
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.measuring.rows import OneOrSeveral, Row, Wanted, baseline, check_out, wanted
from illava_lab.measuring.runlog import RunLog, model_settings
from illava_lab.method.blocks import inference_mode
from illava_lab.models.families import describe
from illava_lab.models.video import ImageOrVideo
from illava_lab.schedules.budget import DEFAULT_KEEP
from illava_lab.schedules.plan import Plan
from illava_lab.session.asked import at_least_one, check_count, check_flag
from illava_lab.session.lab import Lab, check_lab
from illava_lab.session.prompt import layouts, text_tokens
from illava_lab.session.room import check_answer, positions_of

COLUMNS = (
    "number", "question", "strategy", "keep", "flops", "preset", "schedule",
    "tokens", "kl", "agreement", "equal", "first_difference", "reference", "answer",
)  # fmt: skip


def fidelity(
    lab: Lab,
    images: Sequence[ImageOrVideo | Sequence[ImageOrVideo]],
    questions: Sequence[str],
    strategy: OneOrSeveral | None = None,
    keep: float | Sequence[float] | None = None,
    *,
    flops: float | Sequence[float] | None = None,
    preset: str | Sequence[str] | None = None,
    schedule: Plan | Sequence[Plan] | None = None,
    max_new_tokens: int = 64,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Compare reduced models with the unreduced one, answer token by answer token; nobody has to know what is right.

    The unreduced model answers greedily. A reduced one then reads the same prompt, chooses what to keep of it, and is
    held against that answer: before each of its tokens, given those that come before it ("teacher forcing"), how far is
    the one distribution over the next token from the other?

    Each question takes one `generate` of the unreduced model, and one of each reduced one; after a first token that
    differs, one more forward pass, on the cache that is there, over what is left of the unreduced model's answer.

    Args:
        images: for each question a picture, a `Video` or a list of them, as in `Lab.inputs`.
        strategy: registered names, Strategy classes or instances. "none" makes one row a question, and is run again
            for it: what is not 0 there is noise of the machine.
        keep: fractions of the visual tokens that the last LLM layer sees; 0.5 if strategies come without a budget.
        flops: fractions of the bare model's prefill FLOPs, for the first question.
        preset: papers' settings by name, each a row with its own strategy; `il.presets` lists them.
        schedule: exact layers and amounts, for every strategy.
        max_new_tokens: where answers are cut off.
        seed: of strategies that have one and are not given as instances.
        out: folder for `table.csv` and `run.jsonl`, from which a stopped call goes on; a row is measured again only if
            its code changed; see `compare`.
        progress: show a progress bar, on stderr, for what takes longer than two seconds.

    Returns:
        One row per question, strategy and budget: `number` of the question (from 0), `question`, `strategy`, `keep`,
        `flops`, `preset`, `schedule`,

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
    check_lab(lab)
    with one_at_a_time(lab.model):
        if is_attached(lab.model):
            who = "fidelity needs the unreduced model"
            raise LabError(f"{who}, but a strategy is attached to it; leave that block first")
    max_new_tokens = check_count("max_new_tokens", max_new_tokens)
    check_out(out)
    check_flag("progress", progress)
    asked = wanted(strategy, keep, flops, preset, schedule, default=(DEFAULT_KEEP,), seed=seed)
    seed = int(seed)
    for name, value in (("images", images), ("questions", questions)):
        if not isinstance(value, (list, tuple)) or not value:
            raise LabError(f"{name} must be a list with one entry for each question, got {value!r}")
    if len(images) != len(questions):
        raise LabError(f"images must hold one entry for each of {len(questions)} questions, got {len(images)}")
    # A broken picture, or a question that is too long, is found before minutes of work, not after.
    digest = _digest(_prompts(lab, images, questions, max_new_tokens))
    plan = _plan(lab, asked, lab.inputs(images[:1], questions[:1]))
    settings = {"max_new_tokens": max_new_tokens, "seed": seed, "prompts": digest}
    log = None
    if out is not None:
        rows = {_label(row, number): row for number in range(len(questions)) for row in plan}
        log = RunLog(Path(out), model_settings(lab) | settings, "a comparison with itself", rows)

    finished: list[dict[str, Any]] = []
    with tqdm(total=len(questions), desc="fidelity", unit="question", delay=2, disable=not progress) as bar:
        for number, (entry, question) in enumerate(zip(images, questions, strict=True)):
            labels = {row: _label(row, number) for row in plan}
            known = {row: stored["row"] for row in plan if log and (stored := log.finished(labels[row], row))}
            if len(known) < len(plan):
                inputs = lab.inputs([entry], [question])
                with one_at_a_time(lab.model):
                    answer, logits = _follow(lab, inputs, max_new_tokens)
            for row in plan:
                if row not in known:
                    known[row] = {"number": number, "question": question, "strategy": row.name, **row.budget}
                    known[row] |= _compared(lab, inputs, row, answer, logits, max_new_tokens)
                    if log:
                        log.add(labels[row], row, known[row] | {"status": "ok"})
                finished.append({column: known[row][column] for column in COLUMNS})
            bar.update()
    table = pd.DataFrame(finished, columns=list(COLUMNS)).astype({"first_difference": "Int64"})
    if log:
        log.write_table(table)
    return table


def _label(row: Row, number: int) -> str:
    return f"{row.label}, question {number}"


def _compared(
    lab: Lab, inputs: dict[str, Tensor], row: Row, answer: Tensor, logits: Tensor, longest: int
) -> dict[str, Any]:
    """How far a reduced model goes from the unreduced model's `answer` (S,) with its `logits` (S, V)."""
    with attach(lab.model, row.strategy, row.planned):
        own, own_logits = _follow(lab, inputs, longest, answer)
    kl, agreement = divergence(logits, own_logits)
    parted = first_difference(answer, own)
    return {
        "tokens": len(answer),
        "kl": kl,
        "agreement": agreement,
        "equal": parted is None,
        "first_difference": parted,
        "reference": _text(lab, answer),
        "answer": _text(lab, own),
    }


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


def _plan(lab: Lab, asked: Wanted, inputs: dict[str, Tensor]) -> list[Row]:
    """What to run for every question; `inputs` are those of the first.

    Raises:
        LabError: see `fidelity`.
    """
    prompt = (text_tokens(lab.model, inputs), layouts(lab.model, inputs)) if asked.needs_prompt else ()
    plan = [*([baseline()] if asked.baseline else []), *asked.rows(lab.model, *prompt)]
    for row in plan:
        if isinstance(row.schedule, Exception):
            raise LabError(f"{row.label}: {reason(row.schedule)}")
        row.planned.check(describe(lab.model), row.strategy)
    return plan


def _prompts(
    lab: Lab, images: Sequence[Any], questions: Sequence[str], max_new_tokens: int
) -> Iterator[dict[str, Tensor]]:
    for entry, question in zip(images, questions, strict=True):
        inputs = lab.inputs([at_least_one("images", entry)], [question])
        check_answer(lab.model, positions_of(lab.model, inputs), max_new_tokens)
        yield inputs


def _digest(prompts: Iterable[dict[str, Tensor]]) -> str:
    """A fingerprint of everything that the model is shown and asked."""
    out = hashlib.sha256()
    for inputs in prompts:
        for name, value in inputs.items():
            out.update(name.encode() + value.cpu().float().numpy().tobytes())
    return out.hexdigest()[:16]


def _follow(lab: Lab, inputs: dict[str, Tensor], longest: int, answer: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The model's own greedy answer (S,), and its logits (T, V) before each token of `answer`, by default its own.

    As long as both go the same way, what it writes is what it is asked about; only after that it has to be led.
    """
    out: Any = lab._generate(inputs, longest, return_dict_in_generate=True, output_logits=True)
    own, logits = out.sequences[0, inputs["input_ids"].shape[1] :], torch.cat(out.logits)
    parted = None if answer is None else first_difference(answer, own)
    if answer is None or parted is None:
        return own, logits
    logits, cache = logits[: parted + 1], cache_of(out)
    if parted + 1 == len(answer):
        return own, logits
    too_much = len(own) - 1 - parted  # of its own last token, the cache knows nothing yet
    if too_much and describe(lab.model).linear:  # the state of a layer cannot forget what it has seen
        shorter: Any = lab._generate(inputs, parted + 1, return_dict_in_generate=True)
        cache = cache_of(shorter)
    elif too_much:
        cache.crop(-too_much)
    mask = inputs["attention_mask"]
    mask = torch.cat([mask, mask.new_ones(1, len(answer) - 1)], dim=1)
    led = _led(lab.model, answer[None, parted:-1], mask, cache)
    return own, torch.cat([logits, led.to(logits)])


def _led(model: nn.Module, ids: Tensor, mask: Tensor, cache: Any) -> Tensor:
    """(K, V) logits after each of the tokens (1, K), the last ones of `mask`, in one pass on a cache."""
    # Qwen-VL makes positions for the whole mask, not for the new tokens; these are what `generate` gives.
    moved = getattr(model.model, "rope_deltas", None)
    ahead = torch.arange(ids.shape[1], device=ids.device) - ids.shape[1]
    positions = {} if moved is None else {"position_ids": mask.sum(1, keepdim=True) + ahead + moved}
    with inference_mode():
        return model(input_ids=ids, attention_mask=mask, use_cache=True, **positions, **{CACHE: cache}).logits[0]


def _text(lab: Lab, tokens: Tensor) -> str:
    return lab.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
