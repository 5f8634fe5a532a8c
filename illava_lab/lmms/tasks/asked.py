"""The lab's tasks, as the YAML files beside this one name them to lmms-eval: what is asked, shown, and right.

A document holds what one image_id shows, and its question; in a conversation all of its questions, a round each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from illava_lab.measuring.batches import batches
from illava_lab.measuring.predict import is_right
from illava_lab.measuring.task_files import task_of
from illava_lab.measuring.task_names import EMBEDDED, path_of
from illava_lab.measuring.tasks import FPS, Task
from illava_lab.models.images import read_image
from illava_lab.models.video import Video, read_video

Doc = dict[str, Any]


def __getattr__(name: str) -> dict[str, Any]:
    """Where a task's questions are, which a YAML file cannot say: `multi_image` has those of "multi-image"."""
    task = name.replace("_", "-")
    if task not in EMBEDDED:
        raise AttributeError(name)
    return {"data_files": {"test": str(path_of(task))}}


def documents(table: Any, limit: int | None = None) -> Any:
    """The questions of a Parquet file (a Dataset), all or as many as `Task.limited` draws."""
    from datasets import Dataset

    return Dataset.from_list(docs_of(task_of("of lmms-eval", table.to_pandas()).limited(limit)))


def docs_of(task: Task) -> list[Doc]:
    """The documents of a task, in the order of its rows."""
    asked = [rows for batch in batches(task, 1) for rows in batch]
    return [_document(task, rows) for rows in sorted(asked, key=min)]


def _document(task: Task, rows: list[int]) -> Doc:
    own = task.samples.iloc[rows]
    questions, answers = own["question"].tolist(), own["answer"].tolist()
    return {
        "image_id": own["image_id"].iloc[0],
        "kind": task.kind,
        "pictures": list(task.encoded(own["image_id"].iloc[0])),
        "question": questions[0],
        "questions": questions,
        "answer": " | ".join(answers),
        "answers": answers,
        "categories": own["category"].tolist(),
    }


def pictures(doc: Doc) -> list[Any]:
    """The decoded pictures, or the frames of a video."""
    return [read_image(data) for data in doc["pictures"]]


def messages(
    doc: Doc,
    round_idx: int | None = None,
    previous_output: Sequence[str] = (),
    previous_round_info: Any = None,
) -> Any:
    """The prompt; of a round of a conversation all that was said, whether it is over, and what was answered."""
    asked = doc["questions"]
    if round_idx is None:
        return [_user([*_shown(doc), asked[0]])]
    if round_idx == len(asked):
        return None, True, previous_output, previous_round_info
    said = [_user([*_shown(doc), asked[0]])]
    for answer, question in zip(previous_output, asked[1:], strict=False):
        said += [{"role": "assistant", "content": [{"type": "text", "text": answer}]}, _user([question])]
    return said, False, previous_output, previous_round_info


def _shown(doc: Doc) -> list[Any]:
    seen = pictures(doc)
    return [read_video(seen, frames=len(seen), fps=FPS)] if doc["kind"] == "frames" else seen


def _user(parts: list[Any]) -> dict[str, Any]:
    content: list[dict[str, Any]] = []
    for part in parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": part})
        else:
            content.append({"type": "video" if isinstance(part, Video) else "image", "url": part})
    return {"role": "user", "content": content}


def results(doc: Doc, said: list[Any]) -> dict[str, Any]:
    """Which answers to a document's questions are right."""
    given = said[0] if isinstance(said[0], list) else said
    right = [is_right(*pair) for pair in zip(given, doc["answers"], strict=True)]
    score = sum(right) / len(right)
    return {"accuracy": {"score": score, "right": right, "image_id": doc["image_id"], "categories": doc["categories"]}}


def accuracy(items: list[dict[str, Any]]) -> float:
    """Share of the questions that were answered right."""
    right = [one for item in items for one in item["right"]]
    return sum(right) / len(right)
