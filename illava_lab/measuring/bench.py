"""bench: how fast strategies are, and how near each comes to the fastest that dropping as many tokens can be."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from tqdm.auto import tqdm

from illava_lab.errors import LabError
from illava_lab.measuring import measure
from illava_lab.measuring.limit import Limit
from illava_lab.measuring.machine import environment
from illava_lab.measuring.rows import OneOrSeveral, Row, baseline, check_batch, check_out, reason, several, wanted
from illava_lab.measuring.runlog import RunLog, model_settings
from illava_lab.measuring.speed import Configuration
from illava_lab.measuring.tasks import load_task
from illava_lab.models.video import ImageOrVideo, Video
from illava_lab.schedules.budget import DEFAULT_KEEP
from illava_lab.schedules.flops import prefill_flops
from illava_lab.schedules.plan import Plan
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.asked import as_list, at_least_one, check_count, check_flag
from illava_lab.session.lab import Lab, check_lab
from illava_lab.session.room import check_answer, positions_of
from illava_lab.session.turns import attached

COLUMNS = (
    "strategy", "keep", "flops", "preset", "schedule", "batch", "text_tokens", "new_tokens", "seed",
    "prefill_ms", "prefill_ms_low", "prefill_ms_high", "decode_ms", "decode_ms_low", "decode_ms_high",
    "images_per_second",
    "prefill_ratio", "prefill_ratio_low", "prefill_ratio_high", "decode_ratio", "decode_ratio_low", "decode_ratio_high",
    "efficiency", "efficiency_low", "efficiency_high",
    "encoder_ms", "projector_ms", "llm_ms", "rest_ms", "choice_ms",
    "tokens", "tokens_encoder", "tokens_llm", "prefill_flops", "prefill_flops_formula",
    "peak_bytes", "cache_bytes", "status",
)  # fmt: skip
BARE = "bare"
QUESTION = "What is shown in this picture?"


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
    rounds: int = 5,
    seed: int = 0,
    out: str | PathLike[str] | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what strategies cost, at every budget, batch size and prompt length.

    For each batch size and prompt length the first row is the model with nothing attached ("bare"), the second the
    model with the strategy "none" attached. Each row is timed in rounds with the bare model and with its limit
    (`Limit`), so that a machine that is now fast and now slow is so for all three. What fails, or is out of memory, is
    a row whose `status` says why; the others go on.

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
        rounds: how often each row is timed, after one round of warm-up.
        seed: of strategies that have a `seed` and are not given as instances.
        out: folder for `table.csv`, `bench.json` (rows, machine, versions, command) and `run.jsonl`, from which a
            stopped call goes on; a row is measured again only if it failed or its code changed; see `compare`.
        progress: show a progress bar, on stderr.

    Returns:
        One row per strategy, budget, batch size and prompt length. Times are medians over rounds, with the middle half
        of them as low and high: `prefill_ms` of the batch until its first token, `decode_ms` of one more token for the
        batch. `prefill_ratio` and `decode_ratio` are multiples of the bare model's times in the same rounds;
        `efficiency` is the prefill time of the limit over that of the strategy, NaN where there is no limit
        ("downsample" does not choose).
        `images_per_second` counts the images (or frames) of the batch, over one prefill and `new_tokens` steps; reading
        and resizing them is not in it. `encoder_ms`, `projector_ms`, `llm_ms` and `rest_ms` split a prefill, and
        `choice_ms` is what the strategy itself takes of it; see `measure.stage_seconds`. `prefill_flops` is what torch
        counts for one prompt, `prefill_flops_formula` the closed form with what a run left. `cache_bytes` and
        `peak_bytes` (above weights and inputs; see `measure.memory`) are of the batch.

    Raises:
        LabError: bad arguments, before any work.
    """
    check_lab(lab)
    asked = wanted(strategy, keep, flops, preset, schedule, default=(DEFAULT_KEEP,), seed=seed)
    batches, lengths = _counts("batch_sizes", batch_sizes), []
    if text_tokens is not None:
        lengths = _counts("text_tokens", text_tokens)
    seed, rounds, new_tokens = int(seed), check_count("rounds", rounds), check_count("new_tokens", new_tokens)
    check_out(out)
    check_flag("progress", progress)
    if image is None:
        image = load_task("test").image(load_task("test").samples["image_id"].iloc[0])
    image = at_least_one("image", image)
    question = lab.inputs([image], [QUESTION])
    for batch in batches:
        check_batch("batch_sizes", batch, question)
    cases = []
    for length in lengths or [measure.text_tokens(lab.model, question)]:
        single = _inputs(lab, image, 1, length)  # a length that cannot be is refused before any work
        check_answer(lab.model, positions_of(lab.model, single), new_tokens, "new_tokens")
        layouts = measure.layouts(lab.model, single) if asked.needs_prompt else None
        plan = [replace(baseline(), name=BARE), baseline(), *asked.rows(lab.model, length, layouts)]
        cases += [(batch, length, row) for batch in batches for row in plan]

    settings = {"seed": seed, "new_tokens": new_tokens, "rounds": rounds, "threads": torch.get_num_threads()}
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
                case = _Case(lab, image, batch, length, row, rounds, new_tokens)
                try:
                    values = case.measure() | {"status": "ok"}
                except Exception as error:  # a stranger's strategy may fail in any way; the others go on
                    values = {"status": reason(error)}
                _free()
                values |= {"strategy": row.name, **row.budget, "seed": seed}
                values |= {"batch": batch, "text_tokens": length, "new_tokens": new_tokens}
                if log:
                    log.add(label, row, values)
            finished.append(values)
            if log:
                log.write_table(_table(finished))
    if log:
        about = {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), **environment(lab), **settings}
        log.write("bench.json", json.dumps({"about": about, "rows": finished}, indent=1) + "\n")
    return _table(finished)


