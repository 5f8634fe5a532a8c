"""Taking given patches away, at a given place of the model: what an answer needs, and until when."""

from __future__ import annotations

import pandas as pd
import torch

from illava_lab.measuring.redundancy import record, sinks
from illava_lab.measuring.tasks import Task
from illava_lab.method.strategy import Strategy
from illava_lab.method.token_map import TokenMap
from illava_lab.method.tokens import Tokens
from illava_lab.models.families import describe
from illava_lab.models.images import ImageLike
from illava_lab.schedules.schedule import Schedule
from illava_lab.session.lab import Lab


class Remove(Strategy):
    """Drop given patches, whatever they are worth: an experiment, not a method."""

    name, kind = "remove", "prune"
    patches: tuple[int, ...] = ()

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        """The tokens in other places stay."""
        hit = torch.isin(tokens.position, torch.tensor(self.patches, device=tokens.position.device))
        stay = hit.int().argsort(dim=1, stable=True)[:, :keep]
        return TokenMap.keep(stay.sort(dim=1).values, tokens.count)


def looked_at(
    lab: Lab, image: ImageLike, question: str, layers: tuple[int, ...] = (0, 1), factor: float = 3.0
) -> list[int]:
    """The patches to which the last text token pays more than `factor` times the mean in one of these LLM layers."""
    attention = record(lab, image, question).attention["llm"]
    return sorted({patch for layer in layers for patch in sinks(attention[layer], factor=factor)})


def ask_without(lab: Lab, image: ImageLike, question: str, patches: list[int], stage: str, layer: int) -> str:
    """The answer when these patches are removed at this layer: inside one of the encoder, before one of the LLM.

    Raises:
        LabError: as `Lab.ask`.
    """
    left = describe(lab.model).patches - len(patches)
    schedule = Schedule(encoder={layer: left}) if stage == "encoder" else Schedule(llm={layer: left})
    strategy = Remove(tuple(patches))  # type: ignore[call-arg]  # every strategy is a dataclass
    return lab.ask(image, question, strategy, schedule=schedule).text


def right_without(
    lab: Lab, task: Task, places: list[tuple[str, int]], category: str = "word", count: int = 16
) -> pd.DataFrame:
    """Right answers to questions of a category without the patches that they look at, and without as many others.

    Args:
        places: (stage, layer) at which they are removed.
        count: of questions.

    Returns:
        A row for each place, first "nothing removed"; columns "what is looked at" and "as many others".
    """
    asked = task.samples[task.samples["category"] == category].head(count)
    table = pd.DataFrame(0, index=["nothing removed"], columns=["what is looked at", "as many others"])
    table = table.reindex([*table.index, *(_name(*place) for place in places)], fill_value=0)
    generator = torch.Generator().manual_seed(0)
    for row in asked.itertuples():
        image = task.image(row.image_id)
        wanted = looked_at(lab, image, row.question)
        shuffled = torch.randperm(describe(lab.model).patches, generator=generator).tolist()
        others = [patch for patch in shuffled if patch not in wanted][: len(wanted)]
        table.loc["nothing removed"] += lab.ask(image, row.question).text == row.answer
        for place in places:
            for column, patches in zip(table, (wanted, others), strict=True):
                right = ask_without(lab, image, row.question, patches, *place) == row.answer
                table.loc[_name(*place), column] += right
    return table.rename_axis(f"right answers of {len(asked)}")


def _name(stage: str, layer: int) -> str:
    return f"inside encoder layer {layer}" if stage == "encoder" else f"before LLM layer {layer}"
