"""How alike visual tokens are, layer by layer, in the image encoder and in the LLM of a bare model.

`record` runs the model once and keeps what its layers saw; the other functions measure one layer, and `profile`
measures them all.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from illava_lab.errors import LabError
from illava_lab.hooks.attach import is_attached
from illava_lab.hooks.changes import take_hooks
from illava_lab.hooks.tap import TappedConfig
from illava_lab.hooks.turns import one_at_a_time
from illava_lab.method.blocks import block, undone
from illava_lab.method.tokens import Stage
from illava_lab.models.families import describe
from illava_lab.models.images import ImageLike
from illava_lab.session.asked import at_least_one
from illava_lab.session.lab import Lab
from illava_lab.session.room import check_prompt, positions_of
from illava_lab.sites.attention import AttentionSite


# ---------------------------------------------------------------------------------------------- one forward pass
@dataclass(frozen=True, eq=False)
class Recording:
    """The visual tokens of one image in every layer of a bare model. CLS and text are left out.

    Attributes:
        grid: (height, width) in patches, P = height * width.
        hidden: stage -> (L + 1, P, C) float32: entry i enters layer i, the last one leaves the last layer.
        attention: stage -> (L, P), mean over heads. In the encoder, what each patch receives, mean over all queries; in
            the LLM, what the last text token pays to each.
        first_token: (L,) what the last text token pays to the first token of the prompt in each layer of the LLM.
    """

    grid: tuple[int, int]
    hidden: dict[Stage, Tensor]
    attention: dict[Stage, Tensor]
    first_token: Tensor


def record(lab: Lab, image: ImageLike, question: str = "What is it?") -> Recording:
    """Run the model once, as it is, and keep what every layer saw.

    Raises:
        LabError: a strategy is attached to the model, or the image becomes more than one grid of patches.
    """
    anatomy = describe(lab.model)
    inputs = lab.inputs([at_least_one("image", image)], [question])
    check_prompt(lab.model, positions_of(lab.model, inputs))
    if not anatomy.fixed:
        raise LabError("redundancy is recorded of models whose images are one grid of patches each, such as LLaVA-1.5")
    visual = (inputs["input_ids"] == anatomy.image_token_id).nonzero()[:, 1][None]
    if visual.shape[1] != anatomy.patches:
        raise LabError(f"one image of {anatomy.patches} patches can be recorded, this one has {visual.shape[1]}")
    last = torch.tensor([inputs["input_ids"].shape[1] - 1], device=visual.device)

    hidden: dict[Stage, list[Tensor]] = {"encoder": [], "llm": []}
    attention: dict[Stage, list[Tensor]] = {"encoder": [], "llm": []}
    first_token: list[Tensor] = []

    def patches_of_encoder(x: Tensor) -> None:
        hidden["encoder"].append(x[0, anatomy.cls_tokens :].float().cpu())

    def patches_of_llm(x: Tensor) -> None:
        hidden["llm"].append(x[0, visual[0]].float().cpu())

    def attention_of_encoder(query: Tensor, key: Tensor, _: Tensor, mask: Tensor | None, scaling: float) -> None:
        received = AttentionSite(query, key, scaling, mask).statistic("attention_received")
        attention["encoder"].append(received[0, anatomy.cls_tokens :].cpu())

    def attention_of_llm(query: Tensor, key: Tensor, _: Tensor, mask: Tensor | None, scaling: float) -> None:
        row = AttentionSite(query, key, scaling, mask, causal=mask is None, last=last).statistic("text_attention")
        attention["llm"].append(row[0, visual[0]].cpu())
        first_token.append(row[0, 0].cpu())

    encoder, llm = list(anatomy.encoder_layers)[: anatomy.encoder_depth], list(anatomy.llm_layers)
    with one_at_a_time(lab.model), torch.no_grad():
        if is_attached(lab.model):
            raise LabError("redundancy is measured on the bare model; leave the attach block first")
        with (
            _watched(encoder, anatomy.layer_parts.attention, patches_of_encoder, attention_of_encoder),
            _watched(llm, "self_attn", patches_of_llm, attention_of_llm),
        ):
            lab.model(**inputs)
    return Recording(
        anatomy.grid,
        {stage: torch.stack(rows) for stage, rows in hidden.items()},
        {stage: torch.stack(rows) for stage, rows in attention.items()},
        torch.stack(first_token),
    )


@block
def _watched(layers: list[nn.Module], attention: str, states: Any, attend: Any) -> Iterator[None]:
    """Hand what enters each layer, and what leaves the last one, to `states`; queries and keys to `attend`."""

    def entering(module: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        states(args[0] if args else kwargs["hidden_states"])

    def leaving(module: nn.Module, args: tuple, out: Any) -> None:
        states(out[0] if isinstance(out, tuple) else out)

    attentions = [getattr(layer, attention) for layer in layers]
    configs = [module.config for module in attentions]

    def undo() -> None:
        for layer, module, config in zip(layers, attentions, configs, strict=True):
            take_hooks(layer, lambda hook: hook in (entering, leaving))
            object.__setattr__(module, "config", config)

    with undone(undo):
        for layer, module, config in zip(layers, attentions, configs, strict=True):
            layer.register_forward_pre_hook(entering, with_kwargs=True)
            object.__setattr__(module, "config", TappedConfig(config, attend))
        layers[-1].register_forward_hook(leaving)
        yield


# ---------------------------------------------------------------------------------------------- alike?
def similarity(x: Tensor, centred: bool = False) -> Tensor:
    """(N, N) cosine similarity of the rows of x (N, C).

    Args:
        centred: subtract the mean of all rows first. Hidden states share a large common direction (Ethayarajh 2019,
            arXiv 1909.00512, section 4), which alone makes every cosine large.

    Raises:
        LabError: x is no matrix.
    """
    unit = normalize(_matrix(x, centred), dim=1)
    return unit @ unit.T


def mean_similarity(x: Tensor) -> float:
    """The mean cosine similarity of two different rows of x (N, C). (Less the mean it would be near 0 for any x.)

    Raises:
        LabError: x is no matrix, or has a single row.
    """
    count = x.shape[0]
    if count < 2:
        raise LabError(f"two tokens are needed to compare, got {count}")
    cosine = similarity(x)
    return float((cosine.sum() - cosine.diagonal().sum()) / (count * (count - 1)))


def by_distance(cosine: Tensor, grid: tuple[int, int]) -> Tensor:
    """(D,) mean similarity of pairs of patches that lie 1, 2, ... D patches apart (Euclidean, rounded).

    Args:
        cosine: (P, P) from `similarity`, patches in raster order.
        grid: (height, width), P = height * width.

    Raises:
        LabError: the matrix does not fit the grid.
    """
    height, width = grid
    if tuple(cosine.shape) != (height * width, height * width):
        raise LabError(
            f"a grid of {height} x {width} patches needs a matrix of {(height * width,) * 2}, got {tuple(cosine.shape)}"
        )
    place = torch.cartesian_prod(torch.arange(height), torch.arange(width)).double()
    distance = torch.cdist(place, place).round().long().flatten()
    total = torch.zeros(int(distance.max()) + 1, dtype=torch.float64).index_add(0, distance, cosine.double().flatten())
    return (total / distance.bincount())[1:]


def effective_rank(x: Tensor, centred: bool = False) -> float:
    """How many directions the rows of x (N, C) really use: between 1 and min(N, C).

    ``exp(- sum_k p_k log p_k)`` with p_k the singular values divided by their sum (Roy and Vetterli 2007, "The
    effective rank: a measure of effective dimensionality", definition 1). No p is cut off, so it needs no threshold.

    Raises:
        LabError: x is no matrix, or all zeros.
    """
    values = torch.linalg.svdvals(_matrix(x, centred).double())
    if not values.sum() > 0:
        raise LabError("the effective rank of a matrix of zeros is not defined")
    return float(torch.special.entr(values / values.sum()).sum().exp())


def clusters(x: Tensor, least: float = 0.9, centred: bool = False) -> Tensor:
    """(N,) group of each row of x (N, C), numbered by first appearance: any two in a group have cosine >= `least`.

    Agglomerative clustering with complete linkage, which is what gives that promise. The number of groups is how many
    tokens would do if tokens that alike could stand for each other.

    Args:
        least: the smallest cosine inside a group, in (-1, 1).

    Raises:
        LabError: x is no matrix with two rows or more, or least is out of range.
    """
    from sklearn.cluster import AgglomerativeClustering  # takes a second to import, and only this needs it

    if not -1 < least < 1:
        raise LabError(f"least must be a cosine in (-1, 1), got {least!r}")
    if len(x) < 2:
        raise LabError(f"two tokens are needed to compare, got {len(x)}")
    distance = (1 - similarity(x, centred).double()).clamp_min(0).fill_diagonal_(0).cpu().numpy()
    model = AgglomerativeClustering(None, metric="precomputed", linkage="complete", distance_threshold=1 - least)
    labels = model.fit_predict(distance).tolist()
    number = {label: i for i, label in enumerate(dict.fromkeys(labels))}
    return torch.tensor([number[label] for label in labels])


# ---------------------------------------------------------------------------------------------- looked at?
def holders(attention: Tensor, share: float = 0.5) -> int:
    """The smallest number of tokens that together hold `share` of the attention (N,) paid to all of them.

    Raises:
        LabError: share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise LabError(f"share must be in (0, 1], got {share!r}")
    running = attention.double().sort(descending=True).values.cumsum(0)
    return min(int((running < share * running[-1] * (1 - 1e-12)).sum()) + 1, len(attention))


def sinks(attention: Tensor, factor: float = 5.0) -> list[int]:
    """Tokens that get more than `factor` times the mean of the attention (N,), strongest first.

    Attention sinks are tokens that attract much attention whatever they show: the first tokens of an LLM (Xiao et al.
    2023, arXiv 2309.17453), patches of little content in large vision transformers (Darcet et al. 2023, arXiv
    2309.16588). Neither paper has this threshold; it is ours.

    Raises:
        LabError: factor is not positive.
    """
    if not factor > 0:
        raise LabError(f"factor must be positive, got {factor!r}")
    order = attention.argsort(descending=True, stable=True)
    return [int(i) for i in order if attention[i] > factor * attention.mean()]


# ---------------------------------------------------------------------------------------------- all layers
def profile(recording: Recording, least: float = 0.9) -> pd.DataFrame:
    """One row for what enters each layer of each stage, and one for what leaves the stage.

    Columns: `stage, layer, similarity` (mean of all pairs), `neighbours` (mean of patches side by side, centred),
    `rank` (effective, centred), `clusters` (groups that are `least` alike, not centred), and of the attention in that
    layer `half` (tokens that hold half of it), `strongest` (the largest, as a multiple of the mean) and `visual` (the
    part of it that goes to visual tokens at all). The last three are empty for what leaves a stage.
    """
    rows = []
    for stage, states in recording.hidden.items():
        for layer, x in enumerate(states):
            row = {
                "stage": stage,
                "layer": layer,
                "similarity": mean_similarity(x),
                "neighbours": float(by_distance(similarity(x, centred=True), recording.grid)[0]),
                "rank": effective_rank(x, centred=True),
                "clusters": int(clusters(x, least).max()) + 1,
            }
            if layer < len(recording.attention[stage]):
                paid = recording.attention[stage][layer]
                row |= {
                    "half": holders(paid),
                    "strongest": float(paid.max() / paid.mean()),
                    "visual": float(paid.sum()),
                }
            rows.append(row)
    return pd.DataFrame(rows).astype({"half": "Int64"})


def _matrix(x: Tensor, centred: bool) -> Tensor:
    if x.dim() != 2:
        raise LabError(f"tokens must be a matrix (tokens, channels), got shape {tuple(x.shape)}")
    x = x.float()
    return x - x.mean(dim=0) if centred else x
