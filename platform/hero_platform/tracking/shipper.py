"""The thread that brings a run's journal to MLflow (ADR 0009).

It opens the run, follows the journal by byte offset and sends what is new with the journal's own timestamps;
`tracking.json` beside the journal remembers the run's id and how far it got. Sending a record twice is harmless: the
server drops a metric equal in key, step, value and timestamp. What the journal lost and the server holds (a power cut,
another host) would come again with a new timestamp, so after an unclean end the thread first asks which steps after the
checkpoint the server holds, and leaves those out.

A server that is slow, down or refuses never reaches the training loop: failures are logged once, retried with growing
pauses, and at the end the journal keeps what was not sent until the run is started again.
"""

from __future__ import annotations

import getpass
import hashlib
import json
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hero_platform import files
from hero_platform.credentials import without_credentials
from hero_platform.tracking import index
from hero_platform.tracking import mlflow_calls as calls
from hero_platform.tracking.base import RunInfo, Status, alarm_text, is_deterministic, same
from hero_platform.tracking.journal import Journal, Record, damage, read, starts_line
from hero_platform.tracking.note import FILE, Note
from hero_platform.tracking.standing import CHANGED_TAG, DIFF_TAG, SUBMITTER_TAG
from hero_platform.tracking.system import provenance, provenance_texts

logger = logging.getLogger(__name__)

FINGERPRINT_TAG = "fingerprint"
ALARM_TAG = "hero.replay_alarm"
_ATTEMPTS = 3  # at an artifact that fails while metrics go through


@dataclass
class Job:
    """Something besides metrics that the server is to be told."""

    what: str
    run: Callable[[Any, str], object]  # (MlflowClient, run id)
    attempts: int = 0


