"""How long a prompt may be: a model knows so many positions, and answers nonsense beyond them."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from illava_lab.errors import LabError
from illava_lab.session.asked import check_count


def known_positions(model: Any) -> int | None:
    """How many positions the language model was made for, or None where its configuration does not say."""
    return getattr(model.config.get_text_config(), "max_position_embeddings", None)


def positions_of(model: Any, inputs: dict[str, Tensor]) -> int:
    """How many positions the longest prompt of a batch takes: one for each token, but where an image has rows and
    columns of positions (Qwen-VL)."""
    by_axes = getattr(model.model, "get_rope_index", None)
    if by_axes is None:
        return inputs["input_ids"].shape[1]
    known = inspect.signature(by_axes).parameters
    positions, _ = by_axes(**{name: value for name, value in inputs.items() if name in known})
    return int(positions.max()) + 1


def check_tokens(model: Any, ids: Tensor) -> None:
    """Refuse tokens that the model does not have; `ids` (B, S) are on the host still.

    Raises:
        LabError: the tokenizer belongs to another model.
    """
    known = model.config.get_text_config().vocab_size
    if ids.numel() and int(ids.max()) >= known:
        raise LabError(
            f"the tokenizer makes token {int(ids.max())} of the question, but the model has {known}: "
            "it is the tokenizer of another model"
        )


def check_prompt(model: Any, taken: int) -> None:
    """Refuse a prompt that is too long.

    Args:
        taken: positions of the prompt, its visual tokens included.

    Raises:
        LabError: with both numbers.
    """
    known = known_positions(model)
    if known is not None and taken > known:
        raise LabError(
            f"the question with its images takes {taken:,} positions, but the model knows {known:,}; "
            "ask a shorter one, or show less"
        )


def check_answer(model: Any, taken: int, new_tokens: Any, name: str = "max_new_tokens") -> None:
    """Refuse an answer that cannot be, or that could become too long.

    Args:
        taken: positions of the prompt; name: of the argument.

    Raises:
        LabError: no whole number of at least 1, or more than there is room for behind the prompt.
    """
    check_count(name, new_tokens)
    check_prompt(model, taken)
    known = known_positions(model)
    most = None if known is None else known - taken + 1  # the last token is not read again
    if most is not None and new_tokens > most:
        raise LabError(
            f"{name} must be from 1 to {most:,}, got {new_tokens}: "
            f"the prompt takes {taken:,} of the {known:,} positions that the model knows"
        )
