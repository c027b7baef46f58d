"""The machine a run works on: what it is, what its code is, and how busy it is over time."""

from __future__ import annotations

import contextlib
import functools
import getpass
import importlib.metadata
import json
import logging
import os
import platform
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from hero_platform import files
from hero_platform.credentials import without_credentials
from hero_platform.tracking import place

logger = logging.getLogger(__name__)

_REPOSITORY = Path(__file__).resolve().parents[3]
SAMPLE_EVERY_S = 10.0
NODES = "nodes"  # folder of the other machines' newest samples, in the run's
ORIGIN_FILE = "origin.json"  # beside packaged code: where it came from
_DIFF_LIMIT = 1_000_000  # characters of uncommitted changes kept with a run


def provenance() -> dict[str, Any]:
    """What is needed to say what ran: git state, who ran it, packages, hardware. Plain data, about a second."""
    return {**origin(), "packages": packages(), "hardware": hardware()}


def origin() -> dict[str, Any]:
    """Where the code comes from and who set it to work: `git`, `submitter`; of packaged code as it was kept there."""
    packaged = _REPOSITORY / ORIGIN_FILE
    if packaged.is_file():  # a job of a cluster
        return dict(files.read_json(packaged))
    return {"git": git_state(_REPOSITORY), "submitter": _submitter()}


def _submitter() -> str:
    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # one without a name, as in containers
        user = "unknown"
    return f"{user}@{socket.gethostname()}"


def provenance_texts(origin: Mapping[str, Any]) -> dict[str, str]:
    """A `provenance()` as files to keep with a run; those that would be empty are left out."""
    git = origin.get("git", {})
    texts = {
        "environment/hardware.json": json.dumps(origin.get("hardware", {}), indent=2),
        "environment/requirements.txt": "".join(f"{line}\n" for line in origin.get("packages", ())),
        "environment/git.json": json.dumps({key: git[key] for key in ("commit", "branch") if key in git}),
        "environment/git.diff": git.get("diff", ""),
        "environment/git_untracked.txt": git.get("untracked", ""),
    }
    return {path: text for path, text in texts.items() if text.strip()}


def git_state(folder: Path) -> dict[str, str]:
    """Commit and uncommitted changes of a checkout, new files by name; empty where there is no checkout.

    A credential that stands in a change is left out (`credentials.without_credentials`).
    """
    commit = _git(folder, "rev-parse", "HEAD")
    if not commit:
        return {}
    diff = without_credentials(_git(folder, "diff", "HEAD"))
    if len(diff) > _DIFF_LIMIT:
        diff = f"{diff[:_DIFF_LIMIT]}\n(cut off: {len(diff) - _DIFF_LIMIT} more characters)\n"
    return {
        "commit": commit.strip(),
        "branch": _git(folder, "rev-parse", "--abbrev-ref", "HEAD").strip(),
        "diff": diff,
        "untracked": _git(folder, "ls-files", "--others", "--exclude-standard"),
    }


def changed_files(old: str, new: str) -> str:
    """What git says changed between two commits of this checkout, a line a file; empty where it lacks one of them."""
    return _git(_REPOSITORY, "diff", "--stat", old, new, "--")


def packages() -> list[str]:
    """Every installed distribution as `name==version`, sorted: the dependency lock of this run."""
    found = {
        f"{dist.name}=={dist.version}"
        for dist in importlib.metadata.distributions()
        if dist.name and "thirdparty_files" not in str(dist.locate_file(""))  # what Ray brings for itself
    }
    return sorted(found, key=str.lower)


def hardware() -> dict[str, Any]:
    """Host, system, processor, memory and GPUs; what the machine says of where it is."""
    import psutil
    import torch

    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return {
        "host": socket.gethostname(),
        "system": platform.platform(),
        "python": sys.version.split()[0],
        "cpu": _cpu_name(),
        "cpu_kernels": torch.backends.cpu.get_cpu_capability(),  # the instructions torch chose: others round otherwise
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "gpus": [{"name": gpu.name, "memory_gb": round(gpu.total_memory / 1e9, 1)} for gpu in gpus],
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        **place.said(),
    }


