"""Train the embedded model on scenes made on the fly. Each phase resumes from --state.

    python train.py eyes  --state STATE   # vision tower + projector: what does each patch show?
    python train.py mind  --state STATE   # language model on oracle visual tokens: answer questions
    python train.py align --state STATE   # tower + projector: speak the language model's word embeddings
    python train.py joint --state STATE   # everything: answers from pictures
    python train.py save  --state STATE --out model

Answers alone teach a model this small almost nothing but the prior of the answers; seeing and answering
are therefore learned apart and then joined.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset
from transformers import LlavaForConditionalGeneration

from concepts import ANCHORS, CONCEPTS, GROUPS, STARTS, patch_labels
from model import GRID, build_model, build_processor, build_tokenizer
from scenes import CATEGORIES, SIZE, ask, draw, make_scene

PATCHES = GRID * GRID
PREFIX = 3  # <s> USER :
SLOTS = 40  # oracle visual tokens per scene
TEXT = {"mind": 200, "joint": 128}  # room for packed questions
Batch = dict[str, Tensor]


class Scenes(IterableDataset):
    """Batches by step number, so that a resumed run goes on where it stopped."""

    def __init__(self, phase: str, split: str, seed: int, start: int, stop: int, batch: int, weights: dict[str, float]):
        self.phase, self.split, self.seed, self.steps, self.batch = phase, split, seed, (start, stop), batch
        self.tokenizer = build_tokenizer()
        self.chances = np.array([weights.get(category, 1.0) for category in CATEGORIES])
        self.chances /= self.chances.sum()

    def __iter__(self) -> Iterator[Batch]:
        info = torch.utils.data.get_worker_info()
        first, every = (info.id, info.num_workers) if info else (0, 1)
        for step in range(self.steps[0] + first, self.steps[1], every):
            rng = np.random.default_rng([self.seed, ("eyes", "mind", "align", "joint").index(self.phase), step])
            rows = [self.example(rng) for _ in range(self.batch)]
            yield {key: torch.from_numpy(np.stack([row[key] for row in rows])) for key in rows[0]}

    def example(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        seeing = self.phase in ("eyes", "align")
        scene = make_scene(rng, self.split, crowded=seeing and rng.random() < 0.7)
        row = {"labels": patch_labels(scene)}
        if self.phase != "mind":
            row["pixels"] = np.asarray(draw(scene))
        if not seeing:
            row |= self.pack(scene, rng, TEXT[self.phase])
        if self.phase == "mind":
            row["slots"] = sample_slots(row["labels"], rng)
        return row

    def pack(self, scene, rng: np.random.Generator, room: int) -> dict[str, np.ndarray]:
        """Questions side by side. `block` keeps them from seeing each other, `position` starts each right
        behind the picture: the model sees exactly what it will see with one question."""
        ids, block, position, target, category = (np.zeros(room, np.int64) for _ in range(5))
        target[:] = -100
        used, number = 0, 0
        order = list(rng.permutation(len(CATEGORIES)))
        order += list(rng.choice(len(CATEGORIES), size=room // 12, p=self.chances))
        for index in order:
            question = ask(scene, rng, CATEGORIES[index])
            if question is None:
                continue
            prompt = self.tokenizer.encode(question.text + " ASSISTANT:", add_special_tokens=False)
            if rng.random() < 0.05:  # an unknown word does no harm
                prompt.insert(int(rng.integers(len(prompt) - 2)), self.tokenizer.unk_token_id)
            answer = self.tokenizer.encode(question.answer, add_special_tokens=False)
            span = slice(used, used + len(prompt) + len(answer))
            if span.stop > room:
                break
            number += 1
            ids[span] = prompt + answer
            block[span] = number
            position[span] = PREFIX + PATCHES + np.arange(len(prompt) + len(answer))
            target[span.stop - len(answer) - 1 : span.stop] = answer + [self.tokenizer.eos_token_id]
            category[span] = index
            used = span.stop
        return {"ids": ids, "block": block, "position": position, "target": target, "category": category}


def sample_slots(labels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Which patches the oracle shows: all anchors, else mostly patches on objects."""
    chance = np.where(labels[:, 0] > 0, 1.0, 0.15) * rng.random(PATCHES)
    chance[ANCHORS] = 2.0
    return np.sort(np.argsort(-chance)[:SLOTS])


