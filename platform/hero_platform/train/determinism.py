"""What bit identity needs, set here for every mode: deterministic kernels, a fixed thread count, fixed seeds (D5)."""

from __future__ import annotations

import os

import torch

from hero_model.packed.draw import hash_id

# cuBLAS needs a fixed workspace to be deterministic; harmless without CUDA.
_CUBLAS = ":4096:8"


def threads_for(threads: int, workers_on_node: int) -> int:
    """Threads of one worker: as asked, or the node's cores over its workers."""
    return threads or max(1, len(os.sched_getaffinity(0)) // max(workers_on_node, 1))


def setup(*, threads: int, deterministic: bool) -> None:
    """Fix kernels and thread count of this process before the first tensor operation."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    # Nothing here reads memory it has not written; filling it would cost a quarter of a small step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed from what identifies a draw, such as ("dropout", seed, step, rank, micro-batch)."""
    return hash_id("/".join(map(str, parts))) >> 1
