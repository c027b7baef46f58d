"""The record of a run's metrics that no service can lose: one JSON line a step, appended (design D9; ADR 0009).

    {"step":120,"t_ms":1767225600000,"metrics":{"train/loss/mlm/tv":3.25,"train/lr":1e-05},"crc":"9ae0daaf"}

A record is handed to the operating system whole before `record` returns, so killing the process loses nothing; it is
forced to the disk by `commit`, which belongs before each checkpoint, so a power cut loses only steps after the last
checkpoint, and those are run again. The checksum of a line (CRC-32) goes on from that of the line before it, so a line
that was changed, lost, moved or repeated is found. Lines of runs from before there were checksums are read as they are.
What stands behind the intact lines is cut off when the journal is opened; damaged lines are kept beside it.

The journal is also the queue of whatever ships it: readers follow it by byte offset. When the run's folder is remote,
the journal lives in a local scratch folder and `commit` uploads it.
"""

from __future__ import annotations

import contextlib
import getpass
import hashlib
import json
import logging
import os
import re
import secrets
import tempfile
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

from hero_platform import files
from hero_platform.scratch import scratch
from hero_platform.tracking.base import alarm_text, is_deterministic, same

logger = logging.getLogger(__name__)

FILE = "metrics.jsonl"
_KEYS = {"step", "t_ms", "metrics"}
_CHECKSUM = re.compile(rb',"crc":"([0-9a-f]{8})"\}\n')  # the end of a line
_CHECKSUM_BYTES = 19


class JournalError(RuntimeError):
    """The journal cannot be written; the cause is chained and what was recorded before is intact."""


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
        end, lines = 0, 0
        for record in read(self.path):
            end, lines = record.end, lines + 1
            self.began_ms = self.began_ms or record.t_ms
            if record.step > resume_step:
                self._repeatable.setdefault(record.step, {}).update(record.metrics)
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._cut(end, lines, folder)
        self._end, self._checksum = end, _checksum_before(self.path, end)
        self.recovered_end = end  # bytes that were intact when it was opened

    def _cut(self, end: int, lines: int, folder: str) -> None:
        """Cut off what is behind the intact lines, and say so; more than the last, torn line is kept beside them."""
        with open(self.path, "rb") as stream:
            stream.seek(end)
            rest = stream.read()
        if not rest:
            return
        where = f"line {lines + 1} of {files.join(folder, FILE)}"
        if b"\n" not in rest:
            logger.warning("%s is torn: it is cut off, and what it held is recorded again", where)
        else:
            kept = f"{FILE}.damaged-{secrets.token_hex(3)}"
            files.write_bytes(files.join(folder, kept), rest)
            logger.error(
                "%s is damaged (%s): the %d lines before it are used; it and %d bytes behind it are kept as %s",
                *(where, damage(self.path, end), lines, len(rest) - rest.index(b"\n") - 1, kept),
            )
        os.ftruncate(self._file, end)

    def record(self, step: int, metrics: Mapping[str, float]) -> str | None:
        """Append what is new of `metrics`; compare what this step had recorded before.

        Returns:
            None, or the alarm: which deterministic metrics came out differently.

        Raises:
            JournalError: it could not be written, such as on a full disk.
        """
        with self._lock:
            before = self._repeatable.get(step, {})
            new = {name: value for name, value in metrics.items() if name not in before}
            if new:
                now = time.time_ns() // 1_000_000
                self.began_ms = self.began_ms or now
                self._append(_body(step, now, new))
            differences = {
                name: (before[name], value)
                for name, value in metrics.items()
                if name in before and is_deterministic(name) and not same(before[name], value, self._tolerance)
            }
        return alarm_text(step, differences) if differences else None

    def _append(self, body: bytes) -> None:
        """Write one line whole; of one that could not be, nothing stays."""
        line, checksum = _line(body, self._checksum)
        try:
            _write_all(self._file, line)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._file, self._end)
            raise JournalError(f"the journal {self.path} cannot be written: {error.strerror or error}") from error
        self._end, self._checksum = self._end + len(line), checksum

    def commit(self) -> None:
        """Force the journal to the disk, or upload it. Other threads may go on recording meanwhile.

        Raises:
            JournalError: the disk, or the store of a remote run, did not take it.
        """
        try:
            os.fsync(self._file)
            if self._remote:
                with self._lock:
                    end = self._end
                with open(self.path, "rb") as stream:
                    files.write_bytes(self._remote, stream.read(end))
        except OSError as error:
            raise JournalError(f"the journal {self._remote or self.path} cannot be written: {error}") from error

    def abandon(self) -> None:
        """Close and leave everything as it is: another process writes this run."""
        os.close(self._file)

    def close(self) -> None:
        """Commit and close for good; the scratch folder of a remote run goes, once its store has everything."""
        try:
            self.commit()
        finally:
            os.close(self._file)
        if self._remote:
            files.remove_tree(files.parent_of(self.path))


