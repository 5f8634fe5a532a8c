"""bench: how fast strategies are, and how near each comes to the fastest that dropping as many tokens can be."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import date
from os import PathLike
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import transformers
from torch import Tensor
from tqdm.auto import tqdm

from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.measuring import measure
from illava_lab.measuring.compare import aligned
from illava_lab.measuring.rows import (
    BASELINE,
    Row,
    baseline,
    budgets,
    check_count,
    named_strategies,
    preset_rows,
    reason,
    rows,
)
from illava_lab.measuring.runlog import RunLog, model_settings, write_whole
from illava_lab.measuring.tasks import load_task
from illava_lab.method.strategy import STAGES, Strategy, TokenMap, Tokens, highest
from illava_lab.models.video import Video
from illava_lab.schedules.flops import prefill_flops
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.lab import Lab

COLUMNS = (
    "strategy", "keep", "flops", "preset", "batch", "text_tokens", "new_tokens", "seed",
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


class Limit(Strategy):
    """What a strategy's speed is held against: it drops tokens by a list that was made once, before the clock ran.

    It neither scores nor merges, but goes through the same hooks: what those cost is in both, and is seen in the
    difference between the bare model and this.
    """

    name = "limit"
    kind = "prune"
    stages = STAGES

    lists: dict[tuple, TokenMap] = field(default_factory=dict, repr=False)

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        place = (tokens.stage, tokens.layer, tokens.batch, tokens.count, keep)
        if place not in self.lists:
            score = torch.rand(tokens.count, generator=torch.Generator().manual_seed(0)).to(tokens.hidden.device)
            kept = highest(score.expand(tokens.batch, -1), keep, tokens)
            self.lists[place] = TokenMap.keep(kept, tokens.count)
        return self.lists[place]


def bench(
    lab: Lab,
    strategies: Sequence[str | Strategy | type[Strategy]] = (),
    keep: Sequence[float] | float | None = None,
    *,
    flops: Sequence[float] | float | None = None,
    presets: Sequence[str] = (),
    batch_sizes: Sequence[int] = (1,),
    text_tokens: Sequence[int] | None = None,
    shown: Any = None,
    new_tokens: int = 16,
    rounds: int = 5,
    seed: int = 0,
    out: str | PathLike | None = None,
    progress: bool = True,
) -> pd.DataFrame:
    """Measure what strategies cost, at every budget, batch size and prompt length.

    For each batch size and prompt length the first row is the model with nothing attached ("bare"), the second the
    model with the strategy "none" attached. Each row is timed in rounds with the bare model and with its limit
    (`Limit`), so that a machine that is now fast and now slow is so for all three. What fails, or is out of memory, is
    a row whose `status` says why; the others go on.

    Args:
        strategies: registered names, Strategy classes or instances.
        keep: fractions of the visual tokens that the last LLM layer sees; 0.5 if strategies are given without a budget.
        flops: fractions of the bare model's prefill FLOPs; see `Schedule.for_budget`.
        presets: names of papers' settings, each a row with its own strategy; see `illava_lab.schedules.presets`.
        batch_sizes: prompts at once.
        text_tokens: lengths of the text in a prompt; None for that of a short question.
        shown: what each prompt shows: an image, a Video, or a list of those; None for a picture of the test set.
        new_tokens: decoding steps after each prefill.
        rounds: how often each row is timed, after one round of warm-up.
        seed: of strategies that have a `seed` and are not given as instances.
        out: folder for `table.csv`, `bench.json` (rows, machine, versions, command) and `run.jsonl`, from which a
            stopped call goes on; a row is measured again only if it failed or its strategy's code changed.
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
        counts for one prompt, `prefill_flops_formula` the closed form with what a run left. `cache_bytes` and `peak_bytes`
        (above weights and inputs; see `measure.memory`) are of the batch.

    Raises:
        LabError: bad arguments, before any work.
    """
    only_presets = presets and not strategies and keep is None and flops is None
    named = {} if only_presets else named_strategies(strategies, seed)
    if keep is None and flops is None:
        keep = 0.5
    shares = budgets(keep, flops)
    for name, values in {"batch_sizes": batch_sizes, "text_tokens": text_tokens or (1,)}.items():
        for value in values:
            check_count(name, value)
    check_count("rounds", rounds)
    check_count("new_tokens", new_tokens)
    check_count("seed", seed, least=0)
    if shown is None:
        shown = load_task("test").image(load_task("test").samples["image_id"].iloc[0])
    lengths = text_tokens or [measure.text_tokens(lab.model, lab.inputs([shown], [QUESTION]))]
    cases = []
    for length in lengths:
        single = _inputs(lab, shown, 1, length)  # a length that cannot be is refused before any work
        layouts = measure.layouts(lab.model, single) if "flops" in dict(shares) else None
        plan = [replace(baseline(), name=BARE), baseline()]
        plan += [*rows(lab.model, named, shares, length, layouts), *preset_rows(lab.model, presets)]
        cases += [(batch, length, row) for batch in batch_sizes for row in plan]

    settings = {"seed": seed, "new_tokens": new_tokens, "rounds": rounds, "threads": torch.get_num_threads()}
    log = None if out is None else RunLog(Path(out), model_settings(lab) | settings, "measurements")
    finished: list[dict[str, Any]] = []
    with tqdm(cases, desc="bench", unit="row", disable=not progress, dynamic_ncols=True) as bar:
        for batch, length, row in bar:
            label = f"{row.label}, batch {batch}, text {length}"
            bar.set_postfix_str(label)
            entry = log.finished(label, row) if log else None
            values = entry["row"] if entry else None
            if values is None:
                case = _Case(lab, shown, batch, length, row, rounds, new_tokens)
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
        write_whole(log.folder / "bench.json", json.dumps({"about": about, "rows": finished}, indent=1) + "\n")
    return _table(finished)


def environment(lab: Lab) -> dict[str, Any]:
    """What a table of times is worth nothing without: model, machine, versions, date."""
    return {
        "model": lab.source,
        "dtype": str(lab.model.dtype).removeprefix("torch."),
        "device": torch.cuda.get_device_name(lab.model.device) if lab.model.device.type == "cuda" else "cpu",
        "processor": machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "transformers": transformers.__version__,
        "date": date.today().isoformat(),
    }


def machine() -> str:
    """Name of the processor, as far as the system tells, and its cores."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    name = next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())
    return f"{name}, {os.cpu_count()} cores"


