"""The Triton kernels on CPU tensors. `test_kernels.py` runs this where TRITON_INTERPRET=1 is set before all imports."""

from __future__ import annotations

import warnings

import pytest
import torch
from helpers.attention import DTYPES, packed_case, random_case
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from illava_lab.measuring.operations import operations
from illava_lab.sites import sums
from illava_lab.sites.attention import AttentionSite


@pytest.fixture(autouse=True)
def kernels(monkeypatch):
    """The calls of the kernels on CPU tensors, where blocks are refused."""
    launch, calls = sums._launch(), []
    assert launch is not None
    monkeypatch.setattr(sums, "KERNEL_DEVICES", ["cpu"])
    assert all(sums._runs(torch.device("cpu"), dtype) for dtype in DTYPES)
    for name in ("row_lse", "column_sums"):
        original = getattr(launch, name)
        monkeypatch.setattr(launch, name, lambda *given, run=original: calls.append(run) or run(*given))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # NumPy warns of the logarithm of zero
        yield calls


# Most sequences fit into one tile, some take three.
@pytest.mark.parametrize("part", range(4))
def test_any_attention_equals_the_formula(part, kernels):
    for seed in range(40 * part, 40 * part + 40):
        long = seed % 5 == 0
        case, before = random_case(seed, longest=140 if long else 30, most=1 if long else 2), len(kernels)
        case.check(twice=long)
        assert len(kernels) - before == (1 + long) * (1 if case.site.row_lse is not None else 2), case.name


@pytest.mark.parametrize("windows", [False, True])
def test_packed_sequences_equal_the_formula(windows, kernels):
    for seed in range(8):
        packed_case(seed, windows, sizes=seed % 2 == 0).check()
    assert len(kernels) == 16


def test_a_known_log_sum_exp_spares_the_first_pass():
    case = next(c for c in (random_case(seed, 40) for seed in range(100)) if c.site.row_lse is not None)
    ran = []
    with pytest.MonkeyPatch.context() as patch:
        launch = sums._launch()
        original = launch._launch
        patch.setattr(launch, "_launch", lambda kernel, *given: ran.append(kernel) or original(kernel, *given))
        case.site.statistic("attention_received")
    assert ran == [launch.kernels.column_kernel]


def test_kernels_are_operations_like_others():
    """Few, with the FLOPs of the blocks, and with shapes where there are no values."""
    query, key, valid = torch.randn(2, 4, 33, 16), torch.randn(2, 2, 33, 16), torch.ones(2, 33, dtype=torch.bool)
    site = AttentionSite(query, key, 0.25, causal=True, valid=valid)
    flops, count = {}, {}
    for device in ("cpu", "none"):
        sums.KERNEL_DEVICES[:] = [device]
        for name in ("attention_received", "lse"):
            with FlopCounterMode(display=False) as counter:
                site.statistic(name)
            flops[device, name] = counter.get_total_flops()
            count[device, name] = operations(lambda name=name: site.statistic(name)).total()
    for name, most in (("attention_received", 4), ("lse", 2)):
        assert flops["cpu", name] == flops["none", name] == 2 * 2 * 4 * 33 * 33 * 16
        assert count["cpu", name] <= most < count["none", name]
    sums.KERNEL_DEVICES[:] = ["cpu"]
    with FakeTensorMode() as mode:
        fake = AttentionSite(*(mode.from_tensor(x) for x in (query, key)), 0.25, valid=mode.from_tensor(valid))
        assert fake.statistic("lse").shape == fake.statistic("attention_received").shape == (2, 33)


def test_blocks_do_what_kernels_cannot(kernels):
    query = torch.randn(1, 2, 9, 8)
    received = AttentionSite(query, query, 0.3).statistic("attention_received")
    assert len(kernels) == 1
    for given in (query.double(), query.clone().requires_grad_(), torch.nn.functional.pad(query, (0, 600))):
        got = AttentionSite(given, given, 0.3).statistic("attention_received")
        torch.testing.assert_close(got, received)
        assert len(kernels) == 1
    assert (
        got.requires_grad is False and AttentionSite(given, given, 0.3, causal=True).statistic("lse").isfinite().all()
    )
