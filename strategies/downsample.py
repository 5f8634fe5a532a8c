"""Down-sampling: a smaller picture goes in, the baseline that beats many methods."""

from illava_lab.method import Strategy, TokenMap, Tokens, get_strategy, register


@register
class Downsample(Strategy):
    """Shrink the picture (bicubic, antialiased) before the patch embedding, so that the encoder saves too.

    A picture of H x W patches becomes one of h x w patches with nearly its proportions, so not every count can be
    reached: 14 x 14 can become 13 x 14 = 182, 13 x 13 = 169, 12 x 13 = 156 and so on. Position embeddings are
    interpolated to the smaller grid, as transformers does for pictures of other sizes. The reference (VTC-Bench)
    divides both sides by a whole number and lets a model of native resolution see the result.

    This is not a map of tokens: the new ones are made from new pixels. The map only says which patches of the full
    picture each new one shows, and in whose place it stands. The LLM gets them at the positions of those places;
    ``attach(..., positions="packed")`` numbers them without gaps, as a model that is given a smaller picture would.
    """

    name = "downsample"
    stages = ("image",)
    kind = "pool"
    memory = "quadratic"

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        return get_strategy("pool")().map(tokens, keep)

    def reachable_keep(self, keep: int, grid: tuple[int, int]) -> int:
        height, width = self.grid(keep, grid)
        return height * width

    @staticmethod
    def grid(keep: int, grid: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the smaller picture, in patches: the product nearest to `keep`."""
        height, width = grid
        sizes = [
            (h, w)
            for h in range(1, height + 1)
            for w in {h * width // height, -(-h * width // height), (h + 1) * width // height}
            if 1 <= w <= width
        ]
        return min(sizes, key=lambda size: (abs(size[0] * size[1] - keep), size))