# ---------------------------------------------------------------------------------------------- one row
@dataclass(frozen=True, eq=False)
class _Case:
    """One row to measure."""

    lab: Lab
    shown: Any
    batch: int
    length: int
    row: Row
    rounds: int
    new_tokens: int

    def measure(self) -> dict[str, Any]:
        row, model = self.row, self.lab.model
        if isinstance(row.schedule, Exception):
            raise row.schedule
        inputs, single = (_inputs(self.lab, self.shown, batch, self.length) for batch in (self.batch, 1))
        configuration = None if row.name == BARE else (row.strategy, row.schedule)
        times = self._times(inputs, configuration)
        with measure.attached(model, configuration):
            cache_bytes, peak_bytes = measure.memory(model, inputs)
            stages = measure.stage_seconds(model, inputs, min(3, self.rounds), configuration and configuration[0])
        cost = asdict(measure.cost(model, single, row.strategy, row.schedule))
        memory = {"cache_bytes": cache_bytes, "peak_bytes": peak_bytes, "prefill_flops_formula": self._formula(single)}
        return times | {f"{name}_ms": seconds * 1e3 for name, seconds in stages.items()} | cost | memory

    def _times(self, inputs: dict[str, Tensor], configuration: measure.Configuration) -> dict[str, float]:
        """The bare model, the limit and the row side by side, as far as they are not the same."""
        schedule, side_by_side = self.row.schedule, {BARE: None}
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
        out = {}
        for kind in ("prefill", "decode"):
            seconds = getattr(own, kind)
            out |= _with_spread(f"{kind}_ms", measure.ratio(seconds, [1e-3] * len(seconds)))
            if isinstance(bare, measure.Speed):  # a batch may fit only when it is reduced
                out |= _with_spread(f"{kind}_ratio", measure.ratio(seconds, getattr(bare, kind)))
        if isinstance(limit, measure.Speed):
            out |= _with_spread("efficiency", measure.ratio(limit.prefill, own.prefill))
        whole = out["prefill_ms"] + self.new_tokens * out["decode_ms"]
        out["images_per_second"] = self.batch * _images(self.shown) / whole * 1e3
        return out

    def _formula(self, single: dict[str, Tensor]) -> float:
        """FLOPs of one prompt by the closed form."""
        model, configuration = self.lab.model, (self.row.strategy, self.row.schedule)
        with attach(model, *configuration) as trace:
            measure.prefill(model, single)
        return prefill_flops(model, *configuration, text_tokens=self.length, trace=trace)


