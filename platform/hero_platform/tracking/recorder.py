"""The tracker that needs no service: metrics go to the run's journal, texts and pictures beside it (design D9)."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from hero_platform import files
from hero_platform.tracking.base import RunInfo, Status, artifact_path, flatten, render
from hero_platform.tracking.journal import Journal, read
from hero_platform.tracking.system import SAMPLE_EVERY_S, Sampler, other_nodes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

logger = logging.getLogger(__name__)

ARTIFACTS = "artifacts"
STATUS_FILE = "status.json"  # how the newest start that ended did so


class JournalTracker:
    """Records a run in its own folder.

    Args:
        folder: the run's folder, local or remote.
        sample_every_s: seconds between samples of the machine's load; 0 takes none.
    """

    def __init__(self, folder: str, *, sample_every_s: float = SAMPLE_EVERY_S) -> None:
        self.folder = folder
        self.alarms: list[str] = []
        self._sample_every_s = sample_every_s
        self._journal: Journal | None = None
        self._sampler: Sampler | None = None
        self._guard: Callable[[], None] = lambda: None

    @property
    def journal(self) -> Journal:
        """The run's journal, open from `start` to `finish`."""
        assert self._journal is not None, "start() comes first, finish() last"
        return self._journal

    def start(self, run: RunInfo) -> None:
        """Open the journal and watch the machine."""
        self._guard = run.guard
        self._journal = Journal(self.folder, resume_step=run.resume_step, tolerance=run.replay_tolerance)
        if self._sample_every_s:
            began = self._journal.began_ms or time.time_ns() // 1_000_000
            also = functools.partial(other_nodes, self.folder)
            self._sampler = Sampler(self.log, began, self._sample_every_s, also)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append to the journal; a repeated step that differs is an alarm in the log and in `alarms`."""
        self._guard()
        alarm = self.journal.record(step, metrics)
        if alarm:
            self.alarms.append(alarm)
            logger.error("%s", alarm)

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Add to `artifacts/params.json`; a name keeps its first value."""
        path = files.join(self.folder, ARTIFACTS, "params.json")
        held = files.read_json(path) if files.exists(path) else {}
        files.write_json(path, flatten(params) | held)

    def log_text(self, text: str, path: str) -> None:
        """Write `artifacts/<path>`."""
        self._write(path, text.encode())

    def log_figure(self, figure: Figure, path: str) -> None:
        """Write `artifacts/<path>`."""
        self._write(path, render(figure, artifact_path(path)))

    def log_artifact(self, source: str, folder: str = "") -> None:
        """Copy a file or a folder under `artifacts/<folder>`."""
        inside = [artifact_path(folder)] if folder else []
        target = files.join(self.folder, ARTIFACTS, *inside)
        if os.path.isfile(source):
            files.copy_file(source, files.join(target, files.name_of(source)))
        else:
            files.copy_tree(source, target)

    def commit(self) -> None:
        """Force the journal to the disk, or upload it."""
        self.journal.commit()

    def history(self, prefix: str | tuple[str, ...]) -> dict[str, dict[int, float]]:
        """From the journal."""
        found: dict[str, dict[int, float]] = {}
        for record in read(self.journal.path):
            for name, value in record.metrics.items():
                if name.startswith(prefix):
                    found.setdefault(name, {})[record.step] = value
        return found

    def finish(self, status: Status) -> None:
        """Stop watching the machine, close the journal and note the status in `status.json`."""
        if self._journal is None:  # never started
            return
        self._stop_sampling()
        journal, self._journal = self._journal, None
        journal.close()
        files.write_json(files.join(self.folder, STATUS_FILE), {"status": status})

    def abandon(self) -> None:
        """Stop watching the machine and let go of the journal."""
        self._stop_sampling()
        if self._journal is not None:
            self._journal.abandon()
            self._journal = None

    def _stop_sampling(self) -> None:
        if self._sampler is not None:
            self._sampler.stop()
            self._sampler = None

    def _write(self, path: str, data: bytes) -> None:
        files.write_bytes(files.join(self.folder, ARTIFACTS, artifact_path(path)), data)
