"""Tally: merge what is common, in both stages, and let what was merged go on to count."""

import torch
from torch import Tensor

from illava_lab.method import LabError, Stage, Strategy, TokenMap, Tokens, highest, register, unit


@register
class Tally(Strategy):
    """Merge common tokens first; keep what the question attends to; a merged token counts as all that it stands for.

    1. In the encoder, ``c_j = <u_j, mean of u>`` with ``u_j = x_j / |x_j|`` says how common a token is: nearly all of
       a background is, and little of what lies on it. ``d_j``, from 0 to 1, is its rank by falling c.
    2. Tokens are split by parity into A and B. Each a finds its most similar b, by the cosine of the head-mean keys,
       and the pairs with the highest ``cos(k_a, k_b) - d_a - d_b`` merge into the mean of the patches of both.
    3. In the LLM, before two layers, the tokens stay that the text after the image attends to most, on the mean.
    4. In the attention of both stages the logits of a key that stands for s tokens grow by ``log s``.

    Pairs and means are ToMe's, the choice in the LLM is near SparseVLM's. Without step 4 in the LLM a softmax over
    fewer tokens gives each more than it had, and the model counts too much. Without step 1 the first to merge are the
    insides of things, because nothing is as alike. Ours; `results/research` tells how it was found.
    """

    name = "tally"
    memory = "quadratic"
    proportional_attention = True
    proportional_in_llm = True
    encoder_share = 0.5

    def smallest_keep_in(self, stage: Stage) -> float:
        return 0.5 if stage == "encoder" else 0.0

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        if keep == tokens.count:
            return TokenMap.identity(tokens)
        if tokens.stage == "llm":
            score = tokens.text_rows.mean(dim=1)
            return TokenMap.keep(highest(score, keep, tokens), tokens.count, score)
        merges, most = tokens.count - keep, (tokens.count - tokens.protected_count) // 2
        if merges > most:
            raise LabError(
                f"tally can merge at most {most} of {tokens.count} tokens at a layer, asked to merge {merges}"
            )
        best, partner = self._similarity(tokens).max(dim=2)
        distinct = self._distinct(tokens)
        worth = best - distinct[:, ::2] - distinct[:, 1::2].gather(1, partner)
        order = worth.argsort(dim=1, descending=True, stable=True)
        merged, unmerged = order.split([merges, order.shape[1] - merges], dim=1)
        odd = torch.arange(1, tokens.count, 2, dtype=torch.long, device=partner.device).expand(tokens.batch, -1)
        anchor, place = torch.cat([unmerged * 2, odd], dim=1).sort(dim=1)
        slot = place.argsort(dim=1).gather(1, partner.gather(1, merged) + unmerged.shape[1])
        return TokenMap.merge_into(anchor, slot, merged * 2, tokens.size, row=tokens.row)

    def _similarity(self, tokens: Tokens) -> Tensor:
        """(B, A, B) cosines, minus infinity for NaN and for the protected."""
        keys = unit(tokens.keys)
        similarity = torch.bmm(keys[:, ::2], keys[:, 1::2].transpose(1, 2)).nan_to_num_(nan=-torch.inf)
        if tokens.has_protected:
            similarity.masked_fill_(tokens.protected[:, ::2, None] | tokens.protected[:, None, 1::2], -torch.inf)
        return similarity

    def _distinct(self, tokens: Tokens) -> Tensor:
        """(B, N) from 0, the most common, to nearly 1."""
        states = unit(tokens.hidden).nan_to_num_()
        share = tokens.size.masked_fill(tokens.protected, 0.0) if tokens.has_protected else tokens.size
        common = torch.bmm(states, torch.bmm(share[:, None].to(states.dtype), states).transpose(1, 2))[..., 0]
        rank = common.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
        return rank.to(states.dtype) / tokens.count

    def layers(self, stage: Stage, depth: int) -> list[int]:
        if stage == "encoder":
            return list(range(max(1, depth // 2)))
        return sorted({min(max(1, round(depth * third / 3)), depth - 1) for third in (1, 2)})
