"""What a process that trains sets up; bit identity itself is shown by tests/integration."""

import ctypes
import resource

import pytest
import torch

from hero_platform.train.determinism import keep_freed_memory

LARGE = 1 << 22  # floats: 4,096 pages of 4 KiB, far above what glibc keeps by itself


def _faults_of_a_later_use() -> int:
    for _ in range(8):  # aligned blocks find a place that fits after a few rounds
        torch.empty(LARGE).fill_(1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(LARGE).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
def test_memory_of_one_step_serves_the_next():
    keep_freed_memory()
    assert _faults_of_a_later_use() < 100  # of 4,096 pages
