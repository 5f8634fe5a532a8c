"""Train an embedded model on what is made on the fly. Each phase goes on from --state where it was stopped.

    python train.py llava eyes  --state STATE   # vision tower + projector: what does each patch show?
    python train.py llava mind  --state STATE   # language model on oracle visual tokens: answer questions
    python train.py llava align --state STATE   # tower + projector: speak the language model's word embeddings
    python train.py llava joint --state STATE   # everything: answers from pictures
    python train.py llava save  --state STATE --out model

`onevision` in the place of `llava` trains the other model. Answers alone teach models this small almost nothing but the
prior of the answers; seeing and answering are therefore learned apart and then joined.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from decoder import Batch
from losses import rate_at
from torch import Tensor, nn
from torch.utils.data import DataLoader

PHASES = ("eyes", "mind", "align", "joint")


def optimizers(pupil: nn.Module, phase: str) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside the layers, AdamW for the rest. Once the projector speaks word
    embeddings (spread 0.08, against 3 before), it takes steps that are as much smaller."""
    inner, rest, fine = [], [], []
    for name, weight in pupil.named_parameters():
        if weight.requires_grad:
            small = "projector" in name and phase in ("align", "joint")
            (fine if small else inner if weight.ndim == 2 and ".layers." in name else rest).append(weight)
    muon = torch.optim.Muon(inner, lr=1.0, weight_decay=0.02, adjust_lr_fn="match_rms_adamw")
    groups = [{"params": rest, "scale": 1.0}, {"params": fine, "scale": 0.05}]
    return [muon, torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98), weight_decay=0.01)]


class Trainer:
    """One phase of the recipe, resumable."""

    def __init__(self, args: argparse.Namespace) -> None:
        torch.set_num_threads(args.threads)
        torch.manual_seed(args.seed)
        self.args, self.phase = args, args.phase
        self.pupil = import_module(args.model).Pupil(args.seed).to(args.device)
        self.steps, self.rate, self.decay, self.weights = self.pupil.RECIPE[self.phase]
        self.pupil.requires_grad_(False)
        for part in self.pupil.learning(self.phase):
            part.requires_grad_(True)
        self.opts = optimizers(self.pupil, self.phase)
        args.state.mkdir(parents=True, exist_ok=True)
        self.step = self.resume()
        if args.compile:
            self.pupil.see, self.pupil.say = torch.compile(self.pupil.see), torch.compile(self.pupil.say)

    @property
    def file(self) -> Path:
        return self.args.state / f"{self.phase}.pt"

    def resume(self) -> int:
        """Go on where this phase stopped, or start from the weights of the phases before it."""
        if self.file.exists():
            state = torch.load(self.file, map_location=self.args.device)
            self.pupil.load_state_dict(state["learner"])
            for opt, saved in zip(self.opts, state["opts"], strict=True):
                opt.load_state_dict(saved)
            return state["step"]
        if self.phase == "align":
            self.pupil.load_state_dict(self.learned("eyes"))
            mind = tuple(f"{name}." for name, part in self.pupil.named_modules() if part in self.pupil.learning("mind"))
            self.pupil.load_state_dict({k: v for k, v in self.learned("mind").items() if k.startswith(mind)}, False)
            self.pupil.refit(self.args.seed + 1, self.moved)
        elif self.phase == "joint":
            self.pupil.load_state_dict(self.learned("align"))
        return 0

    def learned(self, phase: str) -> dict[str, Tensor]:
        return torch.load(self.args.state / f"{phase}.pt", map_location=self.args.device)["learner"]

    def save(self) -> None:
        """Through a second file: a run stopped while it writes loses nothing."""
        opts = [opt.state_dict() for opt in self.opts]
        state = {"learner": self.pupil.state_dict(), "opts": opts, "step": self.step}
        torch.save(state, self.file.with_suffix(".new"))
        self.file.with_suffix(".new").replace(self.file)

    def moved(self, batches: list[Batch]) -> list[Batch]:
        return [{name: values.to(self.args.device) for name, values in batch.items()} for batch in batches]

    def losses(self, batches: list[Batch]) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
        with torch.autocast("cuda", torch.bfloat16, enabled=self.args.device != "cpu"):  # CPUs are slower with it
            return self.pupil.losses(self.phase, self.moved(batches))

    @torch.no_grad()
    def check(self) -> None:
        scores: dict[str, list[float]] = defaultdict(list)
        for batches in self.pupil.Batches(self.phase, "validation", 999, 0, self.args.check_batches):
            for name, values in self.losses(batches)[1].items():
                scores[name] += values
        mean = {name: round(100 * float(np.mean(values)), 1) for name, values in scores.items()}
        self.note(f"validation {json.dumps(mean)}")

    def note(self, line: str) -> None:
        print(time.strftime("%H:%M:%S"), f"{self.phase} {self.step}/{self.steps}", line, flush=True)

    def update(self, batches: list[Batch]) -> dict[str, float]:
        torch.manual_seed(self.args.seed * 1_000_003 + self.step)  # a resumed run draws what the whole run draws
        parts = self.losses(batches)[0]
        sum(self.weights[name] * loss for name, loss in parts.items()).backward()
        nn.utils.clip_grad_norm_((p for p in self.pupil.parameters() if p.grad is not None), 1.0)
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
        batches = self.pupil.Batches(self.phase, "train", self.args.seed, self.step, self.args.stop or self.steps)
        sums: dict[str, float] = defaultdict(float)
        began, every = time.time(), 50
        for batch in DataLoader(batches, batch_size=None, num_workers=self.args.workers, prefetch_factor=6):
            for name, value in self.update(batch).items():
                sums[name] += value / every
            if self.step % every == 0 or self.step == self.steps:
                speed = (time.time() - began) / every
                self.note(" ".join([f"{speed:.2f} s/step", *(f"{name} {value:.3f}" for name, value in sums.items())]))
                sums.clear()
                if self.step % self.args.check == 0 or self.step == self.steps:
                    self.save()
                    self.check()
                began = time.time()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", choices=("llava", "onevision"))
    parser.add_argument("phase", choices=(*PHASES, "save"))
    parser.add_argument("--state", type=Path, required=True, help="folder for resumable training state")
    parser.add_argument("--out", type=Path, default=Path("model"))
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--check", type=int, default=250, help="validate and save every so many steps")
    parser.add_argument("--check-batches", type=int, default=6)
    parser.add_argument("--stop", type=int, help="stop behind this step of the phase")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=1, help="processes that draw; a GPU wants a dozen")
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()
    if args.phase == "save":
        pupil = import_module(args.model).Pupil(args.seed)
        pupil.load_state_dict(torch.load(args.state / "joint.pt")["learner"])
        pupil.save(args.out)
    else:
        Trainer(args).run()


if __name__ == "__main__":
    main()
