"""From a resolved `RunConfig` to a finished run: in this process, or on Ray workers. The same name goes on (D1, D5)."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import tempfile
import threading
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hero_platform import config_io, files, home
from hero_platform.config import RunConfig
from hero_platform.telemetry import Progress
from hero_platform.tracking.base import NullTracker, Status, Tracker
from hero_platform.tracking.system import provenance
from hero_platform.train import snapshot
from hero_platform.train.comm import Comm
from hero_platform.train.records import make_tracker
from hero_platform.train.resolve import check_same_run
from hero_platform.train.worker import Surroundings, only_one, train

logger = logging.getLogger(__name__)

PROGRESS_FILE = "progress.json"  # rank 0 writes it, the driver shows it
HEALTH_CHECK_S = "0.5"  # how soon Ray Train notices a dead worker
GROUP_START_TIMEOUT_S = "60"


@dataclass(frozen=True)
class RunResult:
    """How a start of a run ended."""

    name: str
    status: str  # finished, interrupted
    step: int
    resumed_from: int
    folder: str
    weights_digest: str  # sha256 of the newest checkpoint's weights file

    def text(self) -> str:
        """For people."""
        went_on = f", went on from step {self.resumed_from}" if self.resumed_from else ""
        return f"run {self.name} {self.status} at step {self.step}{went_on}: {self.folder}"

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def launch(config: RunConfig) -> RunResult:
    """Train a run to `config.steps`; if the name exists, go on from its newest valid checkpoint.

    Raises:
        ValueError: the name holds another experiment, or the machine cannot hold the workers asked for.
        RuntimeError: training failed; the cause is in the message.
    """
    folder = home.run_dir(config.name)
    with only_one(files.join(folder, "driver") if not files.is_remote(folder) else folder):
        if not check_same_run(config, folder):
            files.makedirs(folder)
            files.write_json(files.join(folder, "config.json"), config_io.to_dict(config))
        start = max(snapshot.checkpoints(home.checkpoints_dir(config.name)), default=0)
        if start >= config.steps:
            return _result(config, folder, "finished", start, start)
        run = _here if config.scale.num_workers == 0 else _on_ray
        status, step = run(config, folder, start)
        return _result(config, folder, status, step, start)


def _result(config: RunConfig, folder: str, status: str, step: int, start: int) -> RunResult:
    newest = snapshot.choose(home.checkpoints_dir(config.name), "last")
    digest = files.sha256_file(files.join(newest, "model.safetensors"))
    return RunResult(config.name, status, step, start, folder, digest)


def _device(config: RunConfig) -> torch.device:
    return torch.device("cuda" if config.scale.gpus_per_worker > 0 else "cpu")


def _here(config: RunConfig, folder: str, start: int) -> tuple[str, int]:
    """N = 0: this process, no Ray. Ctrl-C commits at the next step boundary."""
    tracker = make_tracker(config, folder)
    status: Status = "FAILED"
    try:
        with Progress(config.name, start=start, total=config.steps) as progress, _stop_flag() as stop, only_one(folder):
            outcome = train(
                config,
                Surroundings(
                    folder=folder,
                    device=_device(config),
                    tracker=tracker,
                    provenance=provenance(),
                    progress=progress.update,
                    should_stop=stop.is_set,
                ),
            )
        status = "KILLED" if outcome["stopped"] else "FINISHED"
        return ("interrupted" if outcome["stopped"] else "finished"), outcome["step"]
    finally:
        tracker.finish(status)


@contextlib.contextmanager
def _stop_flag() -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second one interrupts at once."""
    flag = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield flag
        return

    def handle(number: int, frame: Any) -> None:
        if flag.is_set():
            raise KeyboardInterrupt
        flag.set()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def ray_worker(payload: Mapping[str, Any]) -> None:
    """What each Ray Train worker runs."""
    import ray.train

    logging.basicConfig(level=logging.WARNING)
    config, folder = config_io.from_json(payload["config"]), payload["folder"]
    context = ray.train.get_context()
    rank = context.get_world_rank()
    device = ray.train.torch.get_device() if config.scale.gpus_per_worker > 0 else torch.device("cpu")
    tracker: Tracker | None = make_tracker(config, folder) if rank == 0 else None
    status: Status = "FAILED"

    def progress(step: int, metrics: Mapping[str, float]) -> None:
        if rank == 0:
            files.write_json(files.join(folder, PROGRESS_FILE), {"step": step, "metrics": dict(metrics)})

    surroundings = Surroundings(
        folder=folder,
        comm=Comm(rank, context.get_world_size()),
        workers_on_node=context.get_local_world_size(),
        device=device,
        tracker=tracker or NullTracker(),
        provenance=payload["provenance"],
        progress=progress,
    )
    with only_one(folder) if rank == 0 else contextlib.nullcontext():
        try:
            train(config, surroundings)
            status = "FINISHED"
        finally:
            if tracker is not None:
                tracker.finish(status)


