"""A model: does it load, is it left as it is, does it answer with fewer tokens?"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from illava_lab.doctor.report import Report
from illava_lab.doctor.unsupported import list_unsupported
from illava_lab.errors import LabError
from illava_lab.hooks.attach import attach
from illava_lab.method.registry import make_strategy
from illava_lab.models.families import kinds_of
from illava_lab.paths import data_dir
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.generation import CHOOSING, check_defaults
from illava_lab.session.lab import Lab
from illava_lab.session.load import load

PICTURE, QUESTION = "shapes.png", "What color is the circle?"
ANSWER = "red"  # of the embedded model; what others know is not known
STRATEGY, KEEP = "illava", 0.5
# Of what a checkpoint may ask for, these say nothing where nothing is sampled, or no word ends.
IDLE = {
    "do_sample", "temperature", "top_k", "top_p", "min_p", "top_h", "typical_p", "epsilon_cutoff", "eta_cutoff",
    "pad_token_id",
}  # fmt: skip
# How far logits may be apart where only rounding differs, as a share of their spread.
TOLERANCE = {torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True, eq=False)
class Bare:
    """What the model gives for the question with nothing attached.

    Attributes:
        inputs: model inputs of the question.
        logits: (1, S, V).
        seconds: of that prefill, the second one.
    """

    inputs: dict[str, Tensor]
    logits: Tensor
    seconds: float


def examine(report: Report, source: str | None, place: dict[str, Any]) -> None:
    """Report all about one model; `place` is what `load` takes behind the source.

    Raises:
        LabError: it cannot be loaded, and so nothing else be tried.
    """
    start = time.perf_counter()
    lab = load(source, **place)
    report.good("loads", f"in {time.perf_counter() - start:.1f} s: {_described(lab)}")
    report.attempt("generation", lambda: report.good("generation", _generation(lab)))
    bare = report.attempt("prefill", lambda: _prefill(report, lab))
    if bare is not None:
        report.attempt("identity", lambda: report.good("identity", _identity(lab, bare)))
        report.attempt("all kept", lambda: report.good("all kept", _all_kept(lab, bare)))
        report.attempt("reduced", lambda: report.good("reduced", _reduced(lab, source is None)))
        report.attempt("afterwards", lambda: report.good("afterwards", _same(_logits(lab, bare.inputs), bare.logits)))
    report.section("Not supported with this model, here")
    report.attempt("unsupported", lambda: list_unsupported(report, lab, bare))


def _described(lab: Lab) -> str:
    model, config = lab.model, lab.model.config
    sizes = {id(parameter): parameter.numel() for parameter in model.parameters()}
    places = sorted({str(parameter.device) for parameter in model.parameters()})
    weights = f"{sum(sizes.values()):,} parameters in {str(model.dtype).removeprefix('torch.')}"
    return f"{kinds_of(config)}, {weights} on {', '.join(places)}, attention {config._attn_implementation}"


def _generation(lab: Lab) -> str:
    """How answers are made: greedily, with whatever else the checkpoint's generation_config asks for."""
    check_defaults(lab.model)
    given = lab.model.generation_config.to_diff_dict()
    asked = ", ".join(f"{name}={given[name]!r}" for name in sorted(CHOOSING - IDLE) if given.get(name) is not None)
    return f"greedy, with the checkpoint's {asked}" if asked else "greedy"


def _prefill(report: Report, lab: Lab) -> Bare:
    inputs = lab.inputs([data_dir() / "samples" / PICTURE], [QUESTION])
    _logits(lab, inputs)  # the first one also sets libraries up
    start = time.perf_counter()
    logits = _logits(lab, inputs)
    bare = Bare(inputs, logits, time.perf_counter() - start)
    if not bool(logits.isfinite().all()):
        raise LabError("logits that are no finite numbers; try another dtype")
    visual = int((inputs["input_ids"] == lab.model.config.image_token_id).sum())
    report.good("prefill", f"{bare.seconds:.2f} s for {logits.shape[1]} tokens, of which {visual} are visual")
    return bare


def _logits(lab: Lab, inputs: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return lab.model(**inputs).logits.cpu()


def _identity(lab: Lab, bare: Bare) -> str:
    with attach(lab.model, "none"):
        logits = _logits(lab, bare.inputs)
    return f"with nothing reduced, {_same(logits, bare.logits)}"


def _all_kept(lab: Lab, bare: Bare) -> str:
    half = Schedule.for_budget(make_strategy(STRATEGY), lab.model, keep=KEEP)
    whole = Schedule(dict.fromkeys(half.encoder, 1.0), dict.fromkeys(half.llm, 1.0))
    with attach(lab.model, STRATEGY, whole):
        logits = _logits(lab, bare.inputs)
    return f"with {STRATEGY} in its layers and every token kept, {_same(logits, bare.logits)}"


def _reduced(lab: Lab, embedded: bool) -> str:
    answer = lab.ask(data_dir() / "samples" / PICTURE, QUESTION, STRATEGY, keep=KEEP, max_new_tokens=16)
    steps = [step for step in answer.trace.steps if step.after < step.before]
    if not steps:
        raise LabError(f"{STRATEGY} at keep {KEEP} reduced nothing")
    if embedded and answer.text != ANSWER:
        raise LabError(f"{QUESTION!r} is answered by {answer.text!r:.80}, and was by {ANSWER!r} when it was published")
    took = ", ".join(f"{step.stage} layer {step.layer}: {step.before} -> {step.after}" for step in steps)
    return f"{QUESTION!r} with {STRATEGY}, keep {KEEP}: {answer.text!r:.80}; {took}"


def _same(logits: Tensor, bare: Tensor) -> str:
    """How the logits compare with those of the bare model.

    Raises:
        LabError: they differ by more than rounding.
    """
    if torch.equal(logits, bare):
        return "the logits of the bare model to the bit"
    apart = float((logits.float() - bare.float()).abs().max() / bare.float().std())
    said = f"logits {apart:.1e} of their spread from those of the bare model"
    if apart > TOLERANCE.get(bare.dtype, TOLERANCE[torch.float32]):
        raise LabError(f"{said}, which is more than rounding")
    return said
