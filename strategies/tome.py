"""ToMe: in the encoder, merge the most similar pairs of tokens."""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from illava_lab.method import LabError, Paper, Stage, Strategy, TokenMap, Tokens, one_of, register


@register
class ToMe(Strategy):
    """Bipartite soft matching on attention keys, size-weighted merging, proportional attention.

    1. Split tokens by parity into A (0, 2, 4, ...) and B (1, 3, 5, ...); CLS, at 0, may not be merged.
    2. Each a in A finds its most similar b in B: cosine of the head-mean keys of this layer.
    3. The r pairs with the highest similarity merge: ``x_b = (z_b x_b + sum z_a x_a) / (z_b + sum z_a)``.
    4. Later attention adds ``log z_k`` to the logits of every key (proportional attention).

    At most half of the tokens can merge at one layer. The reference returns unmerged A, then B, and the next layer
    splits that order by parity.

    Args:
        order: "reference" for that order, "raster" for the order of the places in the image (ours).
        sizes: "carried" weighs by the patches each token stands for; "reset" counts every token as one at each layer.
        attention: "proportional", or "plain" to leave out step 4, as the reference does for MAE.

    LightCompress's ToMe for LLaVA is ``sizes="reset", attention="plain"``: from its second layer on, a merged token
    no longer is the mean of its patches.
    """

    name = "tome"
    paper = Paper("Token Merging: Your ViT but Faster", "2210.09461", 2023)
    stages = ("encoder",)
    smallest_keep = 0.5
    memory = "quadratic"

    order: str = "reference"
    sizes: str = "carried"
    attention: str = "proportional"

    def __post_init__(self) -> None:
        one_of("order", self.order, ("reference", "raster"))
        one_of("sizes", self.sizes, ("carried", "reset"))
        one_of("attention", self.attention, ("proportional", "plain"))

    @property
    def proportional_attention(self) -> bool:  # type: ignore[override]  # a setting decides
        return self.attention == "proportional"

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        count, device = tokens.count, tokens.hidden.device
        merges, most = count - keep, (count - tokens.protected_count) // 2
        if merges > most:
            raise LabError(f"tome can merge at most {most} of {count} tokens at one layer, asked to merge {merges}")
        if merges == 0:
            return TokenMap.identity(tokens)
        best, partner = self._similarity(tokens).max(dim=2)
        rank = best.argsort(dim=1, descending=True, stable=True)
        merged, unmerged = rank.split([merges, rank.shape[1] - merges], dim=1)
        if tokens.has_protected:
            unmerged = unmerged.sort(dim=1).values  # keeps CLS in front

        b_tokens = torch.arange(1, count, 2, dtype=torch.long, device=device).expand(tokens.batch, -1)
        anchor = torch.cat([unmerged * 2, b_tokens], dim=1)
        slot = partner.gather(1, merged).add_(unmerged.shape[1])
        if self.order == "raster":
            anchor, order = anchor.sort(dim=1)
            slot = order.argsort(dim=1).gather(1, slot)
        carried = self.sizes == "carried"
        size = tokens.size if carried else torch.ones(tokens.batch, count, dtype=torch.float32, device=device)
        return TokenMap.merge_into(anchor, slot, merged * 2, size, row=tokens.row)

    @staticmethod
    def _similarity(tokens: Tokens) -> Tensor:
        """(B, A, B) cosines; minus infinity where NaN would be the nearest to all, and for the protected."""
        keys = tokens.keys
        length = vector_norm(keys, dim=2, keepdim=True)
        if tokens.has_protected:
            length = length.masked_fill_(tokens.protected[..., None], torch.nan)
        keys = keys / length
        similarity = torch.bmm(keys[:, ::2], keys[:, 1::2].transpose(1, 2))
        return similarity.nan_to_num_(nan=-torch.inf)

    def layers(self, stage: Stage, depth: int) -> list[int]:
        return list(range(depth))
