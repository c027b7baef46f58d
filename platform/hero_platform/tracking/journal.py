"""The record of a run's metrics that no service can lose: one JSON line a step, appended (design D9; ADR 0009).

    {"step": 120, "t_ms": 1767225600000, "metrics": {"train/loss/mlm/tv": 3.25, "train/lr": 1e-05}}

A record is handed to the operating system whole before `record` returns, so killing the process loses nothing; it is
forced to the disk by `commit`, which belongs before each checkpoint, so a power cut loses only steps after the last
checkpoint, and those are run again. A line torn by a power cut is cut off when the journal is opened.

The journal is also the queue of whatever ships it: readers follow it by byte offset. When the run's folder is remote,
the journal lives in a local scratch folder and `commit` uploads it.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hero_platform import files
from hero_platform.tracking.base import alarm_text, is_deterministic, same

FILE = "metrics.jsonl"


class Record(NamedTuple):
    """One line of the journal."""

    end: int  # byte offset just behind it
    step: int
    t_ms: int  # wall clock when it was recorded, milliseconds since 1970
    metrics: dict[str, float]


class Journal:
    """Appends to and compares with the record of one run. Safe to use from several threads.

    Args:
        folder: the run's folder, local or remote.
        resume_step: updates behind the checkpoint this start goes on from: later steps may be repeated.
        tolerance: relative difference allowed when a step is repeated.
    """

    def __init__(self, folder: str, *, resume_step: int = 0, tolerance: float = 0.0) -> None:
        self._remote = files.join(folder, FILE) if files.is_remote(folder) else None
        self.path = str(_scratch(folder) / FILE) if self._remote else files.join(folder, FILE)
        files.makedirs(files.parent_of(self.path))
        if self._remote:
            Path(self.path).unlink(missing_ok=True)
            if files.exists(self._remote):
                files.copy_file(self._remote, self.path)
        self._tolerance = tolerance
        self._lock = threading.Lock()
        self._repeatable: dict[int, dict[str, float]] = {}  # what steps after the checkpoint gave last time
        self.began_ms: int | None = None  # when the first start of the run recorded something
        end = 0
        for record in read(self.path):
            end = record.end
            self.began_ms = self.began_ms or record.t_ms
            if record.step > resume_step:
                self._repeatable.setdefault(record.step, {}).update(record.metrics)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.ftruncate(self._file, end)
        self.recovered_end = end  # bytes that were intact when it was opened

    def record(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Append what is new of `metrics`; compare what this step had recorded before.

        Returns:
            None, or the alarm: which deterministic metrics came out differently.
        """
        with self._lock:
            before = self._repeatable.get(step, {})
            new = {name: value for name, value in metrics.items() if name not in before}
            if new:
                now = time.time_ns() // 1_000_000
                self.began_ms = self.began_ms or now
                line = json.dumps({"step": step, "t_ms": now, "metrics": new}, separators=(",", ":")) + "\n"
                _write_all(self._file, line.encode())
            differences = {
                name: (before[name], value)
                for name, value in metrics.items()
                if name in before and is_deterministic(name) and not same(before[name], value, self._tolerance)
            }
        return alarm_text(step, differences) if differences else None

    def commit(self) -> None:
        """Force the journal to the disk, or upload it. Other threads may go on recording meanwhile."""
        os.fsync(self._file)
        if self._remote:
            end = os.fstat(self._file).st_size
            with open(self.path, "rb") as stream:
                files.write_bytes(self._remote, stream.read(end))

    def close(self) -> None:
        """Commit and close for good; the scratch folder of a remote run goes."""
        self.commit()
        os.close(self._file)
        if self._remote:
            files.remove_tree(files.parent_of(self.path))


def read(path: str, offset: int = 0) -> Iterator[Record]:
    """The intact records of a journal file from a byte offset on; stops before a torn or damaged line."""
    if not os.path.exists(path):
        return
    with open(path, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            offset += len(line)
            try:
                parsed = json.loads(line if line.endswith(b"\n") else b"")
                record = Record(offset, int(parsed["step"]), int(parsed["t_ms"]), dict(parsed["metrics"]))
            except (ValueError, TypeError, KeyError):
                return
            yield record


def _scratch(folder: str) -> Path:
    """A local folder that belongs to one remote run: the same at each start, so a killed one leaves no second."""
    name = hashlib.sha256(folder.encode()).hexdigest()[:16]
    return Path(tempfile.gettempdir()) / f"hero-{getpass.getuser()}" / name


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
