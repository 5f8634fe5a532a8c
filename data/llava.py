"""LLaVA-1.5's kind: what the model is trained on, phase by phase, and how it is scored."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import decoder
import numpy as np
import torch
from clip_llama import GRID, build_model, build_processor, tokenizer
from concepts import ANCHORS, GROUPS, KINDS, patch_labels
from contrast import ROOM, TextTower, caption, contrast_loss, likeness
from decoder import Batch, answer_loss
from losses import align_loss, dense_loss, fit, oracle
from packing import my_steps, pack
from questions import ask
from safetensors.torch import save_file
from saving import halved, save
from scenes import CATEGORIES, DIGITS, SHAPES, WORDS, draw, make_scene
from torch import Tensor, nn
from torch.utils.data import IterableDataset

PATCHES = GRID * GRID
SIZES = [len(group) for group in GROUPS.values()]
SLOTS = 40  # oracle visual tokens per scene
TEXT = {"mind": 200, "joint": 144}  # room for packed questions


class Scenes(IterableDataset):
    """Batches by step number, so that a resumed run goes on where it stopped."""

    def __init__(self, phase: str, split: str, seed: int, start: int, stop: int, rows: int = 32) -> None:
        self.phase, self.split, self.seed, self.steps, self.rows = phase, split, seed, (start, stop), rows
        self.tokenizer = tokenizer()

    def __iter__(self) -> Iterator[list[Batch]]:
        for step in my_steps(*self.steps):
            rng = np.random.default_rng([self.seed, list(Pupil.RECIPE).index(self.phase), step])
            rows = [self.example(rng) for _ in range(self.rows)]
            yield [{key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}]

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        seeing = self.phase in ("eyes", "align")
        scene = make_scene(rng, self.split, crowded=seeing and rng.random() < 0.7)
        row = {"labels": patch_labels(scene)}
        if self.phase != "mind":
            row["pixels"] = np.asarray(draw(scene))
            ids = self.tokenizer.encode(caption(scene, rng), add_special_tokens=False)
            row["caption"] = np.array([*ids, *[0] * (ROOM - len(ids))])
        if not seeing:
            row |= pack(lambda kind: ask(scene, rng, kind), CATEGORIES, rng, TEXT[self.phase], self.tokenizer)
        if self.phase == "mind":
            row["slots"] = sample_slots(row["labels"], rng)
        return row


def sample_slots(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which patches the oracle shows: all anchors, else mostly patches on objects."""
    chance = np.where(labels[:, 0] > 0, 1.0, 0.15) * rng.random(PATCHES)
    chance[ANCHORS] = 2.0
    return np.sort(np.argsort(-chance)[:SLOTS])


