"""What the embedded models reach on the test sets, bare and greedy: python evaluate.py

Exact match by category, beside two controls that see nothing: always the category's most frequent answer, and another
prompt's pictures. Then how often the CLS token of a test scene finds its caption among 32.
"""

from __future__ import annotations

import argparse

import numpy as np
import torch
from clip_llama import tokenizer
from contrast import ROOM, TextTower, caption, likeness
from safetensors.torch import load_file
from scenes import draw, make_scene

import illava_lab as il
from illava_lab.paths import data_dir

ASKED = {
    "embedded": ("test", "conversation"),
    "embedded:onevision": ("test", "fine", "multi-image", "video", "conversation"),
}
GROUPS, AMONG = 10, 32  # of test scenes whose captions are told apart


def lab_of(model: str) -> il.Lab:
    return il.load(None if model == "embedded" else model)


def answers(lab: il.Lab, model: str, tasks: tuple[str, ...], split: str) -> None:
    """A table for each task."""
    for name in tasks:
        task = name if split == "test" else "validation" if name == "test" else f"{name}-validation"
        table = il.controls(lab, il.load_task(task), batch_size=16)
        print(
            f"\n{model}, {task}\n\n| category | questions | exact match | most frequent answer | another's pictures |"
        )
        print("|---|---|---|---|---|")
        for row in table.itertuples():
            shares = " | ".join(f"{share:.1%}" for share in (row.accuracy, row.most_frequent, row.other_images))
            print(f"| {row.category} | {row.questions} | {shares} |", flush=True)


@torch.no_grad()
def captions() -> float:
    """Share of test scenes whose CLS token is nearest to their own caption, among AMONG."""
    lab, rng, encode = lab_of("embedded"), np.random.default_rng(20_501), tokenizer()
    tower = lab.model.model.vision_tower
    text = TextTower(len(encode), lab.model.config.vision_config.hidden_size)
    text.load_state_dict(
        {name: weight.float() for name, weight in load_file(data_dir() / "captions.safetensors").items()}
    )
    found = []
    for _ in range(GROUPS):
        scenes = [make_scene(rng, "test") for _ in range(AMONG)]
        ids = [encode.encode(caption(scene, rng), add_special_tokens=False) for scene in scenes]
        tokens = torch.tensor([own + [0] * (ROOM - len(own)) for own in ids])
        pixels = lab.processor.image_processor([draw(scene) for scene in scenes], return_tensors="pt")["pixel_values"]
        logits = likeness(tower(pixels).pooler_output, text.eval()(tokens), text.scale)
        found += (logits.argmax(1) == torch.arange(AMONG)).tolist()
    return float(np.mean(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--split", choices=("test", "validation"), default="test")
    parser.add_argument("--model", choices=ASKED, help="one of the two; if not given, those that are here")
    args = parser.parse_args()
    for model in [args.model] if args.model else ASKED:
        try:
            lab = lab_of(model)
        except il.LabError as error:
            if args.model:
                parser.error(str(error))
            print(f"\n{model} is left out: {error}")
            continue
        answers(lab, model, ASKED[model], args.split)
        if model == "embedded":
            print(f"\nIts caption among {AMONG}, found by CLS: {captions():.1%} of {GROUPS * AMONG} scenes")


if __name__ == "__main__":
    main()
