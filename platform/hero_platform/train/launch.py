"""From a resolved `RunConfig` to a finished run: in this process, or on Ray workers. The same name goes on (D1, D5)."""

from __future__ import annotations

import contextlib
import signal
import threading
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from hero_platform import config_io, files, home
from hero_platform.config import RunConfig
from hero_platform.credentials import without_credentials
from hero_platform.telemetry import Progress
from hero_platform.tracking import place
from hero_platform.tracking.base import Status
from hero_platform.tracking.place import Place
from hero_platform.tracking.system import provenance
from hero_platform.train import snapshot
from hero_platform.train.cost import keep_cost
from hero_platform.train.failure import TrainingFailed, last_line
from hero_platform.train.lease import LeaseLost, only_one
from hero_platform.train.loop import Signal
from hero_platform.train.on_ray import Judge, Validations, run_on_ray
from hero_platform.train.records import (
    close,
    end_of,
    is_settled,
    keep_results,
    make_tracker,
    nodes_of,
    run_info,
    starts_of,
)
from hero_platform.train.resolve import check_same_run
from hero_platform.train.worker import Surroundings, train

FAILURE_FILE = "failure.txt"  # traceback of the newest failure
USER_MISTAKES = (ValueError, FileNotFoundError, PermissionError)  # jobs report them in one line as they are


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
        if self.status == "finished" and self.resumed_from == self.step:
            return f"run {self.name} was finished already, at step {self.step}: {self.folder}"
        went_on = f", went on from step {self.resumed_from}" if self.resumed_from else ""
        again = "; the same command goes on" if self.status == "interrupted" else ""
        return f"run {self.name} {self.status} at step {self.step}{went_on}: {self.folder}{again}"

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def launch(
    config: RunConfig, *, judge: Judge | None = None, stop: threading.Event | None = None, share: float = 1.0
) -> RunResult:
    """Train a run to `config.steps`; if the name exists, go on from its newest valid checkpoint.

    Ctrl-C and SIGTERM commit after the step under way; a second one gives up at once.

    Args:
        config: the resolved run.
        judge: told what each validation found (step, metrics); whether the run is to end there. With Ray workers it is
            told a little later, and again after a restart.
        stop: set by others to have the run commit and end.
        share: the part of this machine that is charged to a run in this process.

    Raises:
        ValueError: the name holds another experiment, or the machine cannot hold the workers asked for.
        TrainingFailed: training failed; the cause is in the message, the traceback in the run's `failure.txt`.
        KeyboardInterrupt: a second Ctrl-C or SIGTERM came.
    """
    folder = home.run_dir(config.name)
    if config.scale.gpus_per_worker > 0 and config.scale.num_workers == 0 and not torch.cuda.is_available():
        raise ValueError(f"scale.gpus_per_worker is {config.scale.gpus_per_worker:g}, but this process sees no GPU")
    # A dead driver of this machine is known at once, so a held lease is a live one: no need to wait as rank 0 does.
    with only_one(folder, role="driver", timeout_s=2.0), stop_flag(stop or threading.Event()) as asked:
        if not check_same_run(config, folder):
            files.makedirs(folder)
            files.write_json(files.join(folder, "config.json"), config_io.to_dict(config))
        start = newest_step(folder, config.steps)
        if start >= config.steps:
            if judge is not None:  # whoever was told may be dead
                for step, found in Validations(folder).new():
                    judge(step, found)
            if not is_settled(config, folder):  # it was killed between its last checkpoint and its end
                settle(config, end_of(config))
            return _result(config, folder, start)
        begun = len(starts_of(folder))
        try:
            if config.scale.num_workers == 0:
                _here(config, folder, start, asked, judge, place.here(share=share))
            else:
                _on_workers(config, folder, start, asked, judge)
        except USER_MISTAKES:
            raise
        except Exception as error:
            text = str(error) if isinstance(error, TrainingFailed) else f"run {config.name} failed: {last_line(error)}"
            try:
                trace = without_credentials(traceback.format_exc())
                files.write_bytes(files.join(folder, FAILURE_FILE), trace.encode())
                text = f"{text} (traceback in {files.join(folder, FAILURE_FILE)})"
            except OSError as unwritten:  # such as the full disk that the failure is about
                text = f"{text} (its traceback could not be kept: {unwritten})"
            raise TrainingFailed(text) from error
        return _result(config, folder, _went_on_from(folder, begun, start))