class Shipper:
    """The thread between the journal and the server. Every method but `finish` runs on it."""

    def __init__(self, uri: str, run: RunInfo, journal: Journal, flush_s: float, folder: str, index_path: str) -> None:
        self.run_id: str | None = None
        self.metrics_sent = 0
        self.unsent = "the server has not answered yet"
        self.refused = False  # the server does not let this user in
        self.jobs: deque[Job] = deque()
        self._uri, self._run = uri, run
        self._public_uri = without_credentials(uri)
        self._path, self._began_ms, self._intact_end = journal.path, journal.began_ms, journal.recovered_end
        self._note_path = Path(journal.path).with_name(FILE)
        # of a remote run the note beside the journal goes with this host: which run it was stays in its folder
        self._kept_note = files.join(folder, FILE) if files.is_remote(folder) else ""
        self._flush_s, self._index_path = flush_s, index_path
        self._next_call = 0.0  # monotonic clock: the server may be called again from then on
        self._client: Any = None
        self._note: Note | None = None
        self._held: dict[tuple[str, int], float] = {}  # on the server, perhaps not in the journal
        self._given_up: list[str] = []  # jobs that the server did not take
        self._alarmed = False
        self._status: Status | None = None
        self._wake = threading.Event()
        self._concluded = False
        self._abandoned = threading.Event()  # set when nobody waits any more: another start may own the run by then
        self._thread = threading.Thread(target=self._follow, name="mlflow", daemon=True)
        self._thread.start()

    def finish(self, status: Status, timeout_s: float) -> None:
        """Ask for the end and wait for it, but not for ever."""
        began = time.monotonic()
        self._status = status
        self._wake.set()
        self._thread.join(timeout_s)
        if not self._concluded:
            self.abandon()
            logger.warning(
                "MLflow at %s did not take everything in %.0f s: %s; the rest stays in %s and is sent at the next "
                "start, or by python -m jobs.sync --run %s",
                *(self._public_uri, time.monotonic() - began, self.unsent, self._path, self._run.name),
            )

    def abandon(self) -> None:
        """End after the call under way."""
        self._abandoned.set()
        self._wake.set()

    @property
    def bytes_left(self) -> int:
        """How much of the journal the server does not have yet."""
        return os.path.getsize(self._path) - (self._note.shipped if self._note else 0)

    def _follow(self) -> None:
        failures = 0
        while not self._concluded and not self._abandoned.is_set():
            status = self._status  # read before shipping: all that was logged before `finish` is sent before its status
            try:
                self._ship()
                failures, self.refused = 0, False
                if status is not None:
                    self._conclude(status)
            except Exception as error:
                failures += 1
                refusal = calls.refusal_of(error)
                self.unsent, self.refused = refusal or without_credentials(str(error)), bool(refusal)
                if failures == 1 and not self._abandoned.is_set():
                    logger.warning("MLflow at %s: %s; trying again", self._public_uri, self.unsent)
                if refusal and status is not None:  # a run that is over cannot wait for its admin
                    return
            self._wake.wait(self._flush_s if not failures else min(2.0**failures, 1.0 if status else 30.0))
            self._wake.clear()

    def _ship(self) -> None:
        if self._note is None:
            self._note = self._open()
            self.run_id = self._note.run_id
        metrics: list[Any] = []
        end = self._note.shipped
        for record in read(self._path, end):
            new = self._metrics_of(record)
            if len(metrics) + len(new) > calls.METRICS_A_CALL:
                self._send(metrics, end)
                metrics = []
            metrics += new
            end = record.end
        if end > self._note.shipped:
            self._send(metrics, end)
        while self.jobs:
            self._work_on(self.jobs[0])
            self.jobs.popleft()

    def _turn(self) -> None:
        """Wait until the server may be called again."""
        while (left_s := self._next_call - time.monotonic()) > 0 and not (self._status or self._abandoned.is_set()):
            self._wake.wait(left_s)
        self._next_call = time.monotonic() + self._flush_s

    def _metrics_of(self, record: Record) -> list[Any]:
        every = calls.metrics(record.metrics, record.step, record.t_ms)
        self._compare(record)
        return [metric for metric in every if (metric.key, metric.step) not in self._held]

    def _compare(self, record: Record) -> None:
        """Raise the alarm where the server holds another value, as of a run of the same name made elsewhere."""
        if self._alarmed or not self._held:
            return
        differences = {
            name: (held, value)
            for name, value in record.metrics.items()
            if is_deterministic(name)
            and (held := self._held.get((name, record.step))) is not None
            and not same(held, value, self._run.replay_tolerance)
        }
        if differences:
            self._alarmed = True
            text = f"the run on the server is not this one: {alarm_text(record.step, differences)}"
            logger.error("MLflow at %s: %s", self._public_uri, text)
            self.jobs.append(Job(ALARM_TAG, lambda client, run_id: client.set_tag(run_id, ALARM_TAG, text[:5000])))

    def _send(self, metrics: list[Any], end: int) -> None:
        assert self._note is not None
        for chunk in calls.chunks(metrics, calls.METRICS_A_CALL):
            self._abandoned.wait(max(self._next_call - time.monotonic(), 0))
            self._client.log_batch(self._note.run_id, metrics=chunk, synchronous=True)
            self.metrics_sent += len(chunk)
            if self._abandoned.is_set():
                return
        self._note.shipped = end
        self._note.save(self._note_path)

    def _work_on(self, job: Job) -> None:
        """Do one job; one that keeps failing while metrics go through is given up, with a reason."""
        assert self._note is not None
        try:
            job.run(self._client, self._note.run_id)
        except Exception as error:
            job.attempts += 1
            if job.attempts < _ATTEMPTS:
                raise
            reason = calls.refusal_of(error) or without_credentials(str(error))
            self._given_up.append(f"{job.what} ({reason})")
            logger.error("MLflow at %s does not take %s: %s", self._public_uri, job.what, reason)

    def _conclude(self, status: Status) -> None:
        assert self._note is not None
        if reason := damage(self._path, self._note.shipped):
            logger.error("%s is damaged behind byte %d (%s)", self._path, self._note.shipped, reason)
        self._client.set_terminated(self._note.run_id, status, end_time=self._run.ended_ms)
        self.unsent = "; ".join(filter(None, [reason, *self._given_up]))
        self._note.clean = not self.unsent
        self._note.save(self._note_path)
        self._concluded = True
        try:
            if self._index_path:
                index.add(self._index_path, self._uri, self._note.run_id)
        except Exception as error:  # whoever looks at the index asks MLflow for what it lacks
            text = without_credentials(str(error))
            logger.warning("run %s is not in the index %s yet: %s", self._run.name, self._index_path, text)

    def _open(self) -> Note:
        """Find or create the run, describe it, and find out where to go on."""
        self._client = calls.Paced(calls.connect(self._uri), self._turn)
        note = Note.load(self._note_path, self._public_uri) or Note.of_another_host(self._kept_note, self._public_uri)
        found = calls.active_run(self._client, note.run_id) if note else None
        if found is None:
            note = None
            experiment_id = calls.experiment(self._client, self._uri, self._run.experiment)
            found = calls.first_run(self._client, experiment_id, self._identity())
        if found is None:
            created = self._client.create_run(
                experiment_id,
                start_time=self._began_ms,
                run_name=self._run.name,
                tags=self._identity() | self._place(experiment_id),
            )
            note = Note(self._public_uri, created.info.run_id, 0, True)
            held: dict[str, str] = {}
        else:
            run_id = found.info.run_id
            note = note or Note(self._public_uri, run_id, 0, False)
            if not starts_line(self._path, note.shipped):
                note.shipped, note.clean = 0, False
            if not note.clean or note.shipped > self._intact_end:
                self._held = self._on_server(run_id, found.data.metrics)
                note.shipped = min(note.shipped, self._intact_end)
            held = found.data.params
            self._client.update_run(run_id, status="RUNNING")
        note.clean = False
        note.save(self._note_path)
        if self._kept_note:
            files.write_json(self._kept_note, vars(replace(note, shipped=0)))
        self._describe(note.run_id, held)
        return note

    def _identity(self) -> dict[str, str]:
        """What makes a run of the server this one: its name, and the settings that decide its results."""
        fingerprint = {name: value for name, value in self._run.tags.items() if name == FINGERPRINT_TAG}
        return {calls.RUN_TAG: self._run.name, **fingerprint}

    def _place(self, experiment_id: str) -> dict[str, str]:
        """Tags that put the trial of a sweep under the sweep's run, if that is there already."""
        if not self._run.sweep:
            return {}
        parent = calls.run_of_sweep(self._client, experiment_id, self._run.sweep)
        return {calls.SWEEP_TAG: self._run.sweep} | ({calls.PARENT_TAG: parent.info.run_id} if parent else {})

    def _on_server(self, run_id: str, names: Iterable[str]) -> dict[tuple[str, int], float]:
        """What the server holds of the steps that may be sent again."""
        return {
            (name, metric.step): metric.value
            for name in names
            for metric in self._client.get_metric_history(run_id, name)
        }

    def _describe(self, run_id: str, held: Mapping[str, str]) -> None:
        """Tags and params now; files as jobs, so that an artifact store out of reach does not hold up metrics."""
        run = self._run
        origin = dict(run.provenance) or provenance()
        git = origin.get("git", {})
        commit = git.get("commit", "")
        own = {calls.RUN_TAG: run.name, "mlflow.user": getpass.getuser(), "mlflow.source.name": "hero_platform"}
        if commit:
            diff = git.get("diff", "")
            changed = bool(diff or git.get("untracked"))
            own |= {"mlflow.source.git.commit": commit, CHANGED_TAG: str(changed).lower()}
            own[DIFF_TAG] = hashlib.sha256(diff.encode()).hexdigest() if diff else "none"
        if submitter := origin.get("submitter"):
            own[SUBMITTER_TAG] = submitter
        calls.set_tags(self._client, run_id, own | {key: value[:5000] for key, value in run.tags.items()})
        params = calls.as_params(run.config)
        calls.log_params(self._client, run_id, params, held)
        start = {
            "resume_step": run.resume_step,
            "commit": commit,
            "changed": {name: value for name, value in params.items() if held and held.get(name) != value},
            "config": run.config,
        }
        texts = {"config.json": json.dumps(run.config, indent=2)}
        if run.ended_ms is None:
            stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
            texts[f"starts/{stamp}.json"] = json.dumps(start, indent=2)
        for path, text in (texts | provenance_texts(origin)).items():
            self.jobs.append(text_job(path, text))


def text_job(path: str, text: str) -> Job:
    """Keep a text as an artifact."""
    return Job(path, lambda client, run_id: client.log_text(run_id, text, path))
