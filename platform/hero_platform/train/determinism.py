"""What every mode sets up in a process that trains: what bit identity needs (D5), and where freed memory goes.

Bit identity needs deterministic kernels, a fixed thread count and fixed seeds.
"""

from __future__ import annotations

import ctypes
import os

import torch

from hero_model.packed.draw import hash_id

# cuBLAS needs a fixed workspace to be deterministic; harmless without CUDA.
_CUBLAS = ":4096:8"
# M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD of <malloc.h>: never map, never trim, grow by 256 MiB.
_MMAP_THRESHOLD, _MMAP_MAX = -3, -4
_MALLOC = {_MMAP_THRESHOLD: 1 << 30, -1: (1 << 31) - 1, -2: 256 << 20}


def threads_for(threads: int, workers_on_node: int) -> int:
    """Threads of one worker: as asked, or the node's cores over its workers."""
    return threads or max(1, len(os.sched_getaffinity(0)) // max(workers_on_node, 1))


def setup(*, threads: int, deterministic: bool) -> None:
    """Fix kernels and thread count of this process before the first tensor operation."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", _CUBLAS)
    torch.set_num_threads(threads)
    keep_freed_memory()
    torch.use_deterministic_algorithms(deterministic)
    # Nothing here reads memory it has not written; filling it would cost a quarter of a small step.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]


def keep_freed_memory() -> None:
    """Let glibc keep what is freed for the next step, instead of giving it back and fetching it again page by page.

    A step on a CPU allocates the same tensors as the one before. By default glibc maps each large one anew, so that
    the kernel clears and maps every page of it at first touch (benchmarks/results.md: a fifth of a step). The process
    then stays as large as its largest step. Nothing happens with another C library.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for option, value in _MALLOC.items():
            if not mallopt(option, value) and option == _MMAP_THRESHOLD:
                # Older ones refuse more than 32 MiB, and then the other options would pin it at 128 KiB: map nothing.
                mallopt(_MMAP_MAX, 0)


def seed_for(*parts: int | str) -> int:
    """A 63-bit seed from what identifies a draw, such as ("dropout", seed, step, rank, micro-batch)."""
    return hash_id("/".join(map(str, parts))) >> 1
