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
from pathlib import Path

import numpy as np
import torch
from architecture import build_model, build_processor, known
from batches import CONCEPT_IDS, LATER, PATCHES, PREFIX, PROMPT, RECIPE, Batch, Scenes
from concepts import ANCHORS, CONCEPTS, GROUPS, KINDS
from contrast import TextTower, contrast_loss, likeness
from losses import align_loss, dense_loss, oracle, rate_at
from scenes import CATEGORIES, DIGITS, SHAPES, WORDS
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import LlavaForConditionalGeneration


def concept_table(model: LlavaForConditionalGeneration) -> Tensor:
    """Sum of word embeddings for each concept."""
    words = model.get_input_embeddings().weight
    return torch.stack([words[ids].sum(0) for ids in CONCEPT_IDS])


class Learner(nn.Module):
    def __init__(self, seed: int):
        super().__init__()
        self.model = build_model(seed)
        config = self.model.config
        self.head = nn.Linear(config.text_config.hidden_size, len(CONCEPTS))
        self.text = TextTower(config.text_config.vocab_size, config.vision_config.hidden_size)

    def see(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Projected visual tokens, by the same path as LlavaModel.get_image_features; and the pooled CLS."""
        pixels = pixels.permute(0, 3, 1, 2).float() / 127.5 - 1
        core = self.model.model
        hidden = core.vision_tower(pixel_values=pixels, output_hidden_states=True).hidden_states[-1]
        return core.multi_modal_projector(hidden[:, 1:]), core.vision_tower.post_layernorm(hidden[:, 0])

    def say(self, visual: Tensor, places: Tensor, batch: Batch) -> Tensor:
        """Hidden states of the text behind these visual tokens (at these places of the picture)."""
        core, ids = self.model.model, batch["ids"]
        rows = ids.shape[0]
        start = torch.tensor(PROMPT, device=ids.device).expand(rows, PREFIX)
        embedded = torch.cat([core.get_input_embeddings()(start), visual, core.get_input_embeddings()(ids)], 1)
        position = torch.cat(
            [torch.arange(PREFIX, device=ids.device).expand(rows, PREFIX), PREFIX + places, batch["position"]], 1
        )
        block = F.pad(batch["block"], (PREFIX + visual.shape[1], 0))  # 0: what all questions may see
        length = block.shape[1]
        seen = torch.ones(length, length, dtype=torch.bool, device=ids.device).tril()
        seen = seen & ((block[:, None, :] == block[:, :, None]) | (block[:, None, :] == 0))
        hidden = core.language_model(
            inputs_embeds=embedded, attention_mask=seen[:, None], position_ids=position, use_cache=False
        ).last_hidden_state
        return hidden[:, PREFIX + visual.shape[1] :]


@torch.no_grad()
def refit(learner: Learner, batches: list[Batch]) -> None:
    """Least squares from the trained tower's features to the oracle tokens, so that alignment starts near
    its goal: from the head's own coordinates its first gradients would wreck the tower."""
    core, table = learner.model.model, concept_table(learner.model)
    projector = core.multi_modal_projector
    inside, wanted, logits = [], [], []
    keep = projector.linear_2.register_forward_pre_hook(lambda _, args: inside.append(args[0].flatten(0, 1)))
    for batch in batches:
        logits.append(learner.head(learner.see(batch["pixels"])[0]).flatten(0, 1))
        wanted.append(oracle(batch["labels"], table).flatten(0, 1))
    keep.remove()
    fit(projector.linear_2, torch.cat(inside), torch.cat(wanted))
    fit(learner.head, projector.linear_2(torch.cat(inside)), torch.cat(logits))


def fit(layer: nn.Linear, x: Tensor, y: Tensor) -> None:
    x = F.pad(x, (0, 1), value=1.0).double()
    square = x.T @ x
    solution = torch.linalg.solve(
        square + 1e-4 * square.diagonal().mean() * torch.eye(len(square)).to(square), x.T @ y.double()
    )
    layer.weight.copy_(solution[:-1].T)
    layer.bias.copy_(solution[-1])


def noisy_oracle(batch: Batch, table: Tensor) -> Tensor:
    """Oracle tokens as imperfect eyes would give them: some patches missed, all of them blurred."""
    labels = torch.gather(batch["labels"], 1, batch["slots"][..., None].expand(-1, -1, len(GROUPS)))
    missed = (torch.rand(labels.shape[:2]).to(labels.device) < 0.2) & (labels[..., 3] == 0)
    labels = labels.masked_fill(missed[..., None], 0)
    visual = oracle(labels, table)
    blur = (torch.randn(visual.shape) * 0.3 * torch.rand(visual.shape[0], 1, 1)).to(visual)
    return visual + blur * visual.detach().std()


def answer_loss(learner: Learner, hidden: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    """Loss, and for every packed question: category, whether it came later in its conversation, and whether all of its
    answer's tokens come first by greedy choice."""
    where = batch["target"] >= 0
    logits, target = learner.model.lm_head(hidden[where]).float(), batch["target"][where]
    right = logits.argmax(-1) == target
    question = (torch.arange(len(where), device=where.device)[:, None] * 100 + batch["asked"])[where]
    _, index = question.unique(return_inverse=True)
    count = int(index.max()) + 1
    wrong = torch.zeros(count, device=where.device).index_add(0, index, (~right).float())
    about = torch.stack([batch["category"][where], batch["later"][where]], 1)
    about = torch.zeros(count, 2, dtype=torch.long, device=where.device).index_copy(0, index, about)
    return F.cross_entropy(logits, target), torch.cat([about, (wrong == 0).long()[:, None]], 1)


def optimizers(learner: Learner, phase: str) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest. Once the projector speaks word
    embeddings (spread 0.08, against 3 before), it takes steps that are as much smaller."""
    inner, rest, fine = [], [], []
    for name, weight in learner.named_parameters():
        if weight.requires_grad:
            small = "projector" in name and phase in ("align", "joint")
            (fine if small else inner if weight.ndim == 2 and ".layers." in name else rest).append(weight)
    muon = torch.optim.Muon(inner, lr=1.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": rest, "scale": 1.0}, {"params": fine, "scale": 0.05}]
    return [muon, torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98), weight_decay=0.01)]


def report(batch: Batch, logits: Tensor | None, found: Tensor | None, answers: Tensor | None) -> dict[str, list[float]]:
    """Right (1) or wrong (0), one by one: what the anchors see, the captions found, and the answers by category."""
    scores: dict[str, list[float]] = defaultdict(list)
    if logits is not None:
        logits, labels, busy = logits.cpu(), batch["labels"], batch["labels"][..., 0] > 0
        parts = logits.split([len(group) for group in GROUPS.values()], dim=-1)
        anchor = labels[..., 3] == 1
        right = parts[0].argmax(-1) == labels[..., 0]
        for name, kinds in (("shapes", SHAPES), ("digits", DIGITS), ("words", WORDS)):
            low, high = KINDS.index(kinds[0]), KINDS.index(kinds[-1])
            of = anchor & (labels[..., 0] >= low) & (labels[..., 0] <= high)
            scores["see " + name] = right[of].float().tolist()
        scores["see ground"] = right[~busy].float().tolist()
        scores["see color"] = (parts[1].argmax(-1) == labels[..., 1])[anchor].float().tolist()
        scores["see anchor"] = (parts[3].argmax(-1) == labels[..., 3])[:, ANCHORS].flatten().float().tolist()
    if found is not None:
        scores["captions"] = (found.argmax(-1).cpu() == torch.arange(len(found))).float().tolist()
    if answers is not None:
        for category, later, right in answers.tolist():
            scores[CATEGORIES[category]].append(right)
            if later:
                scores[LATER].append(right)
    return scores


class Trainer:
    """One phase of the recipe, resumable."""

    def __init__(self, args: argparse.Namespace):
        torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        self.args, self.phase = args, args.phase
        self.steps, self.rate, self.decay, self.weights = RECIPE[self.phase]
        self.learner = Learner(args.seed).to(args.device)
        core = self.learner.model.model
        eyes = [core.vision_tower, core.multi_modal_projector, self.learner.head, self.learner.text]
        mind = [core.language_model, self.learner.model.lm_head]
        self.learner.requires_grad_(False)
        for part in {"eyes": eyes, "align": eyes, "mind": mind, "joint": eyes + mind}[self.phase]:
            part.requires_grad_(True)
        self.opts = optimizers(self.learner, self.phase)
        args.state.mkdir(parents=True, exist_ok=True)
        self.step = self.resume()
        self.see, self.say = self.learner.see, self.learner.say
        if args.compile:
            self.see, self.say = torch.compile(self.see), torch.compile(self.say)

    @property
    def file(self) -> Path:
        return self.args.state / f"{self.phase}.pt"

    def resume(self) -> int:
        """Go on where this phase stopped, or start from the weights of the phases before it."""
        if self.file.exists():
            state = torch.load(self.file, map_location=self.args.device)
            self.learner.load_state_dict(state["learner"])
            for opt, saved in zip(self.opts, state["opts"], strict=True):
                opt.load_state_dict(saved)
            return state["step"]
        if self.phase == "align":
            self.learner.load_state_dict(self.learned("eyes"))
            mind = {k: v for k, v in self.learned("mind").items() if "language_model" in k or "lm_head" in k}
            self.learner.load_state_dict(mind, strict=False)
            refit(self.learner, list(Scenes("eyes", "train", self.args.seed + 1, 0, 16, 32)))
        elif self.phase == "joint":
            self.learner.load_state_dict(self.learned("align"))
        return 0

    def learned(self, phase: str) -> dict[str, Tensor]:
        return torch.load(self.args.state / f"{phase}.pt", map_location=self.args.device)["learner"]

    def save(self) -> None:
        """Through a second file: a run stopped while it writes loses nothing."""
        opts = [opt.state_dict() for opt in self.opts]
        state = {"learner": self.learner.state_dict(), "opts": opts, "step": self.step}
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)

    def losses(self, batch: Batch) -> tuple[dict[str, Tensor], Tensor | None, Tensor | None, Tensor | None]:
        """The phase's losses, the dense logits, which caption is found, and the answers' correctness."""
        parts, logits, found, answers = {}, None, None, None
        batch = {name: values.to(self.args.device) for name, values in batch.items()}
        with torch.autocast("cuda", torch.bfloat16, enabled=self.args.device != "cpu"):  # CPUs are slower with it
            table = concept_table(self.learner.model)
            if self.phase == "mind":
                visual, places = noisy_oracle(batch, table), batch["slots"]
            else:
                visual, pooled = self.see(batch["pixels"])
                places = torch.arange(PATCHES, device=visual.device).expand(len(visual), PATCHES)
                logits = self.learner.head(visual)
                parts["dense"] = dense_loss(logits, batch["labels"])
                found = likeness(pooled, self.learner.text(batch["caption"]), self.learner.text.scale)
                parts["contrast"] = contrast_loss(found)
            if "align" in self.weights:
                parts["align"] = align_loss(visual, batch["labels"], table)
            if "answer" in self.weights:
                hidden = self.say(visual, places, batch)
                parts["answer"], answers = answer_loss(self.learner, hidden, batch)
        return parts, logits, found, answers

    @torch.no_grad()
    def check(self) -> None:
        scores: dict[str, list[float]] = defaultdict(list)
        for batch in Scenes(self.phase, "validation", 999, 0, self.args.check_batches, self.args.batch):
            for name, values in report(batch, *self.losses(batch)[1:]).items():
                scores[name] += values
        mean = {name: round(100 * float(np.mean(values)), 1) for name, values in scores.items()}
        self.note(f"validation {json.dumps(mean)}")

    def note(self, line: str) -> None:
        print(time.strftime("%H:%M:%S"), f"{self.phase} {self.step}/{self.steps}", line, flush=True)

    def update(self, batch: Batch) -> dict[str, float]:
        torch.manual_seed(self.args.seed * 1_000_003 + self.step)  # a resumed run draws what the whole run draws
        parts = self.losses(batch)[0]
        sum(self.weights[name] * loss for name, loss in parts.items()).backward()
        nn.utils.clip_grad_norm_((p for p in self.learner.parameters() if p.grad is not None), 1.0)
        rate = self.rate * rate_at(self.step, self.steps, self.decay)
        for opt in self.opts:
            for group in opt.param_groups:
                group["lr"] = rate * group.get("scale", 1.0)
            opt.step()
            opt.zero_grad()
        self.step += 1
        losses = {name: float(loss.detach()) for name, loss in parts.items()}
        with self.file.with_suffix(".jsonl").open("a", encoding="utf-8") as log:
            print(json.dumps({"step": self.step, **losses}), file=log)
        return losses

    def run(self) -> None:
        scenes = Scenes(self.phase, "train", self.args.seed, self.step, self.steps, self.args.batch)
        sums: dict[str, float] = defaultdict(float)
        began, every = time.time(), 50
        for batch in DataLoader(scenes, batch_size=None, num_workers=1, prefetch_factor=6):
            for name, value in self.update(batch).items():
                sums[name] += value / every
            if self.step % every == 0:
                speed = every * self.args.batch / (time.time() - began)
                self.note(" ".join([f"{speed:.0f} scenes/s", *(f"{name} {value:.3f}" for name, value in sums.items())]))
                sums.clear()
                if self.step % self.args.check == 0 or self.step == self.steps:
                    self.save()
                    self.check()
                began = time.time()


def save_pretrained(args: argparse.Namespace) -> None:
    learner = Learner(args.seed)
    learner.load_state_dict(torch.load(args.state / "joint.pt")["learner"])
    learner.model.save_pretrained(args.out)
    build_processor().save_pretrained(args.out)
    (args.out / "knows.json").write_text(json.dumps(known(), indent=2) + "\n", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("phase", choices=(*RECIPE, "save"))
    parser.add_argument("--state", type=Path, required=True, help="folder for resumable training state")
    parser.add_argument("--out", type=Path, default=Path("model"))
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--check", type=int, default=250, help="validate and save every so many steps")
    parser.add_argument("--check-batches", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    save_pretrained(args) if args.phase == "save" else Trainer(args).run()


if __name__ == "__main__":
    main()
