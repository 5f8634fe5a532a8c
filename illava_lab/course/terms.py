"""The words and symbols of the course on one page, each with one meaning in every chapter."""

from __future__ import annotations

import html

from IPython.display import display

from illava_lab.errors import one_of

WORDS: dict[str, str] = {
    "patch": "a small square of the picture, here 8 × 8 pixels; each becomes one token",
    "visual token": "a vector that stands for a patch inside the model, or for several once they are merged",
    "image encoder": "the first half of the model: layers in which the patches look at each other",
    "projector": "the small network that translates what leaves the encoder into vectors that an LLM understands",
    "LLM": "the language model: it reads the visual tokens, then the question, and writes the answer",
    "attention": "how a token reads others: it takes a mean of them, weighted by how well its query fits their keys",
    "CLS token": "an extra token before the patches that sums up the picture in CLIP's encoder; never removed",
    "line end": "in some models, a token after each row of patches; never removed in the LLM",
    "prefill": "the first pass: picture and question go through the model at once",
    "decoding": "writing the answer, one token at a time, after the prefill",
    "KV cache": "keys and values that each LLM layer keeps of what it read, so that decoding need not read it again",
    "FLOPs": "floating-point operations, the work; shares are of the bare model's prefill",
    "fused attention": "SDPA or Flash: computes attention without storing the matrix of all weights; fast",
    "bare model": "the model with nothing reduced; every difference is to it unless another is named",
    "prune": "drop tokens",
    "merge": "mix tokens into others that stay; iLLaVA calls it recycling",
    "score": "what a method ranks tokens by; the highest are kept",
    "anchor": "the token whose place a survivor takes; the white frame in pictures",
    "size": "how many patches a token stands for",
    "keep": "the share of the visual tokens that the last LLM layer still sees",
    "schedule": "which layers reduce, and what each leaves",
    "95 % interval": "where a difference would lie with other pictures; if it holds 0, the two cannot be told apart",
    "random, downsample": "the simplest rivals: tokens dropped at random, and a smaller picture",
}
SYMBOLS: dict[str, str] = {
    "N": "patches of the picture, and visual tokens at the start (196)",
    "M": "visual tokens that are left",
    "R": "tokens that one step removes",
    "n": "visual tokens that enter a layer",
    "B": "images in a batch",
    "C": "channels: the length of a token's vector (160)",
    "X, Y": "tokens before and after a step, one a row",
    "W": "weights of a step, one row for each token that leaves: Y = W X",
    "z": "size of a token: the patches that it stands for",
    "q, k": "a query and a key: a token reads another by exp(q · k), over the sum of all",
    "K": "number of an LLM layer; what is reduced “before layer K” has been read by the layers below",
}


def glossary(*terms: str) -> None:
    """Display the glossary, or these terms of it only.

    Raises:
        LabError: no such term.
    """
    both = WORDS | SYMBOLS
    for term in terms:
        one_of("term", term, tuple(both))
    parts = [{term: both[term] for term in terms}] if terms else [WORDS, SYMBOLS]
    text = "\n".join(f"{term}: {meaning}" for part in parts for term, meaning in part.items())
    page = "".join(f'<table style="text-align: left">{_rows(part)}</table>' for part in parts)
    display({"text/plain": text, "text/html": page}, raw=True)


def _rows(part: dict[str, str]) -> str:
    cells = ((html.escape(term), html.escape(meaning)) for term, meaning in part.items())
    style = 'style="text-align: left; vertical-align: top"'
    return "".join(f"<tr><th {style}>{term}</th><td {style}>{meaning}</td></tr>" for term, meaning in cells)
