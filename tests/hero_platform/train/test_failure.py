"""One line for whatever went wrong."""

from __future__ import annotations

import pytest
from ray.core.generated.common_pb2 import ActorDiedErrorContext
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from hero_platform.train.failure import StepFailed, last_line, signature
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


@pytest.mark.parametrize(
    ("told", "said"),
    [
        (
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit "
            "detail: Worker unexpectedly exits with a connection error code 2. End of file. Some common causes include",
            "it was killed, ran out of memory, crashed or ended itself",
        ),
        (
            "The actor is dead because its worker process has died. Worker exit type: SYSTEM_ERROR Worker exit detail: "
            "Worker exits unexpectedly. Worker exits with an exit code 3.",
            "Worker exits unexpectedly. Worker exits with an exit code 3.",
        ),
        (
            "The actor is dead because its owner has died. Owner Id: 4f Owner worker exit type: SYSTEM_ERROR "
            "Worker exit detail: Owner's worker process has crashed.",
            "The actor is dead because its owner has died. Owner Id: 4f Owner worker exit type: SYSTEM_ERROR "
            "Worker exit detail: Owner's worker process has crashed.",
        ),
        (
            "The actor died because its node has died. Node Id: 4f",
            "The actor died because its node has died. Node Id: 4f",
        ),
    ],
)
def test_a_worker_that_died_is_said_in_a_line_that_people_read(told: str, said: str):
    context = ActorDiedErrorContext(pid=4711, node_ip_address="10.0.0.3", class_name="RayTrainWorker")
    context.actor_id, context.error_message = b"0" * 16, told
    error = WorkerHealthCheckFailedError("A health check failed.\nWorker info: Worker(", ActorDiedError(context))
    assert _cause_of({1: error}) == f"worker 1: process 4711 on 10.0.0.3 is gone: {said}"


def test_a_worker_that_ray_killed_for_memory_comes_without_the_table():
    used = "1 worker(s) were killed due to the node running low on memory. Memory on the node was 22.9GB used / 23.5GB"
    error = OutOfMemoryError(f"{used}\nOOM kill reason: usage\nTop 10 memory users: PID\tMEM(GB)\n4711\t0.31\tpython")
    wrapped = WorkerHealthCheckFailedError("A health check failed.\nWorker info: Worker(", error)
    assert _cause_of({0: wrapped}) == f"worker 0: OutOfMemoryError: {used}"


def test_a_worker_that_could_not_begin_says_what_it_raised():
    raised = "ray::Worker.__init__() (pid=4711, ip=10.0.0.3)\n  File \"x.py\", line 1, in __init__\nKeyError: 'missing'"
    failed = ActorDiedError(RayTaskError("__init__", raised, KeyError("missing")))
    assert last_line(WorkerHealthCheckFailedError("A health check failed.", failed)) == "KeyError: 'missing'"


def test_what_a_worker_raised_is_said_without_our_own_names():
    failed = StepFailed("after step 12: OSError: no route")
    assert last_line(failed) == "after step 12: OSError: no route"
    remote = RuntimeError(REMOTE.replace("KeyError: 'missing'", f"hero_platform.train.failure.StepFailed: {failed}"))
    assert last_line(remote) == "after step 12: OSError: no route"


def test_the_same_error_at_the_same_step_is_recognised():
    first = signature(
        {0: StepFailed("after step 12: OSError: 0x7f3a of 4711 is gone"), 1: StepFailed("after step 12: X: [gloo]")}
    )
    assert first and first == signature({1: StepFailed("after step 12: OSError: 0x1b of 9 is gone")})
    assert first != signature({0: StepFailed("after step 13: OSError: 0x7f3a of 4711 is gone")})
    assert first != signature({0: StepFailed("after step 12: KeyError: 'missing'")})
    killed, lost = (
        RuntimeError("The actor died unexpectedly"),
        StepFailed("after step 12: X: Connection closed by peer"),
    )
    assert signature({0: killed, 1: lost}) == "", "a worker that was killed says nothing about the next time"
