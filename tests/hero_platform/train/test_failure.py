"""One line for whatever went wrong."""

from __future__ import annotations

from hero_platform.train.failure import last_line
from hero_platform.train.on_ray import _cause_of

REMOTE = "Traceback (most recent call last):\n  File 'x.py', line 1, in f\n    g()\nKeyError: 'missing'\n"


def test_exceptions_are_one_line():
    assert last_line(KeyError("missing")) == "KeyError: 'missing'"
    assert last_line(RuntimeError("first\n  second")) == "RuntimeError: first second"
    assert last_line(RuntimeError(REMOTE)) == "KeyError: 'missing'"
    assert last_line(MemoryError()) == "MemoryError"


def test_the_worker_that_broke_is_named_and_those_that_lost_it_are_not():
    lost = RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer [127.0.0.1]:4711")
    assert _cause_of({0: lost, 1: RuntimeError(REMOTE)}) == "worker 1: KeyError: 'missing'"
    assert _cause_of({0: lost}).startswith("worker 0: RuntimeError: [gloo")
