"""A run's journal to MLflow after the fact: what the server was not there to take (design D9; ADR 0009)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from hero_platform import files, home
from hero_platform.credentials import without_credentials
from hero_platform.tracking.base import default_uri
from hero_platform.tracking.index import path_of
from hero_platform.tracking.journal import FILE, read
from hero_platform.tracking.mlflow_tracker import MlflowTracker
from hero_platform.tracking.note import FILE as NOTE_FILE
from hero_platform.tracking.note import Note
from hero_platform.train.cost import keep_cost
from hero_platform.train.failure import TrainingFailed
from hero_platform.train.lease import only_one
from hero_platform.train.records import (
    keep_evaluations,
    keep_results,
    provenance_of,
    run_folder,
    run_info,
    starts_of,
    status_of,
)

_LOOK_S = 0.1


@dataclass(frozen=True)
class Synced:
    """What the server has now."""

    name: str
    uri: str
    run_id: str
    status: str
    records: int  # lines of the journal
    metrics_sent: int  # values; 0: everything was there already


def sync(name: str, *, patience_s: float = 60.0, progress: Callable[[str], None] = lambda text: None) -> Synced:
    """Send what MLflow does not have of a run that is not being trained, and close it with its own status and time.

    Doing it again sends nothing: records keep their time, so one that is on the server already changes nothing there.

    Args:
        name: of the run.
        patience_s: how long the server may take none of it.
        progress: takes lines for people.

    Raises:
        ValueError: there is no such run, it has no record, or it is being trained.
        TrainingFailed: the server did not take everything; what it took stays, and the next time goes on from there.
    """
    folder = run_folder(name)
    with only_one(folder, role="driver", timeout_s=2.0), only_one(folder, timeout_s=5.0):
        starts = starts_of(folder)
        if not starts:
            raise ValueError(f"run {name!r} in {folder} has recorded nothing yet")
        config = starts[-1].config
        uri = default_uri(home.root())
        pace: dict[str, float] = {"sample_every_s": 0, "flush_s": _LOOK_S, "finish_timeout_s": patience_s}
        tracker = MlflowTracker(folder, uri, **pace, index=path_of(home.root(), uri))
        status = status_of(folder)
        note = Note.load(Path(folder) / NOTE_FILE, without_credentials(uri))
        journal = files.join(folder, FILE)
        complete = note is not None and note.clean and note.shipped == files.size_of(journal)
        local = [] if files.is_remote(folder) else list(read(journal))
        provenance = provenance_of(folder)  # never this machine's
        nodes = [node for start in starts for node in start.nodes]
        info = run_info(config, resume_step=starts[-1].step, same_split=False, provenance=provenance, nodes=nodes)
        tracker.start(replace(info, ended_ms=local[-1].t_ms if local else None))
        records = sum(1 for _ in read(tracker.journal.path))
        try:
            if status == "FINISHED" and not complete:
                keep_results(tracker, config, folder)
            if not complete:
                keep_evaluations(tracker, folder)
            keep_cost(tracker, folder)
            _wait(tracker, patience_s, progress)
        finally:
            tracker.finish(status)
    address = without_credentials(uri)
    if tracker.unsent:
        raise TrainingFailed(f"run {name}: MLflow at {address} did not take everything: {tracker.unsent}; run it again")
    return Synced(name, address, str(tracker.run_id), status, records, tracker.metrics_sent)


def _wait(tracker: MlflowTracker, patience_s: float, progress: Callable[[str], None]) -> None:
    """Until the server has the journal, or has taken nothing for too long."""
    left, said = tracker.bytes_left, time.monotonic()
    since = said
    while tracker.bytes_left and not tracker.refused and time.monotonic() - since < patience_s:
        time.sleep(_LOOK_S)
        if tracker.bytes_left != left:
            left, since = tracker.bytes_left, time.monotonic()
        if since - said > 5.0:
            said = since
            progress(f"{tracker.metrics_sent:,} values sent, {left / 1e6:,.1f} MB of the journal left")
