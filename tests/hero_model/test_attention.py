"""Packed attention against the textbook formula with a mask, and what its two backends promise."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from hero_model.nn import attention
from hero_model.nn.attention import packed_attention
from hero_model.packed.batch import Layout

LENGTHS = np.array([3, 3, 1, 5, 5, 5, 2])
MEMORIES = np.array([2, 2, 4, 1, 1, 6, 2])  # of the same sequences
HEADS, WIDTH = 4, 8


class Calls(TorchDispatchMode):
    """Records every operator that runs, with its arguments."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append((str(func), args))
        return func(*args, **(kwargs or {}))


def random_qkv(rows, dtype=torch.float64, seed=0):
    """Three strided views of one tensor, as a joined projection gives them."""
    generator = torch.Generator().manual_seed(seed)
    joined = torch.randn(rows, 3, HEADS, WIDTH, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
    return joined, joined.unbind(1)


def dense_attention(q, k, v, lengths, memories=None, *, causal=False):
    """One softmax over all rows, with minus infinity wherever the sequences differ, or the key comes later."""
    owner, other = (
        torch.repeat_interleave(torch.arange(len(own)), torch.from_numpy(own))
        for own in (lengths, lengths if memories is None else memories)
    )
    hidden = owner[:, None] != other
    if causal:
        hidden |= torch.ones_like(hidden).triu(1)
    scores = torch.einsum("qhd,khd->hqk", q, k) / WIDTH**0.5
    weights = scores.masked_fill(hidden, -torch.inf).softmax(-1)
    return torch.einsum("hqk,khd->qhd", weights, v)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6), (torch.bfloat16, 2e-2)]
)
def test_equals_dense_attention(dtype, tolerance):
    joined, (q, k, v) = random_qkv(LENGTHS.sum(), dtype)
    exact_joined, exact = random_qkv(LENGTHS.sum())
    out, expected = packed_attention(q, k, v, Layout.of(LENGTHS)), dense_attention(*exact, LENGTHS)
    assert out.dtype == dtype and out.shape == expected.shape
    torch.testing.assert_close(out.double(), expected, rtol=0, atol=tolerance)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    out.backward(upstream.to(dtype))
    expected.backward(upstream)
    torch.testing.assert_close(joined.grad.double(), exact_joined.grad, rtol=0, atol=4 * tolerance)


@pytest.mark.parametrize("causal", [False, True])
def test_a_memory_or_only_earlier_rows(causal):
    joined, (q, k, v) = random_qkv(LENGTHS.sum())
    layout, memory, memories = Layout.of(LENGTHS), None, None
    if not causal:
        _, (_, k, v) = random_qkv(MEMORIES.sum(), seed=2)
        memory, memories = Layout.of(MEMORIES), MEMORIES
    out = packed_attention(q, k, v, layout, memory=memory, causal=causal)
    expected = dense_attention(q, k, v, LENGTHS, memories, causal=causal)
    torch.testing.assert_close(out, expected, rtol=0, atol=1e-12)
    upstream = torch.linspace(-1, 1, out.numel(), dtype=torch.float64).view_as(out)
    got, wanted = (torch.autograd.grad(x, joined, upstream)[0] for x in (out, expected))
    torch.testing.assert_close(got, wanted, rtol=0, atol=1e-12)


def test_sequences_do_not_see_each_other():
    _, qkv = random_qkv(LENGTHS.sum())
    _, others = random_qkv(LENGTHS.sum(), seed=1)
    second = slice(3, 6)
    for x, other in zip(qkv, others, strict=True):
        other.data[second] = x.data[second]
    layout = Layout.of(LENGTHS)
    out, changed = packed_attention(*qkv, layout), packed_attention(*others, layout)
    assert torch.equal(out[second], changed[second])
    assert not torch.isclose(out[6:], changed[6:]).any()


def test_dropout_drops_weights_and_keeps_their_mean():
    _, (q, k, _) = random_qkv(LENGTHS.sum())
    v, layout = torch.ones_like(q), Layout.of(LENGTHS)
    torch.manual_seed(0)
    mean = torch.stack([packed_attention(q, k, v, layout, 0.3).detach() for _ in range(400)]).mean(0)
    assert packed_attention(q, k, v, layout, 0.3).std() > 0.1
    torch.testing.assert_close(mean.mean(), torch.ones((), dtype=torch.float64), rtol=0, atol=0.02)
    torch.testing.assert_close(packed_attention(q, k, v, layout), v)


def test_nothing_to_attend():
    _, qkv = random_qkv(0)
    assert packed_attention(*qkv, Layout.of(np.array([], dtype=int))).shape == (0, HEADS, WIDTH)


@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_half_precision_on_cuda_is_one_kernel(monkeypatch, dropout_p):
    """Traced without a GPU: the variable-length kernel takes what we pass, drops as told, and reads nothing back."""
    monkeypatch.setattr(attention, "_has_flash", lambda device: True)
    calls = Calls()
    with FakeTensorMode(), calls:
        q, k, v = torch.empty(24, 3, HEADS, 16, device="cuda", dtype=torch.bfloat16).unbind(1)
        offsets = torch.empty(len(LENGTHS) + 1, device="cuda", dtype=torch.int32)
        layout = Layout(offsets, Layout.of(LENGTHS).runs, torch.empty(24, device="cuda", dtype=torch.int64))
        out = packed_attention(q, k, v, layout, dropout_p)
    assert out.shape == (24, HEADS, 16) and out.dtype == torch.bfloat16
    kernels = [args for name, args in calls.seen if "attention" in name]
    assert [args[5:8] for args in kernels] == [(5, 5, dropout_p)]


def test_the_kernel_takes_memories_and_causality(monkeypatch):
    monkeypatch.setattr(attention, "_has_flash", lambda device: True)
    calls = Calls()
    with FakeTensorMode(), calls:
        q, k, v = torch.empty(24, 3, HEADS, 16, device="cuda", dtype=torch.bfloat16).unbind(1)
        key, value = torch.empty(18, 2, HEADS, 16, device="cuda", dtype=torch.bfloat16).unbind(1)
        layout, memory = (
            Layout(torch.empty(len(own) + 1, device="cuda", dtype=torch.int32), Layout.of(own).runs, torch.empty(0))
            for own in (LENGTHS, MEMORIES)
        )
        packed_attention(q, key, value, layout, memory=memory)
        packed_attention(q, k, v, layout, causal=True)
    kernels = [args for name, args in calls.seen if "attention" in name]
    assert [args[5:9] for args in kernels] == [(5, 6, 0.0, False), (5, 5, 0.0, True)]
    assert kernels[0][3] is layout.offsets and kernels[0][4] is memory.offsets


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("causal", [False, True])
def test_flash_equals_runs(causal):
    torch.use_deterministic_algorithms(True)
    try:
        joined, qkv = random_qkv(LENGTHS.sum(), torch.float32)
        on_gpu = joined.detach().to("cuda", torch.bfloat16).requires_grad_()
        out = packed_attention(*on_gpu.unbind(1), Layout.of(LENGTHS).to("cuda"), causal=causal)
        expected = packed_attention(*qkv, Layout.of(LENGTHS), causal=causal)
        torch.testing.assert_close(out.float().cpu(), expected, rtol=0, atol=2e-2)
        out.sum().backward()
        expected.sum().backward()
        torch.testing.assert_close(on_gpu.grad.float().cpu(), joined.grad, rtol=0, atol=5e-2)
    finally:
        torch.use_deterministic_algorithms(False)