@dataclass(frozen=True, eq=False)
class _Case:
    """One row to measure."""

    lab: Lab
    image: Any
    batch: int
    length: int
    row: Row
    rounds: int
    new_tokens: int

    def measure(self) -> dict[str, Any]:
        row, model = self.row, self.lab.model
        schedule = row.planned
        inputs, single = (_inputs(self.lab, self.image, batch, self.length) for batch in (self.batch, 1))
        configuration = None if row.name == BARE else (row.strategy, schedule)
        times = self._times(inputs, configuration)
        with measure.attached(model, configuration):
            cache_bytes, peak_bytes = measure.memory(model, inputs)
            stages = measure.stage_seconds(model, inputs, min(3, self.rounds), configuration and configuration[0])
        cost = asdict(measure.cost(model, single, row.strategy, schedule))
        memory = {"cache_bytes": cache_bytes, "peak_bytes": peak_bytes, "prefill_flops_formula": self._formula(single)}
        return times | {f"{name}_ms": seconds * 1e3 for name, seconds in stages.items()} | cost | memory

    def _times(self, inputs: dict[str, Tensor], configuration: Configuration) -> dict[str, float]:
        """The bare model, the limit and the row side by side, as far as they are not the same."""
        schedule = self.row.planned
        side_by_side: dict[str, Configuration] = {BARE: None}
        if schedule != Schedule() and schedule.image is None:
            side_by_side["limit"] = (Limit(), schedule)
        if configuration is not None:
            side_by_side["own"] = configuration
        measured = measure.speeds(
            self.lab.model, inputs, list(side_by_side.values()), rounds=self.rounds, new_tokens=self.new_tokens
        )
        speeds = dict(zip(side_by_side, measured, strict=True))
        bare = speeds[BARE]
        own = speeds.get("own", bare)
        limit = speeds.get("limit", bare if schedule == Schedule() else None)
        if isinstance(own, Exception):
            raise own
        out: dict[str, float] = {}
        for kind in ("prefill", "decode"):
            seconds = getattr(own, kind)
            out |= _with_spread(f"{kind}_ms", measure.ratio(seconds, [1e-3] * len(seconds)))
            if isinstance(bare, measure.Speed):  # a batch may fit only when it is reduced
                out |= _with_spread(f"{kind}_ratio", measure.ratio(seconds, getattr(bare, kind)))
        if isinstance(limit, measure.Speed):
            out |= _with_spread("efficiency", measure.ratio(limit.prefill, own.prefill))
        whole = out["prefill_ms"] + self.new_tokens * out["decode_ms"]
        out["images_per_second"] = self.batch * _images(self.image) / whole * 1e3
        return out

    def _formula(self, single: dict[str, Tensor]) -> float:
        """FLOPs of one prompt by the closed form."""
        model, configuration = self.lab.model, (self.row.strategy, self.row.planned)
        with attached(model, *configuration) as trace:
            measure.prefill(model, single)
        return prefill_flops(model, *configuration, text_tokens=self.length, trace=trace)


def _label(batch: int, length: int, row: Row) -> str:
    return f"{row.label}, batch {batch}, text {length}"


def _with_spread(name: str, found: measure.Ratio) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _images(image: Any) -> int:
    """Images in a prompt; every frame of a video counts."""
    return sum(len(one) if isinstance(one, Video) else 1 for one in as_list(image))


def _counts(name: str, given: Any) -> list[int]:
    """Whole numbers of at least 1, none of them twice."""
    if given is None or isinstance(given, (str, bytes, Mapping)):
        raise LabError(f"{name} must be a list of whole numbers of at least 1, got {given!r}")
    return [check_count(name, value) for value in several(name, given)]


def _inputs(lab: Lab, image: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Model inputs of a batch of equal prompts, whose text is `length` tokens long.

    Raises:
        LabError: the shortest prompt is longer.
    """
    inputs = lab.inputs([image] * batch, [QUESTION] * batch)
    missing = length - measure.text_tokens(lab.model, inputs)
    check_answer(lab.model, positions_of(lab.model, inputs) + max(0, missing), 1)
    if missing < 0:
        inputs = lab.inputs([image] * batch, ["?"] * batch)
        missing = length - measure.text_tokens(lab.model, inputs)
    if missing < 0:
        raise LabError(f"text_tokens must be at least {length - missing}, the prompt around a question; got {length}")
    shape = inputs["input_ids"].shape
    # The last token once more, as often as needed: what the text says is nothing to the clock.
    return {
        name: torch.cat([value, value[:, -1:].expand(-1, missing)], dim=1) if value.shape == shape else value
        for name, value in inputs.items()
    }


def _free() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _table(finished: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(finished, columns=list(COLUMNS))