def _with_spread(name: str, found: measure.Ratio) -> dict[str, float]:
    return {name: found.value, f"{name}_low": found.low, f"{name}_high": found.high}


def _images(shown: Any) -> int:
    """Images in a prompt; every frame of a video counts."""
    several = shown if isinstance(shown, (list, tuple)) else [shown]
    return sum(len(one) if isinstance(one, Video) else 1 for one in several)


def _inputs(lab: Lab, shown: Any, batch: int, length: int) -> dict[str, Tensor]:
    """Model inputs of a batch of equal prompts, whose text is `length` tokens long.

    Raises:
        LabError: the shortest prompt is longer.
    """
    inputs = lab.inputs([shown] * batch, [QUESTION] * batch)
    missing = length - measure.text_tokens(lab.model, inputs)
    if missing < 0:
        inputs = lab.inputs([shown] * batch, ["?"] * batch)
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


# ---------------------------------------------------------------------------------------------- reading it
def summary(table: pd.DataFrame) -> str:
    """The main columns of a table from `bench`, for people: at most 120 characters wide.

    "x bare" are multiples of the bare model's time, "limit" is the efficiency in percent; ± is half the width of the
    middle half of the rounds. FLOPs are for one prompt, the other columns for the batch.
    """
    heads = (
        "strategy", "budget", "prefill ms", "x bare", "limit %", "decode ms", "x bare", "images/s", "GFLOP", "cache MB",
        "peak MB",
    )  # fmt: skip
    parts = []
    for (batch, length), part in table.groupby(["batch", "text_tokens"], sort=False):
        good = part[part["status"] == "ok"]
        lines = [heads]
        for row in good.itertuples():
            lines.append(
                (
                    str(row.strategy)[:32],
                    _budget(row),
                    f"{row.prefill_ms:.1f}",
                    _spread(row, "prefill_ratio", 1, 3),
                    _spread(row, "efficiency", 100, 1),
                    f"{row.decode_ms:.2f}",
                    _number(row.decode_ratio, 2),
                    f"{row.images_per_second:.2f}",
                    f"{row.prefill_flops / 1e9:.4g}",
                    _number(row.cache_bytes / 1e6, 2),
                    _number(row.peak_bytes / 1e6, 1),
                )
            )
        parts.append("\n".join([f"Batch {batch}, {length} tokens of text", *aligned(lines)]))
        heading = f"Where the time goes, ms, with {part['new_tokens'].iloc[0]} decoding steps"
        parts.append("\n".join([heading, *aligned(_split(good))]))
        failed = part[part["status"] != "ok"]
        parts += [f"{row.strategy} {_budget(row)}: {row.status}"[:120] for row in failed.itertuples()]
    off = table["prefill_flops"] / table["prefill_flops_formula"] - 1
    if (off.abs() > 0.01).any():
        parts.append(f"FLOPs: the count and the closed form differ by up to {off.abs().max():.1%}")
    return "\n\n".join(parts)


def _split(good: pd.DataFrame) -> list[tuple[str, ...]]:
    """Amdahl's view: what of the whole each part takes; and what of the prefill goes into choosing what to keep."""
    lines = [("strategy", "budget", "encoder", "projector", "LLM prefill", "rest", "decode", "choosing")]
    for row in good.itertuples():
        times = [getattr(row, f"{stage}_ms") for stage in measure.STAGES] + [row.decode_ms * row.new_tokens]
        shares = [f"{t:.1f} ({t / sum(times):.0%})" for t in times]
        prefill = sum(times[:-1])
        choosing = f"{row.choice_ms:.1f} ({row.choice_ms / prefill:.1%})"
        lines.append((str(row.strategy)[:32], _budget(row), *shares, choosing))
    return lines


def _budget(row: Any) -> str:
    if row.strategy in (BARE, BASELINE):
        return ""
    if isinstance(row.preset, str):
        return row.preset
    return f"FLOPs {row.flops:g}" if math.isnan(row.keep) else f"keep {row.keep:g}"


def _number(value: float, digits: int) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _spread(row: Any, column: str, scale: float, digits: int) -> str:
    value, low, high = (getattr(row, name) * scale for name in (column, f"{column}_low", f"{column}_high"))
    return "-" if math.isnan(value) else f"{value:.{digits}f} ±{(high - low) / 2:.{digits}f}"
