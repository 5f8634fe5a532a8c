"""A turn of conversations that stand side by side: what they go on from, what the model gets, what it says.

`il.chat` holds one, `talk` several.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from illava_lab.hooks.compat import CACHE, cache_of
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.method.blocks import gradients_kept
from illava_lab.session.generation import ALWAYS, check_defaults
from illava_lab.session.lab import Lab
from illava_lab.session.room import check_answer, check_tokens, positions_of
from illava_lab.session.words import plain

LONGEST = 64
"""New tokens after which an answer of a conversation is cut off, where nobody says otherwise."""
_ANSWER = "\N{OBJECT REPLACEMENT CHARACTER}"  # stands for an answer where a chat template is asked what follows one


@dataclass(frozen=True, eq=False)
class Said:
    """All that conversations go on from: made when a turn has ended well, and not changed after that.

    Attributes:
        tokens: (B, S) what was asked and answered.
        mask: (B, S) 0 at padding: before prompts and questions, and behind answers that ended before others did.
        cache: what the model remembers of them.
        axes: what Qwen-VL keeps on the model between calls: how far its positions are from the number of tokens.
        saved: positions that a prompt takes less than it has tokens, because images have rows and columns of them.
    """

    tokens: Tensor
    mask: Tensor
    cache: Any
    axes: Any
    saved: int

    def only(self, rows: list[int]) -> Said:
        """Some of the conversations; the cache is theirs from now on."""
        chosen = torch.tensor(rows, device=self.tokens.device)
        self.cache.reorder_cache(chosen)  # which every kind of layer can
        return Said(self.tokens[chosen], self.mask[chosen], self.cache, self.axes, self.saved)


def next_inputs(lab: Lab, shown: Sequence[Any], questions: Sequence[str], before: Said | None) -> dict[str, Any]:
    """What the model gets for the next question of each conversation.

    Args:
        shown: of each, as in `Lab.inputs`; not looked at after the first turn.

    Raises:
        LabError: as `Lab.inputs`.
    """
    if before is None:
        return dict(lab.inputs(shown, questions))
    last = [int(tokens[mask.bool()][-1]) for tokens, mask in zip(before.tokens, before.mask, strict=True)]
    parts = [following(lab, question, said) for question, said in zip(questions, last, strict=True)]
    length = max(map(len, parts))
    # What stands at padding is not seen, but must not be the place of a picture.
    ids = torch.stack([torch.cat([own[:1].expand(length - len(own)), own]) for own in parts])
    mask = torch.stack([torch.arange(length) >= length - len(own) for own in parts])
    return {
        "input_ids": torch.cat([before.tokens, ids.to(before.tokens.device)], dim=1),
        "attention_mask": torch.cat([before.mask, mask.to(before.mask)], dim=1),
    }


def following(lab: Lab, question: str, last: int) -> Tensor:
    """(T,) what follows an answer whose last token is `last`, up to the place of the next one."""
    processor = lab.processor
    said = [("user", "?"), ("assistant", _ANSWER), ("user", plain(processor, question.strip()))]
    messages = [{"role": role, "content": [{"type": "text", "text": text}]} for role, text in said]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    after = prompt.split(_ANSWER, 1)[1]
    with one_at_a_time(processor):
        ids: Tensor = processor.tokenizer(after, add_special_tokens=False, return_tensors="pt").input_ids[0]
    check_tokens(lab.model, ids)
    # The model has often ended its answer itself.
    return ids[1:] if ids[0] == last else ids


def next_answers(lab: Lab, inputs: dict[str, Any], before: Said | None, max_new_tokens: int, **generation: Any) -> Said:
    """Let the model answer; `new_tokens` has what it said.

    Args:
        inputs: from `next_inputs`; generation: further arguments of `generate`.

    Raises:
        LabError: too few positions, or defaults of the model with which the lab cannot answer.
    """
    model, mask = lab.model, inputs["attention_mask"]
    saved = mask.shape[1] - positions_of(model, inputs) if before is None else before.saved
    check_defaults(model)
    check_answer(model, int(mask.sum(1).max()) - saved, max_new_tokens)
    if before is not None:
        inputs = {**inputs, CACHE: _fork(before.cache)}
        _set_axes(model, before.axes)
    with gradients_kept():
        out = model.generate(
            **inputs,
            **{**ALWAYS, "do_sample": False, **generation},
            max_new_tokens=max_new_tokens,
            return_dict_in_generate=True,
        )
    own = _until_end(out.sequences[:, mask.shape[1] :], model.generation_config.eos_token_id)
    return Said(out.sequences, torch.cat([mask, own.to(mask)], dim=1), cache_of(out), _axes(model), saved)


def new_tokens(said: Said, inputs: dict[str, Any]) -> list[Tensor]:
    """Of each conversation the tokens of its latest answer, (N,), with its end and without what comes behind that."""
    asked = inputs["input_ids"].shape[1]
    return [own[mask.bool()] for own, mask in zip(said.tokens[:, asked:], said.mask[:, asked:], strict=True)]


def _until_end(new: Tensor, ends: Any) -> Tensor:
    """(B, N) bool: up to the first of the tokens that end an answer, that one included; a single answer has no more."""
    if ends is None or len(new) == 1:
        return torch.ones_like(new, dtype=torch.bool)
    is_end = torch.isin(new, torch.as_tensor(ends, device=new.device))
    return is_end.long().cumsum(1) - is_end.long() == 0


def _fork(cache: Any) -> Any:
    """A cache that goes on from another one and leaves it as it is; keys and values are not copied.

    They need not be: a dynamic cache puts longer tensors in the place of the ones that it has. The states of layers
    with linear attention are written to, and copied.
    """
    attending = [layer for layer in cache.layers if hasattr(layer, "keys")]
    held = [held for layer in attending for held in (layer.keys, layer.values)]
    return copy.deepcopy(cache, {id(tensor): tensor for tensor in held})


def _axes(model: Any) -> Any:
    return getattr(model.model, "rope_deltas", None)


def _set_axes(model: Any, axes: Any) -> None:
    """Other prompts that the model answered in between have left theirs."""
    if axes is not None:
        model.model.rope_deltas = axes


def text_of(lab: Lab, tokens: Tensor) -> str:
    """An answer as a person reads it."""
    return lab.processor.tokenizer.decode(tokens, skip_special_tokens=True).strip()
