"""A run on Ray workers: Ray supplies processes, failure detection and restarts, and nothing else (D5).

Checkpoints, metrics and the decision to stop are ours in every mode, so what Ray does cannot disagree with them. The
driver and the workers talk through three small files in the run's folder: the workers' progress, what they have to say,
and the driver's request to stop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch

from hero_platform import config_io, files, home
from hero_platform.config import RunConfig
from hero_platform.ray_cluster import ONE_ARENA, cluster, share_of_machine
from hero_platform.scratch import scratch
from hero_platform.telemetry import Progress
from hero_platform.tracking.base import NullTracker, Status, Tracker
from hero_platform.tracking.journal import FILE as JOURNAL_FILE
from hero_platform.tracking.journal import read
from hero_platform.tracking.place import here
from hero_platform.tracking.system import reported
from hero_platform.train.comm import Comm
from hero_platform.train.failure import (
    SameErrorAgain,
    StepFailed,
    TrainingFailed,
    is_lost_partner,
    last_line,
    signature,
)
from hero_platform.train.lease import LeaseLost, only_one
from hero_platform.train.loop import Signal
from hero_platform.train.records import close, end_of, make_tracker
from hero_platform.train.worker import Surroundings, train

Judge = Callable[[int, Mapping[str, float]], bool]  # (step, what its validation found): whether to end there
PROGRESS_FILE = "progress.json"  # rank 0 writes it, the driver shows it
MESSAGES_FILE = "workers.log"  # warnings of the workers and of their restarts, which the driver shows
STOP_FILE = "stop"  # the driver writes it, rank 0 looks for it
HEALTH_CHECK_S = "0.5"  # how soon Ray Train notices a dead worker
GROUP_START_TIMEOUT_S = "120"
ELASTIC_START_TIMEOUT_S = "20"  # Ray's view of a lost node can be stale: it asks for all, then for those that are left
PREEMPTION_LOOK_S = 1.0
LOOK_EVERY_S = 0.2  # at the workers' files in a local folder
REMOTE_LOOK_EVERY_S = 5.0

logger = logging.getLogger(__name__)


def run_on_ray(
    config: RunConfig,
    folder: str,
    start: int,
    provenance: Mapping[str, Any],
    stop: threading.Event,
    judge: Judge | None = None,
) -> None:
    """Train with `config.scale.num_workers` Ray Train workers until they are done or have followed `stop`.

    `judge` is told what validations found, from the record, and may end the run.

    Raises:
        ValueError: the cluster cannot hold the workers.
        TrainingFailed: the workers failed more often than `scale.max_failures` allows.
    """
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_S)
    start_timeout_s = ELASTIC_START_TIMEOUT_S if config.scale.min_workers else GROUP_START_TIMEOUT_S
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", start_timeout_s)
    os.environ.setdefault("RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S", str(PREEMPTION_LOOK_S))
    for name in (PROGRESS_FILE, STOP_FILE):  # of an earlier start
        files.remove(files.join(folder, name))
    fewest = config.scale.min_workers or config.scale.num_workers
    room = cluster(config.scale.num_workers, fewest=fewest, gpus_each=config.scale.gpus_per_worker, crowded=True)
    with room as joined, scratch("hero-train-") as storage:
        trainer = _trainer(config, folder, storage, provenance, outlives=joined)
        outcome: list[BaseException | None] = []

        def fit() -> None:
            try:
                trainer.fit()
                outcome.append(None)
            except BaseException as error:
                outcome.append(error)

        # Not in the main thread: there Ray would take Ctrl-C for itself, and drop the steps since the last checkpoint.
        thread = threading.Thread(target=fit, name="ray-train", daemon=True)
        thread.start()
        try:
            _watch(config, folder, start, thread, stop, judge)
        finally:
            files.remove(files.join(folder, STOP_FILE))
    if (error := outcome[0]) is not None:
        raise TrainingFailed(f"run {config.name} failed: {_cause(error)}") from error


def _trainer(config: RunConfig, folder: str, storage: str, provenance: Mapping[str, Any], *, outlives: bool) -> Any:
    """Ray's side of the run; `outlives` says that the cluster stays when this process ends."""
    from ray.train import FailureConfig, ScalingConfig, UserCallback
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchTrainer

    scale = config.scale

    class Trainer(TorchTrainer):
        """Without processes that this run has no use for: each holds up every start of the workers."""

        def _create_default_callbacks(self) -> list[Any]:
            unused = {"DatasetsCallback"}  # it serves datasets of Ray Data to the workers (D7: ours read the store)
            if not outlives:
                unused.add("PlacementGroupCleanerCallback")  # what it clears up goes with the cluster
            return [each for each in super()._create_default_callbacks() if type(each).__name__ not in unused]

    class Restarts(UserCallback):
        """Say why workers died, and end the run when they die of the same again; runs in Ray's controller process."""

        before = ""

        def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
            cause, now = _cause_of(worker_exceptions), signature(worker_exceptions)
            if now and now == self.before:
                _note(
                    folder, f"{config.name}: workers stopped ({cause}) as they did before; they are not started again"
                )
                raise SameErrorAgain(f"{cause} (twice; starting the workers again did not help)")
            self.before = now
            allowed = f"Ray starts them again, at most {scale.max_failures} times"
            _note(folder, f"{config.name}: workers stopped ({cause}); {allowed}")

    return Trainer(
        ray_worker,
        train_loop_config={"config": config_io.to_json(config), "folder": folder, "provenance": dict(provenance)},
        scaling_config=ScalingConfig(
            num_workers=(scale.min_workers, scale.num_workers) if scale.min_workers else scale.num_workers,
            elastic_resize_monitor_interval_s=scale.grow_every_s,
            use_gpu=scale.gpus_per_worker > 0,
            resources_per_worker={"CPU": 1, **({"GPU": scale.gpus_per_worker} if scale.gpus_per_worker else {})},
        ),
        run_config=RayRunConfig(
            name=f"{config.name}-{uuid.uuid4().hex[:8]}",  # never resumed by Ray: our checkpoints decide
            storage_path=storage,
            failure_config=FailureConfig(max_failures=scale.max_failures),
            callbacks=[Restarts()],
            worker_runtime_env={"env_vars": worker_environment()},
        ),
    )