def concept_table(model: LlavaForConditionalGeneration) -> Tensor:
    """Sum of word embeddings for each concept."""
    tokenizer, words = build_tokenizer(), model.get_input_embeddings().weight
    rows = [words[tokenizer.convert_tokens_to_ids(list(c))].sum(0) if c else words.new_zeros(words.shape[1]) for c in CONCEPTS]
    return torch.stack(rows)


def oracle(labels: Tensor, table: Tensor) -> Tensor:
    return sum(table[labels[..., i] + int(start)] for i, start in enumerate(STARTS.values()))


class Learner(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        self.model = build_model(seed)
        self.head = nn.Linear(self.model.config.text_config.hidden_size, len(CONCEPTS))

    def see(self, pixels: Tensor) -> Tensor:
        """Projected visual tokens; the same path as LlavaModel.get_image_features."""
        pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        core = self.model.model
        hidden = core.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        return core.multi_modal_projector(hidden[:, 1:])

    def say(self, visual: Tensor, places: Tensor, batch: Batch) -> Tensor:
        """Hidden states of the text behind these visual tokens (at these places of the picture)."""
        core, ids = self.model.model, batch["ids"]
        rows, device = ids.shape[0], ids.device
        start = torch.tensor(PROMPT, device=device).expand(rows, PREFIX)
        embedded = torch.cat([core.get_input_embeddings()(start), visual, core.get_input_embeddings()(ids)], 1)
        position = torch.cat([torch.arange(PREFIX).expand(rows, PREFIX), PREFIX + places, batch["position"]], 1)
        block = F.pad(batch["block"], (PREFIX + visual.shape[1], 0))
        length = block.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool).tril()
        seen = seen & ((block[:, None, :] == block[:, :, None]) | (block[:, None, :] == 0))
        seen[:, :, PREFIX + visual.shape[1] :] &= (block[:, None, PREFIX + visual.shape[1] :] > 0) | torch.eye(
            length, dtype=torch.bool)[:, PREFIX + visual.shape[1] :]  # fmt: skip
        hidden = core.language_model(
            inputs_embeds=embedded, attention_mask=seen[:, None], position_ids=position, use_cache=False
        ).last_hidden_state
        return hidden[:, PREFIX + visual.shape[1] :]


PROMPT = build_tokenizer().encode("USER:")


def dense_loss(logits: Tensor, labels: Tensor) -> Tensor:
    parts = logits.float().split([len(group) for group in GROUPS.values()], dim=-1)
    return sum(F.cross_entropy(part.flatten(0, 1), labels[..., i].flatten()) for i, part in enumerate(parts))


def align_loss(visual: Tensor, labels: Tensor, table: Tensor) -> Tensor:
    """Squared distance to the oracle tokens, on objects as much as on background, in units of their spread."""
    wanted = oracle(labels, table).detach()
    error = (visual.float() - wanted).square().mean(-1) / wanted.var()
    busy = labels[..., 0] > 0
    return error[busy].mean() + 0.3 * error[~busy].mean()


def noisy_oracle(batch: Batch, table: Tensor) -> Tensor:
    """Oracle tokens as imperfect eyes would give them: some patches missed, all of them blurred."""
    labels = torch.gather(batch["labels"], 1, batch["slots"][..., None].expand(-1, -1, len(GROUPS)))
    missed = (torch.rand(labels.shape[:2]) < 0.2) & (labels[..., 3] == 0)
    labels = labels.masked_fill(missed[..., None], 0)
    visual = oracle(labels, table)
    return visual + torch.randn_like(visual) * visual.detach().std() * 0.3 * torch.rand(visual.shape[0], 1, 1)


