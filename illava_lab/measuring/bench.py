"""bench: how fast strategies are, and how near each comes to the fastest that dropping as many tokens can be."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from tqdm.auto import tqdm

from illava_lab.errors import LabError, reason
from illava_lab.measuring import measure
from illava_lab.measuring.bench_case import BARE, QUESTION, Case, Settings, answer_columns, batch_of
from illava_lab.measuring.machine import environment
from illava_lab.measuring.rows import OneOrSeveral, Row, baseline, check_batch, check_out, several, wanted
from illava_lab.measuring.runlog import RunLog, model_settings
from illava_lab.models.video import ImageOrVideo
from illava_lab.schedules.budget import DEFAULT_KEEP
from illava_lab.schedules.plan import Plan
from illava_lab.session.asked import at_least_one, check_count, check_flag
from illava_lab.session.lab import Lab, check_lab
from illava_lab.session.room import check_answer, positions_of

ANSWERS = (1, 16, 128)
_SPREAD = ("", "_low", "_high")
_TIMES = (
    "prefill_ms", "decode_ms", "prefill_ratio", "decode_ratio", "efficiency", "over_hand",
    "prefill_host_ms", "prefill_device_ms", "decode_host_ms", "decode_device_ms",
)  # fmt: skip


def columns(answers: Sequence[int] = ANSWERS) -> tuple[str, ...]:
    """Of the table, for these lengths of answers."""
    return (
        "strategy", "keep", "flops", "preset", "schedule", "graphs", "batch", "text_tokens", "new_tokens", "seed",
        *(f"{name}{end}" for name in _TIMES for end in _SPREAD),
        "busy_ms", "encoder_ms", "projector_ms", "llm_ms", "rest_ms", "choice_ms",
        "images_per_second", *answer_columns(answers), "largest_batch",
        "tokens", "tokens_encoder", "tokens_llm", "prefill_flops", "prefill_flops_formula",
        "peak_bytes", "cache_bytes", "status",
    )  # fmt: skip


COLUMNS = columns()


def bench(
    lab: Lab,
    strategy: OneOrSeveral | None = None,
    keep: float | Sequence[float] | None = None,
    *,
    flops: float | Sequence[float] | None = None,
    preset: str | Sequence[str] | None = None,
    schedule: Plan | Sequence[Plan] | None = None,
    image: ImageOrVideo | Sequence[ImageOrVideo] | None = None,
    batch_sizes: Sequence[int] = (1,),
    text_tokens: Sequence[int] | None = None,
    new_tokens: int = 16,
    answers: Sequence[int] = ANSWERS,
    rounds: int = 5,
    graphs: bool = False,
    largest_batch: int | None = None,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what strategies cost, at every budget, batch size and prompt length.

    For each batch size and prompt length the first row is the model with nothing attached ("bare"), the second the
    model with the strategy "none" attached. Each row is timed in rounds with the bare model, with its limit (`Limit`)
    and with a loop by hand (`by_hand.prefill`), so that a machine that is now fast and now slow is so for all of them.
    What fails, or is out of memory, is a row whose `status` says why; the others go on.

    Args:
        strategy: registered names, Strategy classes or instances.
        keep: fractions of the visual tokens that the last LLM layer sees; 0.5 if strategies come without a budget.
        flops: fractions of the bare model's prefill FLOPs; see `Schedule.for_budget`.
        preset: papers' settings by name, each a row with its own strategy; `il.presets` lists them.
        schedule: exact layers and amounts, for every strategy.
        image: what each prompt shows: an image, a Video, or a list of those; None for a picture of the test set.
        batch_sizes: prompts at once.
        text_tokens: lengths of the text in a prompt; None for that of a short question.
        new_tokens: decoding steps after each prefill.
        answers: lengths of answers, in rising order, that are timed once from end to end; a model that has no room
            for one has NaN there.
        rounds: how often each row is timed, after one round of warm-up.
        graphs: attach with captured graphs (`il.attach`), and capture the loop by hand too.
        largest_batch: look for the largest batch that fits, up to so many prompts; None leaves it out.
        seed: of strategies that have a `seed` and are not given as instances.
        out: folder for `table.csv`, `bench.json` (rows, machine, versions, command) and `run.jsonl`, from which a
            stopped call goes on; a row is measured again only if it failed or its code changed; see `compare`.
        progress: show a progress bar, on stderr.

    Returns:
        One row per strategy, budget, batch size and prompt length. Times are medians over rounds, with the middle half
        of them as low and high: `prefill_ms` of the batch until its first token, `decode_ms` of one more token for the
        batch. `prefill_ratio` and `decode_ratio` are multiples of the bare model's times in the same rounds.
        `efficiency` is the prefill time of the limit, which goes through the same hooks, over that of the strategy; NaN
        where there is no limit ("downsample" does not choose). `over_hand` is the prefill time over that of dropping as
        many tokens in a plain loop over the same layers, without hooks; NaN where there is no such loop (Qwen-VL).
        `prefill_host_ms` and `decode_host_ms` end when the call returns; `prefill_device_ms` and `decode_device_ms` go
        from a CUDA device's first operation to its last, gaps included; `busy_ms` of one prefill it works.
        `images_per_second` counts the images (or frames) of the batch, over one prefill and `new_tokens` steps;
        `images_per_second_16` is measured from the prompt to the end of an answer of 16 tokens, and so on; reading and
        resizing them is in none. `largest_batch` is found to a sixteenth; NaN where there is no CUDA device.
        `encoder_ms`, `projector_ms`, `llm_ms` and `rest_ms` split a prefill, and `choice_ms` is what the strategy
        itself takes of it; see `measure.stage_seconds`; these and `busy_ms` are NaN with graphs. `prefill_flops` is
        what torch counts for one prompt, `prefill_flops_formula` the closed form with what a run left. `cache_bytes`
        and `peak_bytes` (above weights and inputs, and with what graphs hold; see `measure.memory`) are of the batch.

    Raises:
        LabError: bad arguments, before any work.
    """
    check_lab(lab)
    asked = wanted(strategy, keep, flops, preset, schedule, default=(DEFAULT_KEEP,), seed=seed)
    batches, lengths = _counts("batch_sizes", batch_sizes), []
    if text_tokens is not None:
        lengths = _counts("text_tokens", text_tokens)
    seed, rounds, new_tokens = int(seed), check_count("rounds", rounds), check_count("new_tokens", new_tokens)
    ends = _counts("answers", answers)
    if ends != sorted(ends):
        raise LabError(f"answers must be in rising order, got {ends}")
    if largest_batch is not None:
        largest_batch = check_count("largest_batch", largest_batch)
    check_flag("graphs", graphs)
    check_out(out)
    check_flag("progress", progress)
    if image is None:
        # Here, for it reads parquet, and a machine that only times models needs no package for that.
        from illava_lab.measuring.task_files import load_task

        task = load_task("test")
        image = task.shown(task.samples["image_id"].iloc[0])
    image = at_least_one("image", image)
    question = lab.inputs([image], [QUESTION])
    for batch in batches:
        check_batch("batch_sizes", batch, question)
    cases = []
    for length in lengths or [measure.text_tokens(lab.model, question)]:
        single = batch_of(lab, image, 1, length)  # a length that cannot be is refused before any work
        check_answer(lab.model, positions_of(lab.model, single), new_tokens, "new_tokens")
        layouts = measure.layouts(lab.model, single) if asked.needs_prompt else None
        plan = [replace(baseline(), name=BARE), baseline(), *asked.rows(lab.model, length, layouts)]
        cases += [(batch, length, row) for batch in batches for row in plan]

    settings: dict[str, Any] = {"seed": seed, "new_tokens": new_tokens, "rounds": rounds}
    settings |= {"threads": torch.get_num_threads(), "answers": ends, "graphs": graphs, "largest_batch": largest_batch}
    common = Settings(rounds, new_tokens, tuple(ends), graphs, largest_batch)
    rows = {_label(*case): case[-1] for case in cases}
    log = None if out is None else RunLog(Path(out), model_settings(lab) | settings, "measurements", rows)
    finished: list[dict[str, Any]] = []
    with tqdm(cases, desc="bench", unit="row", disable=not progress, dynamic_ncols=True) as bar:
        for batch, length, row in bar:
            label = _label(batch, length, row)
            bar.set_postfix_str(label)
            entry = log.finished(label, row) if log else None
            values = entry["row"] if entry else None
            if values is None:
                try:
                    values = Case(lab, image, batch, length, row, common).measure() | {"status": "ok"}
                except Exception as error:  # a stranger's strategy may fail in any way; the others go on
                    values = {"status": reason(error)}
                _free()
                values |= {"strategy": row.name, **row.budget, "seed": seed, "graphs": graphs}
                values |= {"batch": batch, "text_tokens": length, "new_tokens": new_tokens}
                if log:
                    log.add(label, row, values)
            finished.append(values)
            if log:
                log.write_table(_table(finished, ends))
    if log:
        about = {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), **environment(lab), **settings}
        log.write("bench.json", json.dumps({"about": about, "rows": finished}, indent=1) + "\n")
    return _table(finished, ends)


def _label(batch: int, length: int, row: Row) -> str:
    return f"{row.label}, batch {batch}, text {length}"


def _counts(name: str, given: Any) -> list[int]:
    """Whole numbers of at least 1, none of them twice."""
    if given is None or isinstance(given, (str, bytes, Mapping)):
        raise LabError(f"{name} must be a list of whole numbers of at least 1, got {given!r}")
    return [check_count(name, value) for value in several(name, given)]


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _table(finished: list[dict[str, Any]], answers: Sequence[int]) -> pd.DataFrame:
    return pd.DataFrame(finished, columns=list(columns(answers)))