def ray_worker(payload: Mapping[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train

    config, folder = config_io.from_json(payload["config"]), payload["folder"]
    context = ray.train.get_context()
    comm = Comm(context.get_world_rank(), context.get_world_size())
    device = ray.train.torch.get_device() if config.scale.gpus_per_worker > 0 else torch.device("cpu")
    tracker: Tracker | None = make_tracker(config, folder) if comm.rank == 0 else None
    status: Status | None = "FAILED"
    shown = shown_progress(folder) if comm.rank == 0 else contextlib.nullcontext()
    reached = 0

    def progress(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal reached
        reached = step
        if show is not None:
            show(step, metrics)

    held = only_one(folder) if comm.rank == 0 else contextlib.nullcontext()
    node = context.get_node_rank()
    # One rank speaks for its node; that of rank 0 is sampled by the tracker.
    speaks = node > 0 and context.get_local_rank() == 0
    load = reported(folder, node) if speaks else contextlib.nullcontext()
    share = share_of_machine() if config.tracking.sweep else 1.0  # other trials have the rest
    with _messages(folder, comm.rank), load, held as lease, shown as show:
        try:
            outcome = train(
                config,
                Surroundings(
                    folder=folder,
                    comm=comm,
                    lease=lease,
                    workers_on_node=context.get_local_world_size(),
                    device=device,
                    tracker=tracker or NullTracker(),
                    provenance=payload["provenance"],
                    place=here(ray.get_runtime_context().get_node_id(), share),
                    progress=progress,
                    signal=_signal(config, folder, comm, device),
                ),
            )
            status = "KILLED" if outcome["stopped"] else end_of(config)
        except Exception as error:
            status = None if isinstance(error, LeaseLost) else status
            raise StepFailed(f"after step {reached}: {last_line(error)}") from error
        finally:
            if tracker is not None:
                close(tracker, status)


@contextlib.contextmanager
def shown_progress(folder: str) -> Iterator[Callable[[int, Mapping[str, float]], None]]:
    """Write the progress for the driver, now and then and at the end, from a thread: a step would wait for the disk.

    What cannot be written is left out: checkpoints and the record say what is wrong with the folder.
    """
    every = REMOTE_LOOK_EVERY_S if files.is_remote(folder) else 1.0
    newest: dict[str, Any] = {}
    over = threading.Event()

    def show(step: int, metrics: Mapping[str, float]) -> None:
        nonlocal newest
        newest = {"step": step, "metrics": dict(metrics)}

    def write() -> None:
        written, ends = newest, False
        while not ends:
            ends = over.wait(every)
            if (now := newest) is not written:
                written = now
                with contextlib.suppress(OSError):
                    files.write_json(files.join(folder, PROGRESS_FILE), now)

    thread = threading.Thread(target=write, name="progress", daemon=True)
    thread.start()
    try:
        yield show
    finally:
        over.set()
        thread.join()


def _signal(config: RunConfig, folder: str, comm: Comm, device: torch.device) -> Callable[[], Signal]:
    """The driver's request to stop, and Ray's notice that a node of a worker will be taken away.

    Rank 0 looks at the clock and the folder, all agree on what it saw: each asks after the same steps.
    """
    path = files.join(folder, STOP_FILE)
    every = 1 if device.type == "cpu" else config.tracking.log_every  # elsewhere the answer waits for the device
    pause = REMOTE_LOOK_EVERY_S if files.is_remote(folder) else 0.0
    asked, looked, watched = 0, -pause, time.monotonic()
    noticeable = os.environ.get("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER") != "0"  # a local cluster has no such watcher
    going: set[str] = set()

    def ask() -> Signal:
        nonlocal asked, looked, watched
        asked += 1
        if asked % every:
            return Signal.GO_ON
        stop = look = False
        if comm.rank == 0:
            now = time.monotonic()
            if now - looked >= pause:
                looked, stop = now, files.exists(path)
            if noticeable and now - watched >= PREEMPTION_LOOK_S:
                watched, look = now, True
        agreed = comm.sum(torch.tensor([float(stop), float(look)], device=device)).tolist()
        if agreed[0]:
            return Signal.STOP
        return noticed() if agreed[1] else Signal.GO_ON

    def noticed() -> Signal:
        """Commit once for each node that is about to go; end there where the run cannot go on without it."""
        import ray.train

        notice = ray.train.get_preemption_info()  # all ranks get rank 0's answer
        nodes = set(notice.preempted_node_ids) - going if notice else set()
        if not nodes:
            return Signal.GO_ON
        going.update(nodes)
        elastic = bool(config.scale.min_workers)
        if comm.rank == 0:
            what = "the others go on" if elastic else "the run ends here and can go on elsewhere"
            logger.warning("%s: Ray takes node %s away: committing, %s", config.name, ", ".join(sorted(nodes)), what)
        return Signal.COMMIT if elastic else Signal.STOP

    return ask


@contextlib.contextmanager
def _messages(folder: str, rank: int) -> Iterator[None]:
    """Send this worker's warnings to the driver; on a remote folder they stay in Ray's logs."""
    if files.is_remote(folder):
        yield
        return
    handler = logging.FileHandler(files.join(folder, MESSAGES_FILE), delay=True, encoding="utf-8")
    handler.setLevel(logging.WARNING)
    handler.setFormatter(logging.Formatter(f"worker {rank}: %(message)s"))
    logger = logging.getLogger("hero_platform")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()


class Validations:
    """Follows the record for what validations found; that of a remote run comes with its checkpoints."""

    def __init__(self, folder: str) -> None:
        self._folder, self._end, self._size = folder, 0, -1

    def new(self) -> Iterator[tuple[int, dict[str, float]]]:
        """Steps and metrics that were not given before."""
        path = files.join(self._folder, JOURNAL_FILE)
        if not files.exists(path) or (size := files.size_of(path)) == self._size:
            return
        self._size = size
        with scratch("hero-validations-") as place:
            if files.is_remote(path):
                remote, path = path, files.join(place, JOURNAL_FILE)
                files.copy_file(remote, path)
            for record in read(path, self._end):
                self._end = record.end
                found = {name: value for name, value in record.metrics.items() if name.startswith("val/")}
                if found:
                    yield record.step, found


def _note(folder: str, text: str) -> None:
    if not files.is_remote(folder):
        with open(files.join(folder, MESSAGES_FILE), "a", encoding="utf-8") as stream:
            stream.write(text + "\n")


def _cause(error: BaseException) -> str:
    """What went wrong, in one line: the workers' own exceptions, or that of `Restarts`, where Ray carries them."""
    failures = getattr(error, "worker_failures", None)
    return _cause_of(failures) if failures else last_line(getattr(error, "controller_failure", error))


def _cause_of(failures: Mapping[int, Exception]) -> str:
    """The exceptions of the ranks; those that only lost their partner are left out while others are there."""
    lines = {rank: last_line(error) for rank, error in sorted(failures.items())}
    own = {rank: line for rank, line in lines.items() if not is_lost_partner(line)}
    return "; ".join(f"worker {rank}: {line}" for rank, line in (own or lines).items())


def worker_environment() -> dict[str, str]:
    """Variables a worker needs and Ray does not forward. No secrets: those come from the node's own environment."""
    # not the cluster's own, which goes with it: stacks of a rank that hung may lie there
    return {"RAY_CHDIR_TO_TRIAL_DIR": "0", "TMPDIR": tempfile.gettempdir(), **ONE_ARENA, **home.environment()}


def _watch(
    config: RunConfig, folder: str, start: int, thread: threading.Thread, stop: threading.Event, judge: Judge | None
) -> None:
    """Until the workers are done: show their progress and what they say, and pass on a request to stop."""
    validations = Validations(folder) if judge is not None else None
    remote = files.is_remote(folder)
    messages = files.join(folder, MESSAGES_FILE)
    said = 0 if remote or not files.exists(messages) else files.size_of(messages)
    shown, asked = -1, False
    with Progress(config.name, start=start, total=config.steps) as progress:
        while True:
            thread.join(REMOTE_LOOK_EVERY_S if remote else LOOK_EVERY_S)
            over = not thread.is_alive()
            if validations is not None and judge is not None:
                for step, found in validations.new():
                    if judge(step, found):
                        stop.set()
            if stop.is_set() and not asked and not over:
                asked = True
                files.write_bytes(files.join(folder, STOP_FILE), b"")
            if not remote and files.exists(messages):
                with open(messages, encoding="utf-8", errors="replace") as stream:
                    stream.seek(said)
                    if text := stream.read():
                        print(text, end="", file=sys.stderr, flush=True)
                    said = stream.tell()
            with contextlib.suppress(FileNotFoundError, ValueError):
                seen = files.read_json(files.join(folder, PROGRESS_FILE))
                if seen["step"] != shown:
                    shown = seen["step"]
                    progress.update(shown, seen["metrics"])
            if over:
                return
