"""The log-sum-exp of an attention's rows and the sums of its columns, and never a matrix of all its weights.

On CUDA two kernels compute them (`illava_lab.sites.kernels`). Elsewhere, and where these cannot, blocks do.
"""

from __future__ import annotations

import warnings
from functools import cache
from types import ModuleType

import torch
from torch import Tensor

from illava_lab.sites.scores import Block, Scores

# A block holds so many weights: few enough for a CPU's caches, and on an accelerator so many that a block is worth the
# calls; there also as many as weigh no more than the queries, which is less than what the MLP of any model needs.
LEAST_WEIGHTS, CPU_WEIGHTS, ACCELERATOR_WEIGHTS = 2**16, 2**20, 2**23
KERNEL_DEVICES = ["cuda"]


def row_lse(scores: Scores) -> Tensor:
    """(P, H, T) float32: natural log-sum-exp of the logits of each query, -inf for one that sees nothing."""
    kernels = kernels_for(scores)
    if kernels is not None:
        value: Tensor = kernels.row_lse(scores)
        return value
    blocks = _blocks(scores)
    if len(blocks) == 1:
        return scores.logits(blocks[0])[0].logsumexp(-1)
    out = scores.query.new_empty(scores.query.shape[:3], dtype=torch.float32)
    for at in blocks:
        out[at] = scores.logits(at)[0].logsumexp(-1)
    return out


def column_sums(scores: Scores, lse: Tensor | None = None) -> Tensor:
    """(P, S) float32: the attention that each key receives, summed over heads and queries.

    Args:
        lse: (P, H, T) float32, what `row_lse` computes, where it is known. It spares the kernels their first pass; a
            block has none, since a softmax of its rows takes less time than a subtraction and an exponential.
    """
    kernels = kernels_for(scores)
    if kernels is not None:
        value: Tensor = kernels.column_sums(scores, lse)
        return value
    blocks = _blocks(scores)
    if len(blocks) == 1:
        return _block_sums(scores, blocks[0])
    out = scores.query.new_zeros((scores.query.shape[0], scores.key.shape[2]), dtype=torch.float32)
    for at in blocks:
        out[at.prompts] += _block_sums(scores, at)
    return out


def _block_sums(scores: Scores, at: Block) -> Tensor:
    """(p, S): the column sums of a block."""
    logits, hidden = scores.logits(at)
    weights = logits.softmax(-1)
    if hidden is not None and not scores.only_causal:
        # A query that sees nothing has NaN for weights. Where only order hides keys, each sees at least itself.
        weights = weights.masked_fill(hidden, 0.0) if weights.requires_grad else weights.masked_fill_(hidden, 0.0)
    return weights.sum((1, 2))


def _blocks(scores: Scores) -> list[Block]:
    """The parts that are computed one after another: whole prompts, or groups of heads of one, or rows of one group."""
    (prompts, heads, rows, _), (_, groups, length, _) = scores.query.shape, scores.key.shape
    # Not more than the queries themselves take, so that a block never makes the peak; but small ones cost few calls.
    enough = min(CPU_WEIGHTS, max(LEAST_WEIGHTS, scores.query.nbytes // torch.float32.itemsize))
    if scores.query.device.type != "cpu":
        enough = max(ACCELERATOR_WEIGHTS, scores.query.nbytes // torch.float32.itemsize)
    some_rows = max(1, enough // max(1, scores.shared * length))
    some_groups = max(1, some_rows // max(1, rows))
    some_prompts = max(1, some_groups // groups)
    return [
        Block(prompt, head, row)
        for prompt in _stretches(prompts, some_prompts)
        for head in _stretches(heads, some_groups * scores.shared)
        for row in _stretches(rows, some_rows)
    ]


def _stretches(count: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def kernels_for(scores: Scores) -> ModuleType | None:
    """The module that launches kernels, where these can compute such scores."""
    query, key = scores.query, scores.key
    if query.device.type not in KERNEL_DEVICES:
        return None
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad):
        return None  # the kernels have no backward
    launch = _launch()
    if launch is None or not launch.takes(scores) or not _runs(query.device, query.dtype):
        return None
    return launch


@cache
def _launch() -> ModuleType | None:
    try:
        from illava_lab.sites import launch
    except ImportError:
        return None  # there is no triton for Windows and macOS
    return launch


@cache
def _runs(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether a kernel compiles and starts there: it takes a C compiler, and a GPU that knows the dtype."""
    launch = _launch()
    assert launch is not None
    token = torch.zeros(1, 1, 1, 16, device=device, dtype=dtype)
    try:
        launch.column_sums(Scores(token, token, 1.0), None)
    except Exception as reason:  # of many types, as compilers and drivers raise them
        warnings.warn(f"Triton does not run on {device} in {dtype}, so blocks do its work: {reason}", stacklevel=2)
        return False
    return True