def _on_ray(config: RunConfig, folder: str, start: int) -> tuple[str, int]:
    """N >= 1: Ray supplies workers, failure detection and restarts; checkpoints stay ours (D5)."""
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", HEALTH_CHECK_S)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", GROUP_START_TIMEOUT_S)
    from ray.train import FailureConfig, ScalingConfig, TrainingFailedError
    from ray.train import RunConfig as RayRunConfig
    from ray.train.torch import TorchTrainer

    scale = config.scale
    with _cluster(scale.num_workers), tempfile.TemporaryDirectory(prefix="hero-train-") as scratch:
        trainer = TorchTrainer(
            ray_worker,
            train_loop_config={"config": config_io.to_json(config), "folder": folder, "provenance": provenance()},
            scaling_config=ScalingConfig(
                num_workers=scale.num_workers,
                use_gpu=scale.gpus_per_worker > 0,
                resources_per_worker={"CPU": 1, **({"GPU": scale.gpus_per_worker} if scale.gpus_per_worker else {})},
            ),
            run_config=RayRunConfig(
                name=f"{config.name}-{uuid.uuid4().hex[:8]}",  # never resumed by Ray: our checkpoints decide
                storage_path=scratch,
                failure_config=FailureConfig(max_failures=scale.max_failures),
                worker_runtime_env={"env_vars": _worker_environment()},
            ),
        )
        with _watch(config, folder, start):
            try:
                trainer.fit()
            except TrainingFailedError as error:
                raise RuntimeError(f"run {config.name} failed: {_cause(error)}") from error
    return "finished", config.steps


def _cause(error: Exception) -> str:
    """The workers' own exceptions, where Ray carries them."""
    failures = getattr(error, "worker_failures", None) or {}
    lines = [f"worker {rank}: {str(cause).strip().splitlines()[-1]}" for rank, cause in sorted(failures.items())]
    return "; ".join(lines) or str(error)


def _worker_environment() -> dict[str, str]:
    """Variables a worker needs and Ray does not forward. No secrets: those come from the node's own environment."""
    forwarded = {name: os.environ[name] for name in ("MLFLOW_TRACKING_URI", "AWS_ENDPOINT_URL") if name in os.environ}
    return {"HERO_HOME": home.root(), "RAY_CHDIR_TO_TRIAL_DIR": "0", **forwarded}


@contextlib.contextmanager
def _cluster(num_workers: int) -> Iterator[None]:
    """Use the running cluster, or start a local one that leaves nothing behind.

    Raises:
        ValueError: the cluster that is there is too small (Ray would wait for ever).
    """
    import ray

    if ray.is_initialized() or os.environ.get("RAY_ADDRESS"):
        if not ray.is_initialized():
            ray.init(log_to_driver=False)
        available = ray.cluster_resources().get("CPU", 0)
        if available < num_workers:
            raise ValueError(f"{num_workers} workers need {num_workers} CPUs; the Ray cluster has {available:g}")
        yield
        return
    folder = tempfile.mkdtemp(prefix="hero-ray-", dir="/tmp")  # short: socket paths end at 107 bytes
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        ray.init(
            num_cpus=max(num_workers + 2, os.cpu_count() or 2),  # fewer can deadlock (stack.md 0.5)
            include_dashboard=True,  # without it Ray Train logs an error each second
            dashboard_host="127.0.0.1",
            object_store_memory=200_000_000,
            _temp_dir=folder,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        yield
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _watch(config: RunConfig, folder: str, start: int) -> Iterator[None]:
    """Show the workers' progress in this process."""
    done = threading.Event()
    path = files.join(folder, PROGRESS_FILE)

    def follow() -> None:
        with Progress(config.name, start=start, total=config.steps) as progress:
            while not done.wait(2.0 if files.is_remote(folder) else 0.5):
                with contextlib.suppress(FileNotFoundError, ValueError):
                    seen = files.read_json(path)
                    progress.update(seen["step"], seen["metrics"])

    thread = threading.Thread(target=follow, name="progress", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join(timeout=5)
