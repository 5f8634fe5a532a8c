"""What the embedded model is trained on: batches of scenes with packed questions, made on the fly; and the recipe."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from architecture import GRID, build_tokenizer
from concepts import ANCHORS, CONCEPTS, patch_labels
from contrast import ROOM, caption
from scenes import CATEGORIES, Scene, ask, draw, make_scene
from torch import Tensor
from torch.utils.data import IterableDataset

PATCHES = GRID * GRID
PROMPT = build_tokenizer().encode("USER:")  # before the picture, with <s>
PREFIX = len(PROMPT)
CONCEPT_IDS = [build_tokenizer().convert_tokens_to_ids(list(words)) for words in CONCEPTS]
SLOTS = 40  # oracle visual tokens per scene
TEXT = {"mind": 200, "joint": 144}  # room for packed questions
TURNS = 4  # of the longest conversation
LATER = "later turns"  # beside the categories: all questions that are not the first of their conversation
# Of each phase: steps, learning rate, the last part of the steps in which it falls, weights of the losses.
RECIPE = {
    "eyes": (800, 2e-3, 0.0, {"dense": 1.0, "contrast": 0.5}),
    "mind": (1200, 2e-3, 0.4, {"answer": 1.0}),
    "align": (1300, 2e-3, 0.4, {"dense": 1.0, "align": 1.0, "contrast": 0.3}),
    "joint": (1000, 1e-3, 0.6, {"dense": 0.5, "align": 0.3, "contrast": 0.2, "answer": 1.0}),
}
Batch = dict[str, Tensor]


class Scenes(IterableDataset):
    """Batches by step number, so that a resumed run goes on where it stopped."""

    def __init__(self, phase: str, split: str, seed: int, start: int, stop: int, batch: int):
        self.phase, self.split, self.seed, self.steps, self.batch = phase, split, seed, (start, stop), batch
        self.tokenizer = build_tokenizer()

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        first, every = (info.id, info.num_workers) if info else (0, 1)
        for step in range(self.steps[0] + first, self.steps[1], every):
            rng = np.random.default_rng([self.seed, list(RECIPE).index(self.phase), step])
            rows = [self.example(rng) for _ in range(self.batch)]
            yield {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        seeing = self.phase in ("eyes", "align")
        scene = make_scene(rng, self.split, crowded=seeing and rng.random() < 0.7)
        row = {"labels": patch_labels(scene)}
        if self.phase != "mind":
            row["pixels"] = np.asarray(draw(scene))
            row["caption"] = padded(self.tokenizer.encode(caption(scene, rng), add_special_tokens=False), ROOM)
        if not seeing:
            row |= self.pack(scene, rng, TEXT[self.phase])
        if self.phase == "mind":
            row["slots"] = sample_slots(row["labels"], rng)
        return row

    def pack(self, scene: Scene, rng: np.random.Generator, room: int) -> dict[str, np.ndarray]:
        """Conversations side by side, half of them of one question. `block` keeps them from seeing each other,
        `position` starts each right behind the picture: the model sees exactly what it will see with one of them."""
        out = {name: np.zeros(room, np.int64) for name in ("ids", "block", "position", "asked", "category", "later")}
        out["target"] = np.full(room, -100)
        order = list(rng.permutation(len(CATEGORIES)))
        order += list(rng.integers(len(CATEGORIES), size=room // 12))
        used, number, begun, left = 0, 0, 0, 0
        for index in order:
            question = ask(scene, rng, CATEGORIES[index])
            if question is None:
                continue
            first = left == 0
            if first:
                begun, left = used, int(rng.integers(2, TURNS + 1)) if rng.random() < 0.5 else 1
            text = question.text + " ASSISTANT:" if first else "USER: " + question.text + " ASSISTANT:"
            prompt = self.tokenizer.encode(text, add_special_tokens=False)
            if rng.random() < 0.05:  # an unknown word does no harm
                prompt.insert(int(rng.integers(len(prompt) - 2)), self.tokenizer.unk_token_id)
            answer = [*self.tokenizer.encode(question.answer, add_special_tokens=False), self.tokenizer.eos_token_id]
            span = slice(used, used + len(prompt) + len(answer))
            if span.stop > room:
                break
            number, left = number + 1, left - 1
            out["ids"][span] = prompt + answer
            out["block"][span] = begun + 1
            out["position"][span] = PREFIX + PATCHES + np.arange(span.start, span.stop) - begun
            out["target"][span.stop - len(answer) - 1 : span.stop - 1] = answer
            out["asked"][span], out["category"][span], out["later"][span] = number, index, not first
            used = span.stop
        return out


def padded(ids: list[int], room: int) -> np.ndarray:
    return np.array([*ids, *[0] * (room - len(ids))])


def sample_slots(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which patches the oracle shows: all anchors, else mostly patches on objects."""
    chance = np.where(labels[:, 0] > 0, 1.0, 0.15) * rng.random(PATCHES)
    chance[ANCHORS] = 2.0
    return np.sort(np.argsort(-chance)[:SLOTS])