def _went_on_from(folder: str, begun: int, start: int) -> int:
    """Step of the checkpoint that this command went on from: the newest may have been damaged."""
    starts = starts_of(folder)
    return starts[begun].step if len(starts) > begun else start


def newest_step(folder: str, steps: int) -> int:
    """Step of the newest checkpoint; one that would end the run is verified first, since nobody loads it."""
    paths = snapshot.checkpoints(files.join(folder, "checkpoints"))
    newest = max(paths, default=0)
    if newest >= steps:
        found = snapshot.latest(files.join(folder, "checkpoints"))
        return found.step if found else 0
    return newest


def _result(config: RunConfig, folder: str, start: int) -> RunResult:
    newest = snapshot.choose(home.checkpoints_dir(config.name), "last")
    step = max(snapshot.checkpoints(home.checkpoints_dir(config.name)))
    status = "finished" if step >= config.steps else "interrupted"
    return RunResult(config.name, status, step, start, folder, snapshot.weights_digest(newest))


def _here(
    config: RunConfig, folder: str, start: int, stop: threading.Event, judge: Judge | None, machine: Place
) -> None:
    """N = 0: this process, no Ray."""

    def validated(step: int, metrics: Mapping[str, float]) -> None:
        if judge is not None and judge(step, metrics):
            stop.set()

    tracker = make_tracker(config, folder)
    status: Status | None = "FAILED"
    with only_one(folder) as lease:
        try:
            with Progress(config.name, start=start, total=config.steps) as progress:
                outcome = train(
                    config,
                    Surroundings(
                        folder=folder,
                        lease=lease,
                        device=torch.device("cuda" if config.scale.gpus_per_worker > 0 else "cpu"),
                        tracker=tracker,
                        provenance=provenance(),
                        place=machine,
                        progress=progress.update,
                        validated=validated,
                        signal=lambda: Signal.STOP if stop.is_set() else Signal.GO_ON,
                    ),
                )
            status = "KILLED" if outcome["stopped"] else end_of(config)
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        except LeaseLost:
            status = None
            raise
        except USER_MISTAKES as error:  # once training is under way they are nobody's typing error
            raise TrainingFailed(f"run {config.name} failed: {last_line(error)}") from error
        finally:
            close(tracker, status)


def _on_workers(config: RunConfig, folder: str, start: int, stop: threading.Event, judge: Judge | None) -> None:
    """N >= 1: rank 0 closes the run in its tracker; when it could not, the driver does it in its place."""
    status: Status = "FAILED"
    try:
        run_on_ray(config, folder, start, provenance(), stop, judge)
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            status = "KILLED"
        if not isinstance(error, USER_MISTAKES):  # those come before there are workers
            settle(config, status)
        raise


def settle(config: RunConfig, status: Status) -> None:
    """Send what a dead rank 0 had recorded and not sent, and close the run."""
    folder = home.run_dir(config.name)
    with only_one(folder):
        tracker = make_tracker(config, folder)
        step = newest_step(folder, config.steps)
        nodes = nodes_of(folder)
        tracker.start(run_info(config, resume_step=step, same_split=False, provenance=provenance(), nodes=nodes))
        if status == "FINISHED":
            keep_results(tracker, config, folder)
        keep_cost(tracker, folder)
        tracker.finish(status)


@contextlib.contextmanager
def stop_flag(flag: threading.Event) -> Iterator[threading.Event]:
    """Turn the first Ctrl-C or SIGTERM into a flag; a second one interrupts at once."""
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