def sample() -> dict[str, float]:
    """How busy this machine and this process are now; names start with `system/`."""
    import psutil

    memory, network, own = psutil.virtual_memory(), psutil.net_io_counters(), _own_process()
    metrics = {
        "system/cpu_percent": psutil.cpu_percent(),
        "system/memory_percent": memory.percent,
        "system/memory_available_gb": memory.available / 1e9,
        "system/process_cpu_percent": own.cpu_percent(),
        "system/process_memory_gb": own.memory_info().rss / 1e9,
        "system/network_received_gb": network.bytes_recv / 1e9,
        "system/network_sent_gb": network.bytes_sent / 1e9,
    }
    disk = psutil.disk_io_counters()
    if disk is not None:  # none inside some containers
        metrics["system/disk_read_gb"] = disk.read_bytes / 1e9
        metrics["system/disk_written_gb"] = disk.write_bytes / 1e9
    return metrics | _gpus()


class Sampler:
    """Samples this machine in a thread until stopped.

    A sample's step is whole seconds since `began_ms`, the run's first start: it grows over restarts, so no (name, step)
    ever comes twice.

    Args:
        log: takes (step, metrics).
        began_ms: wall clock of the run's first start, milliseconds.
        every_s: seconds between samples.
        also: what is known of other machines by then.
    """

    def __init__(
        self,
        log: Callable[[int, Mapping[str, float]], None],
        began_ms: int,
        every_s: float = SAMPLE_EVERY_S,
        also: Callable[[], Mapping[str, float]] = dict,
    ) -> None:
        self._log, self._began_ms, self._every_s, self._also = log, began_ms, every_s, also
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="system-metrics", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        away, step = False, -1
        try:
            sample()  # percentages count from the previous call
            while not self._stopped.wait(self._every_s):
                metrics = sample()
                step = max(step + 1, (time.time_ns() // 1_000_000 - self._began_ms) // 1000)  # clocks may be set back
                try:
                    self._log(step, {**metrics, **self._also()})
                    away = False
                except OSError as error:  # the storage, which may come back
                    if not away:
                        logger.warning("system metrics cannot be kept: %s; trying again", error)
                    away = True
        except Exception as error:  # a machine without these counters still trains
            logger.warning("system metrics end here: %s", error)


@contextlib.contextmanager
def reported(folder: str, node: int, every_s: float = SAMPLE_EVERY_S) -> Iterator[None]:
    """Leave the newest sample of this machine in the run's folder, where rank 0, which is elsewhere, finds it."""
    path = files.join(folder, NODES, f"{node}.json")

    def write(step: int, metrics: Mapping[str, float]) -> None:
        files.write_json(path, {"time": time.time(), "metrics": dict(metrics)})

    sampler = Sampler(write, 0, every_s)
    try:
        yield
    finally:
        sampler.stop()
        with contextlib.suppress(OSError):  # where the storage is away it stays, and is too old to be believed
            files.remove(path)


def other_nodes(folder: str, newer_than_s: float = 3 * SAMPLE_EVERY_S) -> dict[str, float]:
    """The newest samples that `reported` left, `system/node<N>/<name>`; of nodes that are silent none."""
    metrics: dict[str, float] = {}
    for name in files.listdir(files.join(folder, NODES)):
        node = name.removesuffix(".json")
        if not node.isdigit():  # one that is being written
            continue
        try:
            found = files.read_json(files.join(folder, NODES, name))
        except (FileNotFoundError, ValueError):  # that node has just ended
            continue
        if time.time() - found["time"] < newer_than_s:
            metrics.update({k.replace("system/", f"system/node{node}/"): v for k, v in found["metrics"].items()})
    return metrics


@functools.cache
def _own_process() -> Any:
    import psutil

    return psutil.Process()


def _gpus() -> dict[str, float]:
    """Every GPU of this machine, where nvidia-ml-py is installed; asking torch would open a context on each of them."""
    try:
        import pynvml

        pynvml.nvmlInit()
    except Exception:  # not installed, or no driver: NVMLError derives from Exception itself
        return {}
    metrics: dict[str, float] = {}
    for index in range(pynvml.nvmlDeviceGetCount()):
        gpu = pynvml.nvmlDeviceGetHandleByIndex(index)
        metrics[f"system/gpu_{index}_utilization_percent"] = float(pynvml.nvmlDeviceGetUtilizationRates(gpu).gpu)
        metrics[f"system/gpu_{index}_memory_gb"] = pynvml.nvmlDeviceGetMemoryInfo(gpu).used / 1e9
        metrics[f"system/gpu_{index}_power_w"] = pynvml.nvmlDeviceGetPowerUsage(gpu) / 1e3
    return metrics


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _git(folder: Path, *words: str) -> str:
    """Output of a git command; empty where git or the repository is missing."""
    try:
        done = subprocess.run(
            ["git", "-C", str(folder), *words], capture_output=True, text=True, errors="replace", timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
