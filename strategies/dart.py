"""DART: in the LLM, keep a few pivots and the visual tokens that duplicate them least."""

import torch
from torch import Tensor

from illava_lab.method import LabError, Paper, Stage, Strategy, TokenMap, Tokens, ranking, register, unit, wide


@register
class DART(Strategy):
    """Pivots choose in turn the visual tokens least similar to them; what no pivot chose is a duplicate and dropped.

    1. Pivots: the visual tokens, and the text tokens after the image, with the largest ``||k||_1``, where k are the
       keys of layer K-1, heads side by side. Visual pivots are kept; text pivots only steer.
    2. Each pivot p in turn takes, from the tokens still there, those with the lowest ``cos(x_p, x_j)``.

    Args:
        pivot_image_token: how many visual pivots.
        pivot_text_token: how many text pivots. 0 lets prompts of different lengths share a batch.

    Every pivot takes ``int(N (1 - rate) / pivots)`` in the reference, so 77.8 % off 576 leaves 124; here what is left
    after dividing by the pivots goes to the first of them, one each, so the count is exact (ours).
    The reference takes the pivots in the order of a Python set of positions; here visual pivots, then text pivots, by
    falling norm (ours). States x are those that enter layer K, through the model's final norm.
    """

    name = "dart"
    paper = Paper(
        "Stop Looking for Important Tokens in Multimodal Language Models: Duplication Matters More", "2502.11494", 2025
    )
    stages = ("llm",)
    kind = "prune"

    pivot_image_token: int = 4
    pivot_text_token: int = 4

    def __post_init__(self) -> None:
        for setting, least in (("pivot_image_token", 1), ("pivot_text_token", 0)):
            value = getattr(self, setting)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise LabError(f"{setting} must be a whole number of at least {least}, got {value!r}")

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        protected, free = tokens.protected_count, tokens.room(keep)
        own = ranking(_norm(tokens.wide_keys, 1), tokens)[:, : protected + min(self.pivot_image_token, free)]
        if own.shape[1] == keep:
            return TokenMap.keep(own.sort(dim=1).values, tokens.count)
        states, row = tokens.normed_hidden, tokens.row
        pivots = states[row, own[:, protected:]]
        if self.pivot_text_token:
            text = _norm(tokens.text_wide_keys, 1).argsort(dim=1, descending=True, stable=True)[
                :, : self.pivot_text_token
            ]
            pivots = torch.cat([pivots, tokens.text_normed_hidden[row, text]], dim=1)
        inner = torch.bmm(unit(pivots), states.to(wide(states.dtype)).transpose(1, 2))
        similarity = inner.div_(_norm(states, 2).clamp_min_(1e-12)[:, None]).nan_to_num_(1.0)

        kept, taken = [own], torch.zeros_like(similarity[:, 0]).scatter_(1, own, torch.inf)
        share, extra = divmod(keep - own.shape[1], pivots.shape[1])
        for i, closeness in enumerate(similarity.unbind(dim=1)):
            kept.append((closeness + taken).argsort(dim=1, stable=True)[:, : share + (i < extra)])
            taken.scatter_(1, kept[-1], torch.inf)
        return TokenMap.keep(torch.cat(kept, dim=1).sort(dim=1).values, tokens.count)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return [min(2, depth - 1)]


def _norm(x: Tensor, order: int) -> Tensor:
    return torch.linalg.vector_norm(x, ord=order, dim=2, dtype=wide(x.dtype))