def answer_loss(learner: Learner, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss, and for every packed question whether all of its answer's tokens come first by greedy choice."""
    where = batch["target"] >= 0
    logits, target = learner.model.lm_head(hidden[where]).float(), batch["target"][where]
    right = logits.argmax(-1) == target
    question = (torch.arange(len(where))[:, None] * 100 + batch["block"])[where]
    _, index = question.unique(return_inverse=True)
    wrong = torch.zeros(int(index.max()) + 1).index_add(0, index, (~right).float())
    category = torch.zeros(len(wrong), dtype=torch.long).index_copy(0, index, batch["category"][where])
    return F.cross_entropy(logits, target), torch.stack([category, (wrong == 0).long()], 1)


def optimizers(learner: Learner, rate: float) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest."""
    inner, rest = [], []
    for name, weight in learner.named_parameters():
        if weight.requires_grad:
            (inner if weight.ndim == 2 and ".layers." in name else rest).append(weight)
    muon = torch.optim.Muon(inner, lr=rate, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    return [muon, torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.01)]


def rate_at(step: int, steps: int) -> float:
    """Warm up, stay, and fall to zero over the last 40 %."""
    return min(1.0, (step + 1) / 100, (steps - step) / (0.4 * steps))


def report(batch: Batch, logits: Tensor | None, answers: Tensor | None) -> dict[str, list[float]]:
    scores: dict[str, list[float]] = defaultdict(list)
    if logits is not None:
        labels, busy = batch["labels"], batch["labels"][..., 0] > 0
        parts = logits.split([len(group) for group in GROUPS.values()], dim=-1)
        anchor = labels[..., 3] == 1
        right = parts[0].argmax(-1) == labels[..., 0]
        for name, low, high in (("shapes", 1, 6), ("digits", 7, 16), ("words", 17, 32)):
            of = anchor & (labels[..., 0] >= low) & (labels[..., 0] <= high)
            scores["see " + name] = right[of].float().tolist()
        scores["see ground"] = right[~busy].float().tolist()
        scores["see color"] = (parts[1].argmax(-1) == labels[..., 1])[anchor].float().tolist()
        scores["see anchor"] = (parts[3].argmax(-1) == labels[..., 3])[:, ANCHORS].flatten().float().tolist()
    if answers is not None:
        for category, right in answers.tolist():
            scores[CATEGORIES[category]].append(right)
    return scores


def run(args: argparse.Namespace) -> None:
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    args.state.mkdir(parents=True, exist_ok=True)
    learner = Learner(args.seed)
    phase, state_file = args.phase, args.state / f"{args.phase}.pt"
    core = learner.model.model
    eyes = [core.vision_tower, core.multi_modal_projector, learner.head]
    mind = [core.language_model, learner.model.lm_head]
    learner.requires_grad_(False)
    for part in {"eyes": eyes, "align": eyes, "mind": mind, "joint": eyes + mind}[phase]:
        part.requires_grad_(True)
    core.vision_tower.vision_model.post_layernorm.requires_grad_(False) if hasattr(core.vision_tower, "vision_model") else None
    opts, step = optimizers(learner, args.rate), 0
    if state_file.exists():
        state = torch.load(state_file)
        learner.load_state_dict(state["learner"])
        for opt, saved in zip(opts, state["opts"]):
            opt.load_state_dict(saved)
        step = state["step"]
    else:  # start from the phases before
        parts = {"align": ("eyes", "mind"), "joint": ("align",)}.get(phase, ())
        for part in parts:
            weights = torch.load(args.state / f"{part}.pt")["learner"]
            keep = ("language_model", "lm_head")
            if part == "mind":
                weights = {k: v for k, v in weights.items() if any(word in k for word in keep)}
            learner.load_state_dict(weights, strict=False)

    see, say = learner.see, learner.say
    if args.compile:
        see, say = torch.compile(see), torch.compile(say)
    everywhere = torch.arange(PATCHES).expand(args.batch, PATCHES)

    def losses(batch: Batch) -> tuple[Tensor, dict[str, float], Tensor | None, Tensor | None]:
        total, parts, logits, answers = torch.zeros(()), {}, None, None
        with torch.autocast("cpu", torch.bfloat16):
            table = concept_table(learner.model)
            if phase == "mind":
                visual, places = noisy_oracle(batch, table), batch["slots"]
            else:
                visual, places = see(batch["pixels"]), everywhere
                logits = learner.head(visual)
                parts["dense"] = dense_loss(logits, batch["labels"])
                if phase != "eyes":
                    parts["align"] = align_loss(visual, batch["labels"], table)
            if phase in ("mind", "joint"):
                parts["answer"], answers = answer_loss(learner, say(visual, places, batch), batch)
        weights = {"dense": 1.0, "align": 1.0, "answer": 1.0}
        if phase == "joint":
            weights = {"dense": 0.5, "align": 0.3, "answer": 1.0}
        total = sum(weights[name] * value for name, value in parts.items())
        return total, {k: float(v) for k, v in parts.items()}, logits, answers

    def check(step: int) -> None:
        learner.eval()
        scores: dict[str, list[float]] = defaultdict(list)
        with torch.no_grad():
            for batch in DataLoader(Scenes(phase, "validation", 999, 0, args.check_batches, args.batch, {}), batch_size=None):
                for name, values in report(batch, *losses(batch)[2:]).items():
                    scores[name] += values
        learner.train()
        mean = {name: round(100 * float(np.mean(values)), 1) for name, values in scores.items()}
        asked = [mean[c] for c in CATEGORIES if c in mean]
        mean |= {"answers": round(float(np.mean(asked)), 1)} if asked else {}
        note(f"{phase} validation at {step}: {json.dumps(mean)}")

    def note(line: str) -> None:
        print(time.strftime("%H:%M:%S"), line, flush=True)

    def save(step: int) -> None:
        state = {"learner": learner.state_dict(), "opts": [opt.state_dict() for opt in opts], "step": step}
        torch.save(state, state_file.with_suffix(".new"))
        state_file.with_suffix(".new").replace(state_file)

    weights = json.loads(args.weights)
    data = DataLoader(Scenes(phase, "train", args.seed, step, args.steps, args.batch, weights), batch_size=None,
                      num_workers=1, prefetch_factor=6)  # fmt: skip
    sums: dict[str, float] = defaultdict(float)
    began = time.time()
    for batch in data:
        total, parts, _, _ = losses(batch)
        total.backward()
        norm = nn.utils.clip_grad_norm_((p for p in learner.parameters() if p.grad is not None), 1.0)
        for opt in opts:
            for group in opt.param_groups:
                group["lr"] = args.rate * rate_at(step, args.steps)
            opt.step()
            opt.zero_grad()
        step += 1
        for name, value in {**parts, "norm": float(norm)}.items():
            sums[name] += value
        if step % 50 == 0:
            speed = 50 * args.batch / (time.time() - began)
            note(f"{phase} {step}/{args.steps} {speed:.0f} scenes/s " + " ".join(f"{k} {v / 50:.3f}" for k, v in sums.items()))
            sums.clear()
            if step % args.check == 0 or step == args.steps:
                save(step)
                check(step)
            began = time.time()


def save_pretrained(args: argparse.Namespace) -> None:
    learner = Learner(args.seed)
    done = [args.state / f"{name}.pt" for name in ("joint", "align", "eyes")]
    learner.load_state_dict(torch.load(next(path for path in done if path.exists()))["learner"])
    learner.model.save_pretrained(args.out)
    build_processor().save_pretrained(args.out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=("eyes", "mind", "align", "joint", "save"))
    parser.add_argument("--state", type=Path, required=True, help="folder for resumable training state")
    parser.add_argument("--out", type=Path, default=Path("model"))
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float, default=2e-3)
    parser.add_argument("--weights", default="{}", help='more questions of a category, as JSON: {"count": 2}')
    parser.add_argument("--check", type=int, default=250, help="validate and save every so many steps")
    parser.add_argument("--check-batches", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    save_pretrained(args) if args.phase == "save" else run(args)


if __name__ == "__main__":
    main()
