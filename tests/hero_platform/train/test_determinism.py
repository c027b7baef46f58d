"""What a process that trains sets up; bit identity itself is shown by tests/integration."""

import ctypes
import resource
import threading
from types import SimpleNamespace

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


@pytest.mark.parametrize(("refused", "mapped"), [(False, []), (True, [(-4, 0)])])
def test_a_glibc_that_refuses_the_threshold_maps_nothing(refused, mapped, monkeypatch):
    """Older ones take at most 32 MiB (HEAP_MAX_SIZE / 2 in malloc.c)."""
    asked = []

    def mallopt(option: int, value: int) -> int:
        asked.append((option, value))
        return int(not (refused and option == -3))

    monkeypatch.setattr(ctypes, "CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    keep_freed_memory()
    assert [each for each in asked if each[0] == -4] == mapped
    assert {option for option, _ in asked} >= {-3, -1, -2}


@glibc
@pytest.mark.ray
def test_memory_of_one_step_serves_the_next_in_a_ray_worker(ray_session):
    faults = ray_session.remote(_faults_in_a_thread)  # where Ray Train runs training
    worker = faults.options(runtime_env={"env_vars": worker_environment()})
    assert ray_session.get(worker.remote()) < 100
    assert ray_session.get(faults.remote()) > 1000, "else glibc does it by itself by now, and needs no variable"
