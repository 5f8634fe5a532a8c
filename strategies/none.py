"""No reduction: the bare model, the baseline of every comparison."""

from illava_lab.method import Strategy, TokenMap, Tokens, register


@register
class Nothing(Strategy):
    """Keep every token. It serves no stage, so a comparison runs the bare model."""

    name = "none"
    kind = "none"
    stages = ()

    def map(self, tokens: Tokens, keep: int) -> TokenMap:
        return TokenMap.identity(tokens)