def read(path: str, offset: int = 0) -> Iterator[Record]:
    """The intact records of a journal file from a byte offset on; stops before a torn or damaged line."""
    if not os.path.exists(path):
        return
    checksum = _checksum_before(path, offset)
    with open(path, "rb") as stream:
        stream.seek(offset)
        for line in stream:
            try:
                record, checksum = _parse(line, offset + len(line), checksum)
            except ValueError:
                return
            offset = record.end
            yield record


def of_run(folder: str) -> Iterator[Record]:
    """The intact records of the run in a folder, local or remote; none where nothing was recorded."""
    path = files.join(folder, FILE)
    if not files.is_remote(folder):
        yield from read(path)
    elif files.exists(path):
        with scratch("hero-journal-") as place:
            files.copy_file(path, files.join(place, FILE))
            yield from read(files.join(place, FILE))


def starts_line(path: str, offset: int) -> bool:
    """Whether a line of a journal starts at a byte offset, or would start there next."""
    if offset == 0 or offset > os.path.getsize(path):
        return offset == 0
    with open(path, "rb") as stream:
        stream.seek(offset - 1)
        return stream.read(1) == b"\n"


def damage(path: str, offset: int) -> str:
    """What is wrong with the line that starts at a byte offset; empty when nothing is, or no line starts there."""
    with open(path, "rb") as stream:
        stream.seek(offset)
        line = stream.readline()
    try:
        if line:
            _parse(line, offset + len(line), _checksum_before(path, offset))
    except ValueError as error:
        return str(error)
    return ""


def _parse(line: bytes, end: int, checksum: int) -> tuple[Record, int]:
    """A line that ends at byte `end`, given the checksum of the line before it; with its own checksum.

    Raises:
        ValueError: it is torn or damaged.
    """
    if not line.endswith(b"\n"):
        raise ValueError("it has no end")
    found = _CHECKSUM.search(line, max(len(line) - _CHECKSUM_BYTES, 0))
    body = line[: found.start()] + b"}" if found else line
    if found and zlib.crc32(body, checksum) != int(found[1], 16):
        raise ValueError("its checksum does not fit")
    try:
        parsed = json.loads(body)
        if set(parsed) != _KEYS:
            raise ValueError
        record = Record(end, int(parsed["step"]), int(parsed["t_ms"]), dict(parsed["metrics"]))
    except (ValueError, TypeError):
        raise ValueError("it is no record") from None
    return record, int(found[1], 16) if found else 0


def _checksum_before(path: str, offset: int) -> int:
    """Checksum of the line that ends at a byte offset; 0 at the start, and behind a line without one."""
    if offset < _CHECKSUM_BYTES:
        return 0
    with open(path, "rb") as stream:
        stream.seek(offset - _CHECKSUM_BYTES)
        found = _CHECKSUM.fullmatch(stream.read(_CHECKSUM_BYTES))
    return int(found[1], 16) if found else 0


def scratch_root() -> Path:
    """Where the journals of this user's remote runs are on this machine."""
    return Path(tempfile.gettempdir()) / f"hero-{getpass.getuser()}"


def _scratch(folder: str) -> Path:
    """A local folder that belongs to one remote run: the same at each start, so a killed one leaves no second."""
    return scratch_root() / hashlib.sha256(folder.encode()).hexdigest()[:16]


def as_bytes(records: Iterable[Record]) -> bytes:
    """A whole journal of these records, with their times."""
    lines, checksum = [], 0
    for record in records:
        line, checksum = _line(_body(record.step, record.t_ms, record.metrics), checksum)
        lines.append(line)
    return b"".join(lines)


def _body(step: int, t_ms: int, metrics: Mapping[str, float]) -> bytes:
    return json.dumps({"step": step, "t_ms": t_ms, "metrics": metrics}, separators=(",", ":")).encode()


def _line(body: bytes, checksum: int) -> tuple[bytes, int]:
    """A line with its checksum, which goes on from that of the line before."""
    checksum = zlib.crc32(body, checksum)
    return body[:-1] + b',"crc":"%08x"}\n' % checksum, checksum


def _write_all(handle: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(handle, view) :]
