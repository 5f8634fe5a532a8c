"""Exact match of a saved model on a question file, by category: python evaluate.py model test.parquet"""

from __future__ import annotations

import argparse
import io

import pandas as pd
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration


@torch.no_grad()
def answers(folder: str, table: pd.DataFrame, batch: int = 32) -> list[str]:
    """Greedy answers, through nothing but the public classes."""
    model = LlavaForConditionalGeneration.from_pretrained(folder).eval()
    processor = AutoProcessor.from_pretrained(folder, backend="pil")
    said: list[str] = []
    for start in range(0, len(table), batch):
        part = table.iloc[start : start + batch]
        chats = [[{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question}]}]
                 for question in part.question]  # fmt: skip
        prompts = [processor.apply_chat_template(chat, add_generation_prompt=True) for chat in chats]
        images = [Image.open(io.BytesIO(image)) for image in part.image]
        inputs = processor(text=prompts, images=images, padding=True, return_tensors="pt")
        output = model.generate(**inputs, max_new_tokens=8, do_sample=False)
        said += processor.batch_decode(output[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("questions")
    parser.add_argument("--mistakes", action="store_true", help="list every wrong answer")
    args = parser.parse_args()
    table = pd.read_parquet(args.questions)
    table["said"] = answers(args.model, table)
    table["right"] = table.said == table.answer
    often = table.groupby(["category", "answer"]).size().groupby("category").max()
    print("| category | questions | exact match | most frequent answer |\n|---|---|---|---|")
    for category, part in table.groupby("category"):
        print(f"| {category} | {len(part)} | {part.right.mean():.1%} | {often[category] / len(part):.1%} |")
    print(f"| all | {len(table)} | {table.right.mean():.1%} | {often.sum() / len(table):.1%} |")
    if args.mistakes:
        print(table[~table.right][["image_id", "category", "question", "answer", "said"]].to_string())


if __name__ == "__main__":
    main()