class Pupil(nn.Module):
    """The model with what only its training needs: a head that names what patches show, and a text tower."""

    # Of each phase: steps, learning rate, the last part of the steps in which it falls, weights of the losses.
    RECIPE: ClassVar = {
        "eyes": (800, 2e-3, 0.0, {"dense": 1.0, "contrast": 0.5}),
        "mind": (1200, 2e-3, 0.4, {"answer": 1.0}),
        "align": (1300, 2e-3, 0.4, {"dense": 1.0, "align": 1.0, "contrast": 0.3}),
        "joint": (1000, 1e-3, 0.6, {"dense": 0.5, "align": 0.3, "contrast": 0.2, "answer": 1.0}),
    }
    Batches = Scenes

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.model = build_model(seed)
        config = self.model.config
        self.head = nn.Linear(config.text_config.hidden_size, sum(SIZES))
        self.text = TextTower(config.text_config.vocab_size, config.vision_config.hidden_size)
        start = tokenizer().encode("USER:")  # before the picture, with <s>
        self.register_buffer("start", torch.tensor(start), persistent=False)
        encode = tokenizer().convert_tokens_to_ids
        self.concepts = [[encode(list(words)) for words in group] for group in GROUPS.values()]

    def learning(self, phase: str) -> list[nn.Module]:
        """The parts that change in a phase."""
        core = self.model.model
        eyes = [core.vision_tower, core.multi_modal_projector, self.head, self.text]
        mind = [core.language_model, self.model.lm_head]
        return {"eyes": eyes, "align": eyes, "mind": mind, "joint": eyes + mind}[phase]

    def tables(self) -> list[Tensor]:
        """Sum of word embeddings for each concept, by group."""
        words = self.model.get_input_embeddings().weight
        return [torch.stack([words[ids].sum(0) for ids in group]) for group in self.concepts]

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Projected visual tokens, by the same path as LlavaModel.get_image_features; and the pooled CLS."""
        pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        core = self.model.model
        hidden = core.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        return core.multi_modal_projector(hidden[:, 1:]), core.vision_tower.post_layernorm(hidden[:, 0])

    def say(self, visual: Tensor, places: Tensor, batch: Batch) -> Tensor:
        """Hidden states of the text behind these visual tokens (at these places of the picture)."""
        core, start = self.model.model, self.start
        words = core.get_input_embeddings()(start).expand(len(visual), -1, -1)
        before = torch.arange(len(start), device=start.device).expand(len(visual), -1)
        batch = {**batch, "begin": torch.tensor(len(start) + PATCHES, device=start.device)}
        shown = torch.cat([words, visual], 1)
        return decoder.run(core.language_model, shown, torch.cat([before, len(start) + places], 1), batch)[0]

    def losses(self, phase: str, batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
        """The losses, and right (1) or wrong (0) one by one for all that can be scored."""
        (batch,), parts, tables = batches, {}, self.tables()
        scores: dict[str, list[float]] = defaultdict(list)
        if phase == "mind":
            visual, places = noisy_oracle(batch, tables), batch["slots"]
        else:
            visual, pooled = self.see(batch["pixels"])
            places = torch.arange(PATCHES, device=visual.device).expand(len(visual), PATCHES)
            logits = self.head(visual).float().split(SIZES, -1)
            parts["dense"] = dense_loss(logits, batch["labels"])
            found = likeness(pooled, self.text(batch["caption"]), self.text.scale)
            parts["contrast"] = contrast_loss(found)
            scores |= seen(logits, batch["labels"])
            scores["captions"] = (found.argmax(-1).cpu() == torch.arange(len(found))).float().tolist()
        if phase in ("align", "joint"):
            parts["align"] = align_loss(visual, batch["labels"], tables)
        if phase in ("mind", "joint"):
            hidden = self.say(visual, places, batch)
            parts["answer"], answers = answer_loss(self.model.lm_head, hidden, batch)
            for category, later, right in answers.tolist():
                scores[CATEGORIES[category]].append(right)
                if later:
                    scores["later turns"].append(right)
        return parts, scores

    @torch.no_grad()
    def refit(self, seed: int, to: Callable[[list[Batch]], list[Batch]]) -> None:
        """Least squares from the trained tower's features to the oracle tokens, so that alignment starts near its goal:
        from the head's own coordinates its first gradients would wreck the tower."""
        projector, tables = self.model.model.multi_modal_projector, self.tables()
        inside, wanted, logits = [], [], []
        keep = projector.linear_2.register_forward_pre_hook(lambda _, args: inside.append(args[0].flatten(0, 1)))
        for (batch,) in map(to, Scenes("eyes", "train", seed, 0, 16)):
            logits.append(self.head(self.see(batch["pixels"])[0]).flatten(0, 1))
            wanted.append(oracle(batch["labels"], tables).flatten(0, 1))
        keep.remove()
        fit(projector.linear_2, torch.cat(inside), torch.cat(wanted))
        fit(self.head, projector.linear_2(torch.cat(inside)), torch.cat(logits))

    def save(self, out: Path) -> None:
        save(self.model, build_processor(), out)
        save_file(halved(self.text), out.parent / "captions.safetensors")


def noisy_oracle(batch: Batch, tables: list[Tensor]) -> Tensor:
    """Oracle tokens as imperfect eyes would give them: some patches missed, all of them blurred."""
    labels = torch.gather(batch["labels"], 1, batch["slots"][..., None].expand(-1, -1, len(GROUPS)))
    missed = (torch.rand(labels.shape[:2]).to(labels.device) < 0.2) & (labels[..., 3] == 0)
    labels = labels.masked_fill(missed[..., None], 0)
    visual = oracle(labels, tables)
    blur = (torch.randn(visual.shape) * 0.3 * torch.rand(visual.shape[0], 1, 1)).to(visual)
    return visual + blur * visual.detach().std()


def seen(logits: tuple[Tensor, ...], labels: Tensor) -> dict[str, list[float]]:
    """What the anchors see, and the ground."""
    scores, busy, anchor = {}, labels[..., 0] > 0, labels[..., 3] == 1
    right = logits[0].argmax(-1) == labels[..., 0]
    for name, kinds in (("shapes", SHAPES), ("digits", DIGITS), ("words", WORDS)):
        low, high = KINDS.index(kinds[0]), KINDS.index(kinds[-1])
        of = anchor & (labels[..., 0] >= low) & (labels[..., 0] <= high)
        scores["see " + name] = right[of].float().tolist()
    scores["see ground"] = right[~busy].float().tolist()
    scores["see color"] = (logits[1].argmax(-1) == labels[..., 1])[anchor].float().tolist()
    scores["see anchor"] = (logits[3].argmax(-1) == labels[..., 3])[:, ANCHORS].flatten().float().tolist()
    return scores
