"""Writing checkpoints: atomic, checksummed, in the background, the same in every mode (design D5, D6; ADR 0005).

Locally the folder is written under a temporary name and renamed; on S3, which has no rename, `checksums.json` is
uploaded last and removed first. One process writes a run's checkpoints at a time: a new writer removes whatever a dead
one left unfinished. `snapshot.py` says what a checkpoint is and reads it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import secrets
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, BinaryIO, Literal

from torch import Tensor

from hero_platform import files
from hero_platform.train.failure import last_line
from hero_platform.train.host_buffer import HostBuffer
from hero_platform.train.lease import LeaseLost
from hero_platform.train.snapshot import (
    BEST,
    COMMIT,
    FORMAT,
    STEP_FOLDER,
    TENSOR_FILES,
    checkpoints,
    commit_of,
    digest_of,
    load,
    verify,
)

logger = logging.getLogger(__name__)

_TEMPORARY = re.compile(r"step_\d{8,}\.tmp-[0-9a-f]+")


ATTEMPTS = 3  # at one checkpoint
FIRST_PAUSE_S = 1.0  # between attempts, doubled each time
SLOW_S = 1.0  # waiting longer than this is worth a word


class CheckpointError(RuntimeError):
    """Writing a checkpoint failed; the cause is chained."""

    def __init__(self, text: str, *, final: bool = False) -> None:
        super().__init__(text)
        self.final = final  # trying again would not help


class Checkpointer:
    """Writes and keeps the checkpoints of one run; only rank 0 has one.

    Args:
        root: the run's checkpoint folder, local or `s3://`.
        resumed_from: updates behind the checkpoint this start goes on from: later ones were damaged (`latest` skipped
            them). None: there is no such doubt.
        keep_last: how many of the newest to keep; the best is kept besides.
        config: the resolved run, stored with each checkpoint.
        best_metric: name of the score, for the record.
        best_mode: whether a high or a low score is good.
        before_publish: called in the background just before a checkpoint becomes visible: what belongs to the same
            step (the metrics journal) is made durable there first.
        keep_every_h: keep one of every so many hours besides; 0 keeps none.
        max_failed: how many writes in a row may fail before `save` raises.
    """

    def __init__(
        self,
        root: str,
        *,
        resumed_from: int | None = None,
        keep_last: int = 2,
        config: Mapping[str, Any] | None = None,
        best_metric: str = "",
        best_mode: Literal["max", "min"] = "max",
        before_publish: Callable[[], None] | None = None,
        keep_every_h: float = 0.0,
        max_failed: int = 1,
    ) -> None:
        if keep_last < 1:
            raise ValueError(f"checkpoint.keep_last must be at least 1, not {keep_last}")
        self._root = root
        self._keep_last = keep_last
        self._config = json.dumps(dict(config or {}), indent=2, sort_keys=True).encode()
        self._metric, self._sign = best_metric, 1.0 if best_mode == "max" else -1.0
        self._before_publish = before_publish
        self._keep_every_s = keep_every_h * 3600
        self._max_failed = max_failed
        self.failed = 0  # writes in a row that came to nothing
        self._buffers: dict[str, HostBuffer] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._pending: Future[None] | None = None
        self._copied = threading.Event()  # whether the state of the last save may change
        self._stall_s: float | None = None  # of the last save, until it is told
        files.makedirs(root)
        self._remove_leftovers()
        self._damaged = {step for step in checkpoints(root) if resumed_from is not None and step > resumed_from}

    def prepare(self, model_state: Mapping[str, Tensor], optim_tensors: Mapping[str, Tensor]) -> None:
        """Allocate and touch the host memory `save` copies into. Call it before the first step."""
        self._buffers = {
            name: HostBuffer(like) for name, like in zip(TENSOR_FILES, (model_state, optim_tensors), strict=True)
        }

    def save(
        self,
        step: int,
        model_state: Mapping[str, Tensor],
        optim_tensors: Mapping[str, Tensor],
        state: Mapping[str, Any],
        *,
        score: float | None = None,
    ) -> None:
        """Copy the state and write it, both in the background: it may not change before `wait_copied` has returned.

        So a training step can compute its gradients meanwhile. Waits here if the previous checkpoint is still being
        written.

        Args:
            step: optimizer updates completed.
            model_state: weights in full precision, the same names, shapes and types at each call.
            optim_tensors: `export_state(optimizer).tensors`.
            state: the rest, as JSON: counts, schedules, whatever resume needs.
            score: value of the headline metric at this step, when it is known.

        Raises:
            CheckpointError: the previous write failed, as `max_failed` in a row have, or for lack of space.
            LeaseLost: another process has the run.
        """
        began = time.perf_counter()
        self._settle()
        if (waited_s := time.perf_counter() - began) > SLOW_S:
            logger.warning(
                "the checkpoint of step %d waited %.1f s for the one before it to be written: checkpoint.every is less"
                " than that takes",
                *(step, waited_s),
            )
        if self._buffers is None:
            self.prepare(model_state, optim_tensors)
        assert self._buffers is not None
        for buffer, tensors in zip(self._buffers.values(), (model_state, optim_tensors), strict=True):
            buffer.begin(tensors)
        text = json.dumps({**state, "step": step}).encode()
        known = None if score is None or math.isnan(score) else score
        self._copied.clear()
        self._pending = self._thread.submit(self._write, step, self._buffers, text, known)
        self._stall_s = time.perf_counter() - began

    def wait_copied(self) -> float | None:
        """Wait until the state of the last save may change.

        Returns:
            Seconds that training stood still for it, here and in `save`; None where this was called after it before.
        """
        if (stall_s := self._stall_s) is None:
            return None
        self._stall_s = None
        began = time.perf_counter()
        self._copied.wait()
        return stall_s + time.perf_counter() - began

    def check(self) -> None:
        """Notice a write that has come to nothing; does not wait for one under way. Raises like `save`."""
        if self._pending is not None and self._pending.done():
            self._settle()

    def _settle(self) -> None:
        """Wait for the write under way and go on without it if it may fail."""
        try:
            self.wait()
        except CheckpointError as error:
            if error.final or self.failed >= self._max_failed:
                raise
            left = self._max_failed - self.failed
            logger.error("%s; training goes on, and stops when the next %d fail too", error, left)

    def wait(self) -> None:
        """Wait for the write under way.

        Raises:
            CheckpointError: it failed.
            LeaseLost: another process has the run.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def close(self) -> None:
        """Wait for the last write and end the thread. Raises CheckpointError like `wait`."""
        try:
            self.wait()
        finally:
            self._thread.shutdown()

    def _write(self, step: int, buffers: Mapping[str, HostBuffer], state: bytes, score: float | None) -> None:
        try:
            for buffer in buffers.values():
                buffer.fill()
        except Exception as error:
            text = f"copying the state for the checkpoint of step {step} failed: {last_line(error)}"
            raise CheckpointError(text, final=True) from error
        finally:
            self._copied.set()
        if bad := next(filter(None, (buffer.not_finite() for buffer in buffers.values())), ""):
            text = f"there is no checkpoint of step {step}: its update left values in {bad} that are not finite"
            raise CheckpointError(f"{text}; {self._held()}", final=True)
        target = files.join(self._root, f"step_{step:08d}")
        for attempt in range(1, ATTEMPTS + 1):
            try:
                if not self._is_intact(target):
                    self._publish(target, step, buffers, state, score)
                break
            except LeaseLost:
                raise
            except Exception as error:
                full, what = files.is_full(error), str(error) or repr(error)
                if full or attempt == ATTEMPTS:
                    self.failed += 1
                    reason = "no space is left" if full else f"{what} ({attempt} attempts)"
                    raise CheckpointError(
                        f"writing checkpoint {target} failed: {reason}; {self._held()}", final=full
                    ) from error
                pause = FIRST_PAUSE_S * 2 ** (attempt - 1)
                logger.warning("writing checkpoint %s: %s; trying again in %g s", target, what, pause)
                time.sleep(pause)
        self.failed = 0
        self._damaged.discard(step)
        try:
            self._retain(step)
        except Exception as error:  # what is there stays; the next save tries again
            logger.error("old checkpoints under %s could not be removed: %s", self._root, error)

    def _held(self) -> str:
        """What there is to go on from, for people."""
        try:
            steps = [step for step in checkpoints(self._root) if step not in self._damaged]
        except Exception:  # the storage that has just failed
            return "what was saved before is untouched"
        return f"the newest one is of step {steps[-1]}" if steps else "there is none yet"

    def _publish(
        self, target: str, step: int, buffers: Mapping[str, HostBuffer], state: bytes, score: float | None
    ) -> None:
        folder = target if files.is_remote(target) else f"{target}.tmp-{secrets.token_hex(6)}"
        try:
            entries = {name: _put(files.join(folder, name), buffer.write) for name, buffer in buffers.items()}
            entries["state.json"] = _put(files.join(folder, "state.json"), _writer(state))
            entries["config.json"] = _put(files.join(folder, "config.json"), _writer(self._config))
            if self._before_publish is not None:
                self._before_publish()
            commit: dict[str, Any] = {"format": FORMAT, "step": step, "score": score, "files": entries}
            commit["saved_ms"] = time.time_ns() // 1_000_000
            commit["digest"] = digest_of(commit)
            _put(files.join(folder, COMMIT), _writer(json.dumps(commit, indent=2).encode()))
            if folder != target:
                _sync_folder(folder)
                os.rename(folder, target)
                _sync_folder(files.parent_of(target))
        except BaseException:
            if folder != target:
                files.remove_tree(folder)
            raise

    def _is_intact(self, path: str) -> bool:
        """Whether this step is already saved: a run that repeats a step would write the same again."""
        if not files.exists(files.join(path, COMMIT)):
            return False
        try:
            load(path)
        except ValueError:
            _remove(path)
            return False
        return True

    def _retain(self, newest: int) -> None:
        """Point best.json at the best, then remove all but the last K, the best, and one of every so many hours.

        What lies after `newest` belongs to a future this run did not resume from: those were damaged. Nothing is
        removed while the newest one does not read back as it was written, so the only good one always stays.
        """
        paths = checkpoints(self._root)
        valid = [step for step in paths if step <= newest and step not in self._damaged]
        records = {step: found for step in valid if (found := commit_of(paths[step])) is not None}
        keep = set(valid[-self._keep_last :]) | set(self._spaced(records))
        scores = {step: record["score"] for step, record in records.items() if record["score"] is not None}
        if scores:
            best = max(scores, key=lambda step: (self._sign * scores[step], -step))
            keep.add(best)
            record = {"step": best, "score": scores[best], "metric": self._metric}
            path = files.join(self._root, BEST)
            if not _holds(path, record):
                files.write_json(path, record)
        old = [step for step in paths if step not in keep]
        if old:
            _read_back(paths[newest])
        for step in old:
            _remove(paths[step])

    def _spaced(self, records: Mapping[int, Mapping[str, Any]]) -> list[int]:
        """Steps of the first checkpoint and of each that came so many hours after the one kept before it."""
        kept: list[int] = []
        last = -math.inf
        for step, record in records.items() if self._keep_every_s else ():
            saved_s = record.get("saved_ms", -math.inf) / 1000  # older versions did not keep the time
            if saved_s >= last + self._keep_every_s:
                kept.append(step)
                last = saved_s
        return kept

    def _remove_leftovers(self) -> None:
        """Remove what a killed writer left: temporary folders, and on S3 uploads without a commit record."""
        files.remove_partial(self._root)
        for name in files.listdir(self._root):
            path = files.join(self._root, name)
            unfinished = STEP_FOLDER.fullmatch(name) and not files.exists(files.join(path, COMMIT))
            if unfinished or _TEMPORARY.fullmatch(name):
                logger.info("removing unfinished checkpoint %s", path)
                files.remove_tree(path)


