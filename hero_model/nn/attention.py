"""Attention over packed rows (hero.md 1.7): a sequence attends to itself, or to a memory of its own, without padding.

Legend: R packed rows, P packed rows of all memories, H heads, d width of a head, N sequences, L length of one run of
equal sequences.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from hero_model.packed.batch import Layout


def packed_attention(
    q_RHd: Tensor,
    k_PHd: Tensor,
    v_PHd: Tensor,
    layout: Layout,
    dropout_p: float = 0.0,
    *,
    memory: Layout | None = None,
    causal: bool = False,
) -> Tensor:
    """Attend within each sequence of `layout`, or from it to its sequence of `memory`; scores scaled by 1/sqrt(d).

    Two backends give the same result: one variable-length flash kernel for half precision on CUDA, and
    scaled-dot-product attention over runs of equal length everywhere else. Both drop attention probabilities
    (docs/adr/0006-attention-dropout.md).

    Args:
        q_RHd: `[R, H, d]` queries. Rows may be strided.
        k_PHd: `[P, H, d]` keys, of the same dtype; without `memory` P is R.
        v_PHd: `[P, H, d]` values.
        layout: Where the N sequences of queries start, and their lengths on the host.
        dropout_p: Probability of dropping an attention weight; pass 0 in evaluation.
        memory: Where the N sequences of keys start; None: the same as `layout` (self-attention).
        causal: Whether a row sees only itself and earlier rows; self-attention only.

    Returns:
        `[R, H, d]` contexts.
    """
    if not layout.runs:  # a micro-batch whose segments all dropped out still takes part in the step
        return q_RHd
    assert memory is None or not causal, "a causal row of one sequence has no place in another"
    memory = layout if memory is None else memory
    if q_RHd.is_cuda and q_RHd.dtype in (torch.float16, torch.bfloat16) and _has_flash(q_RHd.get_device()):
        return _flash(q_RHd, k_PHd, v_PHd, layout, memory, dropout_p, causal)
    return _by_runs(q_RHd, k_PHd, v_PHd, layout, memory, dropout_p, causal)


def _flash(q: Tensor, k: Tensor, v: Tensor, layout: Layout, memory: Layout, dropout_p: float, causal: bool) -> Tensor:
    """One kernel for all sequences: what torch.nn.attention.varlen calls, which however fixes dropout to 0."""
    out = torch.ops.aten._flash_attention_forward(
        q, k, v, layout.offsets, memory.offsets, layout.max_length, memory.max_length, dropout_p, causal, False
    )
    return out[0]


def _by_runs(q: Tensor, k: Tensor, v: Tensor, layout: Layout, memory: Layout, dropout_p: float, causal: bool) -> Tensor:
    """One batched call per run of equal lengths; the number of runs is known on the host, so nothing waits."""
    runs = _paired_runs(layout, memory)
    query_rows, memory_rows = (
        [length * count for length, _, count in runs],
        [length * count for _, length, count in runs],
    )
    outputs = []
    # `split`, not slices: the backward of a slice fills and adds a tensor of all R rows, once per run.
    pieces = zip(q.split(query_rows), k.split(memory_rows), v.split(memory_rows), strict=True)
    for (_, _, count), qkv in zip(runs, pieces, strict=True):
        q_run, k_run, v_run = (x.unflatten(0, (count, -1)).transpose(1, 2) for x in qkv)
        context = F.scaled_dot_product_attention(q_run, k_run, v_run, dropout_p=dropout_p, is_causal=causal)
        outputs.append(context.transpose(1, 2).flatten(0, 1))
    return torch.cat(outputs)


def _paired_runs(layout: Layout, memory: Layout) -> list[tuple[int, int, int]]:
    """Consecutive sequences that agree in both lengths: (rows of queries, rows of memory, how many)."""
    if memory is layout:
        return [(length, length, count) for length, count in layout.runs]
    lengths = np.stack([np.repeat(*np.array(part.runs).T) for part in (layout, memory)])
    starts = np.flatnonzero(np.diff(lengths, axis=1, prepend=-1).any(axis=0))
    counts = np.diff(starts, append=lengths.shape[1])
    return list(zip(*lengths[:, starts].tolist(), counts.tolist(), strict=True))


@lru_cache
def _has_flash(device: int) -> bool:
    """Whether the GPU runs the flash kernels (compute capability 8.0, Ampere, or newer)."""
    return torch.cuda.get_device_capability(device) >= (8, 0)
