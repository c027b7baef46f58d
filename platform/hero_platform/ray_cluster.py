"""Where Ray workers run: the cluster that is there, or a local one for the time of the work."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hero_platform.scratch import scratch

OBJECT_STORE_BYTES = 200 << 20  # weights and features never pass through it
# Ray trains in a thread that is not the main one. There glibc takes memory from an arena of that thread, which can keep
# nothing larger than 64 MB: each large tensor is mapped anew, page by page. With one arena for all threads it is kept
# (`train.determinism`). glibc reads this as a process starts; another C library does not.
ONE_ARENA = {"MALLOC_ARENA_MAX": "1"}
# For a cluster on this machine that ends with its work: a process of Ray's that only waits takes a hundredth of a core,
# and two seconds of one to start.
FEW_PROCESSES = {
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",  # nobody takes its only node away and leaves the run
    "RAY_prestart_worker_first_driver": "0",  # Ray Train's have variables of their own; others came no later
    "RAY_enable_metrics_collection": "0",  # nobody looks at Ray's own: ours go to the tracker
}


@contextlib.contextmanager
def cluster(
    num_workers: int,
    *,
    fewest: int = 0,
    cpus_each: int = 1,
    gpus_each: float = 0.0,
    crowded: bool = False,
) -> Iterator[bool]:
    """Use the running cluster, or start a local one that leaves nothing behind; gives whether it is the running one.

    Args:
        num_workers: processes that are to run at once.
        fewest: how many of them a running cluster must have room for; 0: all.
        cpus_each: CPUs that each of them takes.
        gpus_each: GPUs that each of them takes.
        crowded: whether a local cluster may have more workers than this machine has cores.

    Raises:
        ValueError: the cluster or machine that is there is too small (Ray would wait for ever).
    """
    import ray

    needed = num_workers * cpus_each
    counts = (num_workers, fewest or num_workers)
    if found := joined():
        _check_room(counts, "CPU", cpus_each, found.get("CPU", 0), "the Ray cluster")
        _check_room(counts, "GPU", gpus_each, found.get("GPU", 0), "the Ray cluster")
        yield True
        return
    if not crowded:
        _check_room((num_workers, num_workers), "CPU", cpus_each, len(os.sched_getaffinity(0)), "this machine")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    with scratch("hero-ray-") as folder:
        try:
            _keep_token_private()
            # Ray's processes are ended before they clear up: their place will go
            tempfile.gettempdir()  # remembered, so this process goes on with its own
            with _environment({"TMPDIR": folder, **ONE_ARENA, **FEW_PROCESSES}), _fewest_daemons():
                _init(
                    address="local",  # else Ray joins any cluster that it finds on this machine
                    num_cpus=max(needed + 2, os.cpu_count() or 2),  # fewer can deadlock (stack.md 0.5)
                    include_dashboard=False,  # ten more processes, which hold up the start, and gone with the run
                    object_store_memory=OBJECT_STORE_BYTES,
                    _temp_dir=folder,
                    log_to_driver=False,
                    logging_level=logging.ERROR,
                )
            _check_room(counts, "GPU", gpus_each, ray.cluster_resources().get("GPU", 0), "this machine")
            yield False
        finally:
            ray.shutdown()


def _check_room(counts: tuple[int, int], kind: str, each: float, there: float, whose: str) -> None:
    """Whether there is room for the fewer of `counts` workers of `each` CPUs or GPUs.

    Raises:
        ValueError: there is not.
    """
    most, least = (count * each for count in counts)
    if there < least:
        size = f" of {each} threads" if kind == "CPU" and each > 1 else ""
        more = f" ({least:g} at least)" if least < most else ""
        raise ValueError(f"{counts[0]} workers{size} need {most:g} {kind}s{more}; {whose} has {there:g}")


def joined() -> dict[str, float]:
    """Resources of the running cluster, which is joined if this process is not part of it; empty: there is none.

    Those that its autoscaler may add are included: the head's `HERO_CLUSTER_MAX` says them, Ray does not.

    Raises:
        ValueError: `HERO_CLUSTER_MAX` cannot be read.
    """
    import ray

    if not ray.is_initialized():
        if not os.environ.get("RAY_ADDRESS"):
            return {}
        _init(log_to_driver=False)
    resources: dict[str, float] = ray.cluster_resources()
    return resources | {name: max(most, resources.get(name, 0)) for name, most in _may_come().items()}


def grows() -> bool:
    """Whether the running cluster may get machines that are not there yet."""
    return bool(_may_come())


def _may_come() -> dict[str, float]:
    """The most of each resource that the cluster may have, as its file says."""
    said = os.environ.get("HERO_CLUSTER_MAX", "")
    try:
        return {name: float(most) for name, most in (pair.split("=") for pair in said.split(",") if pair)}
    except ValueError:
        raise ValueError(f"HERO_CLUSTER_MAX is {said!r}; it looks like CPU=640,GPU=48") from None


def _keep_token_private() -> None:
    """Make the token of local clusters, or close the file it is in: Ray makes one that every user may read."""
    given = os.environ.keys() & {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    if given or os.environ.get("RAY_AUTH_MODE", "token") != "token":
        return
    path = Path.home() / ".ray" / "auth_token"
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists():
        with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=".token-") as made:  # nobody else may read it
            made.write(secrets.token_hex(32))
            made.flush()
            with contextlib.suppress(FileExistsError):  # another process was quicker, and uses its own by now
                os.link(made.name, path)
    if path.stat().st_mode & 0o077:
        path.chmod(0o600)


def share_of_machine() -> float:
    """The part of this machine that this worker of a cluster takes: of its CPUs or of its GPUs, whichever is more."""
    import ray

    context = ray.get_runtime_context()
    node = context.get_node_id()
    there = next(each["Resources"] for each in ray.nodes() if each["NodeID"] == node)
    cores = min(there.get("CPU", 0), os.cpu_count() or 1)  # a crowded one says more than it has
    taken = context.get_assigned_resources()
    parts = [taken.get(name, 0) / count for name, count in (there | {"CPU": cores}).items() if count]
    return min(max(parts), 1.0)


def _init(**settings: Any) -> None:
    """Start or join; Ray takes SIGTERM for itself, and gives it back here to a handler that somebody has set.

    Raises:
        KeyboardInterrupt: SIGTERM came meanwhile.
    """
    import ray

    before = signal.getsignal(signal.SIGTERM)
    try:
        with _groups_of_their_own():
            ray.init(**settings)
    except SystemExit:  # that is how Ray takes it
        raise KeyboardInterrupt from None
    if callable(before) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Ray's daemons are in no group with this process: `timeout` and batch systems send SIGTERM to its whole group.

    This process ends well on that signal, for which it still needs them; they end with it, however it ends.
    """
    from ray._private import services

    starts = services.ConsolePopen
    services.ConsolePopen = functools.partial(starts, process_group=0)
    try:
        yield
    finally:
        services.ConsolePopen = starts


@contextlib.contextmanager
def _fewest_daemons() -> Iterator[None]:
    """A cluster that is made here does without an autoscaler, which has nothing to add, and without copies of logs."""
    from ray._private import parameter

    plain = parameter.RayParams
    parameter.RayParams = functools.partial(plain, no_monitor=True, include_log_monitor=False)
    try:
        yield
    finally:
        parameter.RayParams = plain


@contextlib.contextmanager
def _environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Processes that are started in the block have these, too."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
