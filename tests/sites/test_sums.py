"""Column sums and log-sum-exps of any attention equal the formula, in blocks of any size and with few operations."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch
from helpers.attention import packed_case, random_case
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode

from illava_lab.measuring.operations import operations
from illava_lab.sites import scores, sums
from illava_lab.sites.attention import AttentionSite


@pytest.mark.parametrize("part", range(10))
def test_any_attention_equals_the_formula(part, monkeypatch):
    for seed in range(50 * part, 50 * part + 50):
        # One block; or prompts, groups of heads, or rows apart.
        monkeypatch.setattr(sums, "CPU_WEIGHTS", random.Random(seed).choice((2**20, 8000, 2000, 300, 30)))
        monkeypatch.setattr(sums, "LEAST_WEIGHTS", random.Random(seed).choice((2**20, 8000, 2000, 300, 30)))
        random_case(seed, longest=90).check()


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("sizes", [False, True])
def test_packed_sequences_equal_the_formula(windows, sizes):
    for seed in range(20):
        packed_case(seed, windows, sizes).check()


def test_a_block_holds_few_weights_and_all_of_them_are_few_blocks(monkeypatch):
    sizes, original = [], scores.products
    monkeypatch.setattr(scores, "products", lambda *given: sizes.append((out := original(*given)).shape) or out)
    query, key = torch.randn(3, 6, 50, 8), torch.randn(3, 2, 50, 8)
    for weights, shape, count in [
        (3 * 6 * 2500, (3, 6, 50, 50), 1),
        (2 * 6 * 2500, (2, 6, 50, 50), 2),
        (6 * 2500, (1, 6, 50, 50), 3),
        (3 * 2500, (1, 3, 50, 50), 6),
        (3 * 20 * 50, (1, 3, 20, 50), 18),
        (0, (1, 3, 1, 50), 300),
    ]:
        monkeypatch.setattr(sums, "CPU_WEIGHTS", weights)
        monkeypatch.setattr(sums, "LEAST_WEIGHTS", weights)
        for name in ("attention_received", "lse"):
            sizes.clear()
            AttentionSite(query, key, 0.3, causal=True).statistic(name)
            assert sizes[0] == shape and len(sizes) == count, "as many as are allowed"
            assert all(size.numel() <= max(weights, 150) for size in sizes)


def test_default_dtype_device_and_autocast_change_nothing():
    wanted = [random_case(seed, longest=20) for seed in range(30)]
    packed = [packed_case(seed, windows, False) for seed, windows in enumerate((False, True))]
    try:
        torch.set_default_dtype(torch.bfloat16)
        torch.set_default_device("meta")
        with torch.autocast("cpu", torch.bfloat16):
            for case in wanted:
                case.check()
            for case in packed:
                case.check()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)


def test_gradients_are_those_of_the_formula(monkeypatch):
    monkeypatch.setattr(sums, "CPU_WEIGHTS", 300)  # the sums of blocks are written into one tensor
    query, key = torch.randn(2, 4, 9, 6, dtype=torch.float64), torch.randn(2, 2, 9, 6, dtype=torch.float64)
    valid = torch.arange(9) >= torch.tensor([[0], [3]])
    visible = valid[:, None, None] & valid[:, None, :, None] & torch.ones(9, 9).tril().bool()
    weight, grads = torch.randn(2, 9, dtype=torch.float64).masked_fill(~valid, 0.0), []
    for plain in (True, False):
        q, k = query.clone().requires_grad_(), key.clone().requires_grad_()
        if plain:
            logits = (q @ k.repeat_interleave(2, 1).mT * 0.4).masked_fill(~visible, -1e30)
            received = (logits.softmax(-1) * visible).sum((1, 2)) / (4 * valid.sum(1, keepdim=True))
            lse = logits.logsumexp(-1).mean(1)
        else:
            site = AttentionSite(q, k, 0.4, valid=valid, causal=True)
            received, lse = site.statistic("attention_received"), site.statistic("lse")
        total = (received * weight).sum() + torch.where(valid, lse * weight, 0.0).sum()
        grads.append(torch.autograd.grad(total, (q, k)))
    for want, got in zip(*grads, strict=True):
        torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_rows_of_large_keys_come_prompt_by_prompt(monkeypatch):
    query, key = (torch.randn(3, heads, 9, 8).bfloat16() for heads in (4, 2))
    site = AttentionSite(query, key, 0.3, valid=torch.arange(9) >= torch.tensor([[0], [2], [4]]), causal=True, last=7)
    want = site.statistic("text_attention")
    monkeypatch.setattr(scores, "CPU_KEYS", 0)
    torch.testing.assert_close(site.statistic("text_attention"), want)


PLAIN, ORDERED, PADDED = {"has_cls": True}, {"causal": True, "last": 576}, {"causal": True, "last": 576, "valid": ...}


@pytest.mark.parametrize(
    ("site", "limits"),
    [
        (PLAIN, {"attention_received": 9, "lse": 8, "cls_attention": 9, "keys": 1}),
        (ORDERED, {"attention_received": 12, "lse": 11, "text_attention": 9, "keys": 1}),
        (ORDERED | {"visual": ...}, {"attention_received": 13, "lse": 12, "text_attention": 10, "keys": 3}),
        (PADDED | {"visual": ...}, {"attention_received": 19, "lse": 15, "text_attention": 13, "keys": 3}),
        (PLAIN | {"row_lse": ...}, {"lse": 1}),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_operations_of_one_prompt(site, limits, dtype, monkeypatch):
    """At the block size of accelerators. Halves cost two more: queries and keys are made float32."""
    monkeypatch.setattr(sums, "CPU_WEIGHTS", sums.ACCELERATOR_WEIGHTS)
    monkeypatch.setattr(sums, "LEAST_WEIGHTS", sums.ACCELERATOR_WEIGHTS)
    query, key = (torch.randn(1, 577, 16, 64).to(dtype).transpose(1, 2) for _ in range(2))
    tensors = {
        "visual": torch.arange(5, 500)[None],
        "valid": torch.ones(1, 577, dtype=torch.bool),
        "row_lse": torch.zeros(1, 16, 577),
    }
    made = AttentionSite(query, key, 0.125, **{name: tensors.get(name, value) for name, value in site.items()})
    with torch.no_grad():
        count = {name: operations(lambda name=name: made.statistic(name)).total() for name in limits}
    halves = dtype != torch.float32
    assert all(count[name] <= most + 2 * (halves and most > 3) for name, most in limits.items()), count


def test_windows_wait_for_nothing_when_the_host_knows_the_longest():
    """With tensors that hold no values, what reads one fails."""
    attention = packed_case(0, windows=True, sizes=False).attention
    longest = int(attention.bounds.diff().max())
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        parts = [tuple(mode.from_tensor(x) for x in part) for part in attention.parts]
        fake = replace(attention, parts=parts, bounds=mode.from_tensor(attention.bounds))
        with pytest.raises(DataDependentOutputException):
            fake.per_cell("lse")
        told = replace(fake, longest=longest).per_cell("lse")
    assert told.shape == attention.per_cell("lse").shape
