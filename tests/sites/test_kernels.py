"""The Triton kernels: run by Triton's interpreter, compiled for GPUs that are not here, and done without."""

from __future__ import annotations

import importlib.util
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from illava_lab.sites import sums
from illava_lab.sites.attention import AttentionSite

HERE = Path(__file__).parent
HAS_WHEELS = sys.platform == "linux" and platform.machine() == "x86_64"
needs_triton = pytest.mark.skipif(not HAS_WHEELS, reason="there is no Triton for this system, where blocks do its work")

COMPILE = """
import itertools, triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from illava_lab.sites import kernels

TYPES = {"out": "*fp32", "lse": "*fp32", "scaling": "fp32", "lowest": "fp32", "first": "*i32", "last": "*i32"}
CASES = [  # compute capability, dtype, width, causal, mask, its type, valid, spans
    (75, "fp16", 80, True, "boolean", "u8", True, False),
    (80, "bf16", 72, True, "none", "bf16", True, True),
    (90, "fp32", 128, False, "additive", "fp16", False, False),
    (100, "bf16", 256, False, "additive", "bf16", True, True),
]
for kernel, (target, dtype, width, causal, mask, of_mask, valid, spans) in itertools.product(
    (kernels.row_kernel, kernels.column_kernel), CASES
):
    padded = triton.next_power_of_2(width)
    fixed = dict(
        CAUSAL=causal, MASK=mask, VALID=valid, SPANS=spans, WIDEN=False, PRECISION="ieee" if dtype == "fp32" else "tf32",
        WIDTH=width, PADDED=padded, SIDE=min(64, 2**14 // (padded * (4 if dtype == "fp32" else 2))), query_column=1,
    )
    types = TYPES | {"query": f"*{dtype}", "key": f"*{dtype}", "mask": f"*{of_mask}", "valid": "*u8"}
    names = kernel.arg_names
    source = ASTSource(
        kernel, {name: "constexpr" if name in fixed else types.get(name, "i32") for name in names},
        constexprs={(names.index(name),): value for name, value in fixed.items()},
    )
    options = {"num_warps": 4, "num_stages": 2, "enable_fp_fusion": True}
    shared = triton.compile(source, target=GPUTarget("cuda", target, 32), options=options).metadata.shared
    assert shared <= 2**16, f"{kernel.__name__} takes {shared} bytes of fast memory, and small GPUs have 64 KiB"
"""


def run(*command: str, **environment: str) -> str:
    """What another Python prints, whose Triton reads its own environment."""
    done = subprocess.run(
        [sys.executable, *command], env=os.environ | environment, capture_output=True, text=True, cwd=HERE.parents[1],
        timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done.stdout


@pytest.mark.slow
@needs_triton
def test_kernels_equal_the_formula_under_the_interpreter():
    printed = run(
        "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", str(HERE / "interpreted_kernels.py"),
        TRITON_INTERPRET="1", OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert "9 passed" in printed, printed


@pytest.mark.slow
@needs_triton
def test_kernels_compile_for_gpus(tmp_path):
    (tmp_path / "compile.py").write_text(COMPILE)
    run(str(tmp_path / "compile.py"), TRITON_CACHE_DIR=str(tmp_path / "cache"))


@pytest.fixture
def fresh(monkeypatch):
    """What is remembered of Triton is forgotten, before and after."""
    monkeypatch.setattr(sums, "KERNEL_DEVICES", ["cpu"])
    for known in (sums._launch, sums._runs):
        known.cache_clear()
    yield
    for known in (sums._launch, sums._runs):
        known.cache_clear()


def test_blocks_take_over_where_there_is_no_triton(fresh, monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    for name in ("kernels", "launch"):
        monkeypatch.delitem(sys.modules, f"illava_lab.sites.{name}", raising=False)
    query = torch.randn(1, 2, 9, 8)
    want = (query @ query.mT * 0.3).softmax(-1).mean((1, 2))
    torch.testing.assert_close(AttentionSite(query, query, 0.3).statistic("attention_received"), want)


@needs_triton
def test_blocks_take_over_with_a_word_where_kernels_do_not_start(fresh):
    assert importlib.util.find_spec("triton"), "pip install -e .[test] brings it"
    query = torch.randn(1, 2, 9, 8)
    want = (query @ query.mT * 0.3).softmax(-1).mean((1, 2))
    with pytest.warns(UserWarning, match="Triton does not run on cpu in torch.float32, so blocks do its work: "):
        got = AttentionSite(query, query, 0.3).statistic("attention_received")  # without its interpreter
    torch.testing.assert_close(got, want)
