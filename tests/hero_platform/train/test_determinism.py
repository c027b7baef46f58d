"""What a process that trains sets up; bit identity itself is shown by tests/integration."""

import ctypes
import resource
import threading

import pytest
import torch

from hero_platform.train.determinism import keep_freed_memory
from hero_platform.train.on_ray import worker_environment

glibc = pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="another C library than glibc")
LARGE = 1 << 22  # floats: 4,096 pages of 4 KiB, far above what glibc keeps by itself


def _faults_of_a_later_use() -> int:
    for _ in range(8):  # aligned blocks find a place that fits after a few rounds
        torch.empty(LARGE).fill_(1.0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.empty(LARGE).fill_(1.0)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def _faults_in_a_thread() -> int:
    found = []

    def use() -> None:
        keep_freed_memory()
        found.append(_faults_of_a_later_use())

    thread = threading.Thread(target=use)
    thread.start()
    thread.join()
    return found[0]


@glibc
def test_memory_of_one_step_serves_the_next():
    keep_freed_memory()
    assert _faults_of_a_later_use() < 100  # of 4,096 pages


@glibc
@pytest.mark.ray
def test_memory_of_one_step_serves_the_next_in_a_ray_worker(ray_session):
    faults = ray_session.remote(_faults_in_a_thread)  # where Ray Train runs training
    worker = faults.options(runtime_env={"env_vars": worker_environment()})
    assert ray_session.get(worker.remote()) < 100
    assert ray_session.get(faults.remote()) > 1000, "else glibc does it by itself by now, and needs no variable"
