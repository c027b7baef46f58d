"""One MLflow run per run name, fed from the journal by a thread, `shipper.py` (design D9; ADR 0009)."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hero_platform import files
from hero_platform.tracking import mlflow_calls as calls
from hero_platform.tracking.base import RunInfo, Status, artifact_path, render
from hero_platform.tracking.recorder import JournalTracker
from hero_platform.tracking.shipper import ALARM_TAG, Job, Shipper, text_job
from hero_platform.tracking.system import SAMPLE_EVERY_S

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class MlflowTracker(JournalTracker):
    """Records a run in its journal and in MLflow.

    Args:
        folder: the run's folder, local or remote.
        uri: MLflow tracking address, `sqlite:///...` or a server (`base.default_uri`). Artifacts go where a server
            says, or to `mlartifacts/` beside the sqlite file.
        sample_every_s: seconds between samples of the machine's load; 0 takes none.
        flush_s: seconds between looks at the journal, and the least between two calls. Only the end of a run does not
            wait for its turn, except with metrics.
        finish_timeout_s: the longest `finish` waits for MLflow.
        index: database file that the run is added to when it ends (`index.path_of`); empty: none.
    """

    def __init__(
        self,
        folder: str,
        uri: str,
        *,
        sample_every_s: float = SAMPLE_EVERY_S,
        flush_s: float = 1.0,
        finish_timeout_s: float = 60.0,
        index: str = "",
    ) -> None:
        super().__init__(folder, sample_every_s=sample_every_s)
        self._uri = uri
        self._flush_s, self._finish_timeout_s, self._index = flush_s, finish_timeout_s, index
        self._shipper: Shipper | None = None

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None until the server has answered."""
        return self._shipper.run_id if self._shipper else None

    @property
    def metrics_sent(self) -> int:
        """How many values this start sent; those the server held already count when they were sent again."""
        return self._shipper.metrics_sent if self._shipper else 0

    @property
    def unsent(self) -> str:
        """Why not everything is on the server; empty once `finish` has sent all of it."""
        return self._shipper.unsent if self._shipper else "nothing was started"

    @property
    def refused(self) -> bool:
        """Whether the server does not let this user in."""
        return self._shipper is not None and self._shipper.refused

    @property
    def bytes_left(self) -> int:
        """How much of the journal the server does not have yet."""
        return self._shipper.bytes_left if self._shipper else 0

    def start(self, run: RunInfo) -> None:
        """Open the journal; the MLflow run is opened in the background."""
        super().start(run)
        self._info = run
        self._shipper = Shipper(self._uri, run, self.journal, self._flush_s, self.folder, self._index)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append to the journal; an alarm is also a tag of the run."""
        before = len(self.alarms)
        super().log(step, metrics)
        if len(self.alarms) > before:
            text = self.alarms[before]
            self._add(Job(ALARM_TAG, lambda client, run_id: client.set_tag(run_id, ALARM_TAG, text[:5000])))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Send flattened params; a name keeps its first value."""
        named = calls.as_params(params)
        self._add(Job("params", lambda client, run_id: calls.log_params(client, run_id, named)))

    def log_text(self, text: str, path: str) -> None:
        """Send a text as an artifact."""
        self._add(text_job(artifact_path(path), text))

    def log_figure(self, figure: Figure, path: str) -> None:
        """Render here, send in the background."""
        data = render(figure, artifact_path(path))
        self._add(Job(path, lambda client, run_id: calls.log_bytes(client, run_id, data, path)))

    def log_artifact(self, source: str, folder: str = "") -> None:
        """Send a file or folder; of a remote one only its address is kept."""
        if folder:
            artifact_path(folder)
        if files.is_remote(source):
            self.log_text(source + "\n", f"{folder}/location.txt" if folder else "location.txt")
            return
        if not os.path.exists(source):
            raise FileNotFoundError(f"nothing to keep at {source}")

        def send(client: Any, run_id: str) -> None:
            log = client.log_artifacts if os.path.isdir(source) else client.log_artifact
            log(run_id, source, folder or None)

        self._add(Job(source, send))

    def annotate(self, trials: Mapping[str, tuple[Mapping[str, Any], Mapping[str, str]]]) -> None:
        """Add to trials of this sweep, by name, the params and tags that they do not have yet."""
        sweep = self._info.name
        named = {name: (calls.as_params(params), tags) for name, (params, tags) in trials.items()}
        what = f"tags of {', '.join(trials) if len(trials) == 1 else f'{len(trials):,} trials'}"
        self._add(Job(what, lambda client, own: calls.annotate(client, own, sweep, named)))

    def crown(self, name: str, checkpoint: calls.Checkpoint) -> None:
        """Mark the best trial of this sweep, and register its checkpoint as a model of the sweep's name."""
        run = self._info
        self._add(Job(f"the model of {name}", lambda client, own: calls.crown(client, own, run.name, name, checkpoint)))

    def finish(self, status: Status) -> None:
        """Send the rest and the status; what does not arrive in time stays in the journal for the next start."""
        if self._shipper is None:  # never started
            return
        self._stop_sampling()
        try:
            self.commit()
        finally:
            self._shipper.finish(status, self._finish_timeout_s)
            super().finish(status)

    def abandon(self) -> None:
        """Send nothing more; the run on the server stays as it is."""
        if self._shipper is not None:
            self._shipper.abandon()
        super().abandon()

    def _add(self, job: Job) -> None:
        assert self._shipper is not None, "start() comes first"
        self._shipper.jobs.append(job)