def _holds(path: str, record: Mapping[str, Any]) -> bool:
    """Whether a JSON file holds this; not if it is damaged."""
    try:
        return bool(files.exists(path) and files.read_json(path) == record)
    except ValueError:
        return False


def _read_back(path: str) -> None:
    """Make sure a new checkpoint is what was written; of a remote one (its uploads are checked) only the sizes.

    Raises:
        ValueError: it is not.
    """
    if not files.is_remote(path):
        verify(path)
        return
    commit = commit_of(path)
    if commit is None or any(
        files.size_of(files.join(path, name)) != entry["bytes"] for name, entry in commit["files"].items()
    ):
        raise ValueError(f"{path} is not what was written")


def _put(path: str, write: Callable[[BinaryIO], tuple[int, str]]) -> dict[str, Any]:
    """Write one file, durably when local; returns its entry in the commit record."""
    files.makedirs(files.parent_of(path))
    if files.is_remote(path):
        fs, inner = files.filesystem(path)
        with fs.open(inner, "wb") as stream:
            size, digest = write(stream)
    else:
        with open(path, "wb") as stream:
            size, digest = write(stream)
            stream.flush()
            os.fsync(stream.fileno())
    return {"bytes": size, "sha256": digest}


def _writer(data: bytes) -> Callable[[BinaryIO], tuple[int, str]]:
    def write(stream: BinaryIO) -> tuple[int, str]:
        stream.write(data)
        return len(data), hashlib.sha256(data).hexdigest()

    return write


def _remove(path: str) -> None:
    """Remove a checkpoint so that no reader ever takes a half-removed one for whole."""
    if files.is_remote(path):
        files.remove(files.join(path, COMMIT))
        files.remove_tree(path)
        return
    hidden = f"{path}.tmp-{secrets.token_hex(6)}"
    os.rename(path, hidden)
    files.remove_tree(hidden)


def _sync_folder(path: str) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
