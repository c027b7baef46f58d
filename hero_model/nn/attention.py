"""Self-attention over packed rows (hero.md 1.7): every sequence attends to itself and to nothing else, with no padding.

Legend: R packed rows, H heads, d width of a head, N sequences, L length of one run of equal sequences.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from hero_model.packed.batch import Layout


def packed_attention(q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor, layout: Layout, dropout_p: float = 0.0) -> Tensor:
    """Attend within each sequence of `layout`, scores scaled by 1/sqrt(d).

    Two backends give the same result: one variable-length flash kernel for half precision on CUDA, and
    scaled-dot-product attention over runs of equal length everywhere else. Both drop attention probabilities
    (docs/adr/0006-attention-dropout.md).

    Args:
        q_RHd: `[R, H, d]` queries; keys and values have the same shape and dtype. Rows may be strided.
        k_RHd: `[R, H, d]` keys.
        v_RHd: `[R, H, d]` values.
        layout: Where the N sequences start, and their lengths on the host.
        dropout_p: Probability of dropping an attention weight; pass 0 in evaluation.

    Returns:
        `[R, H, d]` contexts.
    """
    if not layout.runs:  # a micro-batch whose segments all dropped out still takes part in the step
        return v_RHd
    if q_RHd.is_cuda and q_RHd.dtype in (torch.float16, torch.bfloat16) and _has_flash(q_RHd.get_device()):
        return _flash(q_RHd, k_RHd, v_RHd, layout, dropout_p)
    return _by_runs(q_RHd, k_RHd, v_RHd, layout, dropout_p)


def _flash(q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor, layout: Layout, dropout_p: float) -> Tensor:
    """One kernel for all sequences: what torch.nn.attention.varlen calls, which however fixes dropout to 0."""
    longest = layout.max_length
    out = torch.ops.aten._flash_attention_forward(
        q_RHd, k_RHd, v_RHd, layout.offsets, layout.offsets, longest, longest, dropout_p, False, False
    )
    return out[0]


def _by_runs(q_RHd: Tensor, k_RHd: Tensor, v_RHd: Tensor, layout: Layout, dropout_p: float) -> Tensor:
    """One batched call per run of equal lengths; the number of runs is known on the host, so nothing waits."""
    rows = [length * count for length, count in layout.runs]
    outputs = []
    # `split`, not slices: the backward of a slice fills and adds a tensor of all R rows, once per run.
    for (length, count), *qkv in zip(layout.runs, *(x.split(rows) for x in (q_RHd, k_RHd, v_RHd)), strict=True):
        q, k, v = (x.unflatten(0, (count, length)).transpose(1, 2) for x in qkv)
        context = F.scaled_dot_product_attention(q, k, v, dropout_p=dropout_p)
        outputs.append(context.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


@lru_cache
def _has_flash(device: int) -> bool:
    """Whether the GPU runs the flash kernels (compute capability 8.0, Ampere, or newer)."""
    return torch.cuda.get_device_capability(device) >= (8, 0)
