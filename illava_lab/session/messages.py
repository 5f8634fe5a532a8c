"""Prompts as other programs write them: messages of several roles, in which texts, pictures and videos alternate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL.Image import Image
from torch import Tensor

from illava_lab.errors import LabError, one_of
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.models.video import Video
from illava_lab.session.asked import check_count
from illava_lab.session.generation import check_given
from illava_lab.session.lab import Lab
from illava_lab.session.words import plain

ROLES = ("system", "user", "assistant")
Part = str | Image | Video


@dataclass(frozen=True, eq=False)
class Message:
    """One message of a prompt.

    Attributes:
        role: "system", "user" or "assistant".
        parts: texts, pictures and videos in the order in which they stand.

    Raises:
        LabError: another role.
    """

    role: str
    parts: tuple[Part, ...]

    def __post_init__(self) -> None:
        one_of("role", self.role, ROLES)

    @property
    def shown(self) -> list[Image | Video]:
        """The pictures and videos, in order."""
        return [part for part in self.parts if not isinstance(part, str)]

    @property
    def text(self) -> str:
        """The texts, as one."""
        return "\n".join(part for part in self.parts if isinstance(part, str))


Prompt = Sequence[Message]


def message_inputs(lab: Lab, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
    """Model inputs for a batch of prompts, padded on the left; of a single question those of `Lab.inputs`.

    Where a picture stands among the texts of a message is up to the model's chat template: some put all of them first.

    Raises:
        LabError: as `Lab.inputs`; no prompts, or one that does not end with a user's message that says something.
    """
    if not prompts:
        raise LabError("prompts must hold at least one, got none")
    texts = [_written(lab, prompt) for prompt in prompts]
    return lab._prepared(texts, [[one for message in prompt for one in message.shown] for prompt in prompts])


def answer_messages(lab: Lab, prompts: Sequence[Prompt], max_new_tokens: int = 16, **generation: Any) -> list[str]:
    """Answers to a batch of prompts; inside an `attach` block, with that reduction.

    Args:
        generation: further arguments of `generate` that say which token comes next; greedy without any.

    Raises:
        LabError: as `message_inputs` and `Lab.answer`; or an argument of `generate` that the lab does not take.
    """
    check_given(generation)
    max_new_tokens = check_count("max_new_tokens", max_new_tokens)
    inputs = message_inputs(lab, prompts)
    with one_at_a_time(lab.model):
        return lab._decode(lab._generate(inputs, max_new_tokens, **generation), inputs)


def _written(lab: Lab, prompt: Prompt) -> str:
    """A prompt as its model's chat template writes it."""
    if not prompt or prompt[-1].role != "user" or not prompt[-1].parts:
        roles = ", ".join(message.role for message in prompt) or "no message"
        raise LabError(f"a prompt must end with what a user says, got {roles}")
    messages = [{"role": message.role, "content": _content(lab, message)} for message in prompt]
    written: str = lab.processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    return written


def _content(lab: Lab, message: Message) -> list[dict[str, str]]:
    alone = sum(isinstance(part, str) for part in message.parts) == 1
    content = []
    for part in message.parts:
        if isinstance(part, str):
            content.append({"type": "text", "text": plain(lab.processor, part.strip() if alone else part)})
        else:
            content.append({"type": "video" if isinstance(part, Video) else "image"})
    return content
