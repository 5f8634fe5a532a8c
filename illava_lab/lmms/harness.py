"""lmms-eval, called from Python: which tasks there are, and one task answered by one model."""

from __future__ import annotations

import math
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from numbers import Real
from pathlib import Path
from typing import Any

import numpy as np

from illava_lab.errors import LabError, reason
from illava_lab.lmms import MODEL, TASKS
from illava_lab.lmms.asker import Asker
from illava_lab.measuring import distributed
from illava_lab.measuring.predict import answer_tokens
from illava_lab.measuring.task_files import load_task
from illava_lab.measuring.task_names import EMBEDDED, path_of
from illava_lab.measuring.tasks import Task
from illava_lab.session.lab import Lab
from illava_lab.session.turn import LONGEST

PREFIX = "illava_lab_"


@dataclass(frozen=True, eq=False)
class Wanted:
    """A task that was asked for.

    Attributes:
        name: as in the table.
        own: the lab's task, of which `limit` is drawn; None where it is one of lmms-eval's.
    """

    name: str
    own: Task | None = None

    @property
    def label(self) -> str:
        """What tells it from all others, also where a file of this name has changed."""
        return self.name if self.own is None else f"{self.name} {self.own.digest()[:8]}"


@dataclass(frozen=True)
class Scored:
    """What lmms-eval says about one task.

    Attributes:
        task: its name; a group of tasks has several.
        metric, value: the first metric of the task, and the figure that lmms-eval reports.
        scores: of each document that counts in it its scores, one for each question; empty where none has any.
        clusters: of each of these what it stands or falls with.
        answers: of every document.
    """

    task: str
    metric: str
    value: float
    scores: list[list[float]]
    clusters: list[str]
    answers: list[Any]


def quiet() -> None:
    """Show only what lmms-eval warns of."""
    from loguru import logger

    logger.remove()
    logger.add(sys.stderr, level="WARNING", format="{level}: {message}")


def find_tasks(names: Sequence[str], limit: int | None) -> list[Wanted]:
    """Tasks by name: those of `il.load_task` (also as illava_lab_NAME), Parquet files, and those of lmms-eval.

    Raises:
        LabError: no such task, or one that is given twice.
    """
    out = [_find(name, limit) for name in names]
    for number, one in enumerate(out):
        if one.name in [before.name for before in out[:number]]:
            raise LabError(f"tasks: {one.name!r} is given twice")
    return out


def _find(name: str, limit: int | None) -> Wanted:
    own = name.removeprefix(PREFIX).replace("_", "-") if name.startswith(PREFIX) else name
    if own in EMBEDDED or own.endswith(".parquet"):
        return Wanted(own, load_task(own).limited(limit))
    if name not in _manager().all_tasks:
        raise LabError(
            f"tasks: there is no {name!r}; the lab has {', '.join(EMBEDDED)}, and takes a Parquet file (FILE.parquet); "
            "python -m lmms_eval --tasks list names the others"
        )
    return Wanted(name)


@cache
def _manager(theirs: bool = True) -> Any:
    """What lmms-eval knows tasks by; reading all that it has takes seconds."""
    from lmms_eval.tasks import TaskManager

    return TaskManager("WARNING", None if theirs else str(TASKS), include_defaults=theirs, model_name=MODEL)


def run(wanted: Wanted, asker: Asker, name: str, *, limit: int | None, seed: int, out: Path | None) -> list[Scored]:
    """Let lmms-eval ask a task, with the work divided between the processes.

    Args:
        name: of the model, for progress.
        out: where a task writes files of its own, such as a submission.

    Returns:
        Of the task, or of each task of a group, what came of it; nothing but in the first process.

    Raises:
        Exception: whatever fails here or in another process.
    """
    import torch
    from lmms_eval.evaluator import simple_evaluate

    from illava_lab.lmms.model import IllavaLab

    model = IllavaLab.asking(asker, name)
    random = torch.random.get_rng_state()
    failure: Exception | None = None
    results: Any = None
    try:
        results = simple_evaluate(
            model=model,
            tasks=[_own(wanted, asker.lab, limit) if wanted.own else wanted.name],
            task_manager=_manager(wanted.own is None),
            batch_size=asker.batch_size,
            limit=None if wanted.own else limit,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
            cli_args=Namespace(process_with_media=False, output_path=str(out or "."), reasoning_tags=None),
            distributed_executor_backend="accelerate" if distributed.device() is None else "torchrun",
        )
    except Exception as error:  # a stranger's task may fail in any way
        failure = error
    finally:
        torch.random.set_rng_state(random)
    failure = model.failure or failure
    # Whatever failed here, the other processes wait for an answer.
    reasons = distributed.gather([reason(failure) if failure else None])
    if failure:
        raise failure
    if any(reasons):
        raise LabError(next(filter(None, reasons)))
    return [] if results is None else scored(results)


def _own(wanted: Wanted, lab: Lab, limit: int | None) -> Any:
    """The lab's task as lmms-eval's: from the YAML file of an embedded one, with another file and limit."""
    from lmms_eval.api.task import ConfigurableMessagesTask
    from lmms_eval.utils import load_yaml_config

    task = wanted.own
    assert task is not None
    template = "_conversation_yaml" if task.conversations else "_one_question_yaml"
    given: dict[str, Any] = load_yaml_config(str(TASKS / template), mode="full")
    longest = LONGEST if task.conversations else answer_tokens(lab, task)
    configuration = given | {
        "task": wanted.name,
        "dataset_kwargs": {"data_files": {"test": str(path_of(wanted.name).resolve())}},
        "process_docs": partial(given["process_docs"], limit=limit),
        "generation_kwargs": given["generation_kwargs"] | {"max_new_tokens": longest},
    }
    return ConfigurableMessagesTask(config=configuration, model_name=MODEL)


def scored(results: Mapping[str, Any]) -> list[Scored]:
    """What `simple_evaluate` returns, by task."""
    return [_scored(task, samples, results) for task, samples in results["samples"].items()]


def _scored(task: str, samples: list[Mapping[str, Any]], results: Mapping[str, Any]) -> Scored:
    configuration, figures = results["configs"][task], results["results"][task]
    metric = str((configuration.get("metric_list") or [{}])[0].get("metric"))
    value = next((figure for name, figure in figures.items() if name.split(",")[0] == metric), None)
    samples = sorted(samples, key=lambda sample: sample["doc_id"])
    counted = [sample for sample in samples if metric in sample]  # MME's figures are each of other questions
    items = [sample[metric] for sample in counted]
    scores = [_scores(item, configuration.get("score_key") or "score") for item in items]
    cluster = configuration.get("cluster_key")
    return Scored(
        task=task,
        metric=metric,
        value=float(value) if isinstance(value, Real) else math.nan,
        scores=[one for one in scores if one is not None] if None not in scores else [],
        clusters=[
            str(item[cluster] if isinstance(item, Mapping) and cluster in item else sample["doc_id"])
            for item, sample in zip(items, counted, strict=True)
        ],
        answers=[_text(sample["filtered_resps"][0]) for sample in samples],
    )


def _scores(item: Any, key: str) -> list[float] | None:
    """What a document counts by itself: of the lab's tasks one score for each of its questions."""
    if isinstance(item, Mapping):
        item = item.get("right", item.get(key))
    found = item if isinstance(item, list) else [item]
    numbers = all(isinstance(one, (Real, np.bool_)) for one in found)
    return [float(one) for one in found] if numbers else None


def _text(answer: Any) -> Any:
    """An answer as it can be stored: a text, or those of several rounds."""
    return [str(one) for one in answer] if isinstance(answer, (list, tuple)) else str(answer)
