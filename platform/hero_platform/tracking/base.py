"""What a tracker is, and the two that need no service: nothing, and memory. Only rank 0 has a real one (design D9)."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

from hero_platform import files

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Status = Literal["FINISHED", "FAILED", "KILLED"]
_PRINTABLE = re.compile(r"[^\x00-\x1f\x7f\\]+")
STATUSES: tuple[Status, ...] = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class RunInfo:
    """What a tracker needs to know about the start of a run."""

    name: str  # the run's identity: the same name is the same logical run (design D1)
    config: Mapping[str, Any]  # the resolved run, as plain data
    experiment: str = "hero"
    resume_step: int = 0  # updates behind the checkpoint this start goes on from
    replay_tolerance: float = 0.0  # relative; 0 promises bit identity, so larger after a change of worker count
    tags: Mapping[str, str] = field(default_factory=dict)  # store digests, fingerprint, parent run
    provenance: Mapping[str, Any] = field(
        default_factory=dict
    )  # `system.provenance()` of the driver; empty: taken here
    guard: Callable[[], None] = lambda: None  # called before anything is recorded; raises when another has the run
    sweep: str = ""  # name of the sweep that it is a trial of
    ended_ms: int | None = None  # wall clock of the run's end where that is over already; None: when it is finished


class Tracker(Protocol):
    """Records one run. No method waits for a service, and only `start` with bad settings raises."""

    def start(self, run: RunInfo) -> None:
        """Open the run, or go on with the one of the same name. Call it first, once."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Record metrics of a step; a step that is recorded already is compared, not recorded again."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Record settings; nested ones are flattened with dots. A name keeps its first value."""

    def log_text(self, text: str, path: str) -> None:
        """Keep a text under `path` inside the run; a ValueError where it leads out of it, here and below."""

    def log_figure(self, figure: Figure, path: str) -> None:
        """Keep a matplotlib figure under `path` (.png, .svg, .pdf) inside the run."""

    def log_artifact(self, source: str, folder: str = "") -> None:
        """Keep a file or a folder inside the run; it must stay unchanged until `finish`."""

    def commit(self) -> None:
        """Make what was logged so far durable; belongs before each checkpoint. Any thread may call it."""

    def finish(self, status: Status) -> None:
        """Close the run with its true status. Waits a bounded time for what is still on its way.

        Nothing happens on a tracker that was not started: whoever made it may always call this on the way out.
        """

    def abandon(self) -> None:
        """Close without a word to anyone: another process has the run, and its record is that one's affair."""

    def history(self, prefix: str | tuple[str, ...]) -> dict[str, dict[int, float]]:
        """Recorded metrics whose names begin with a prefix, over all starts of the run: name -> step -> value."""

    @property
    def alarms(self) -> list[str]:
        """Where a resumed run differed from what it had recorded before; empty is as it should be."""


class NullTracker:
    """Records nothing."""

    alarms: list[str] = []  # noqa: RUF012  nothing is ever added

    def start(self, run: RunInfo) -> None:
        """Nothing to open."""

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Nothing is kept."""

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Nothing is kept."""

    def log_text(self, text: str, path: str) -> None:
        """Nothing is kept."""

    def log_figure(self, figure: Figure, path: str) -> None:
        """Nothing is kept."""

    def log_artifact(self, source: str, folder: str = "") -> None:
        """Nothing is kept."""

    def commit(self) -> None:
        """Nothing to make durable."""

    def history(self, prefix: str | tuple[str, ...]) -> dict[str, dict[int, float]]:
        """Nothing was recorded."""
        return {}

    def finish(self, status: Status) -> None:
        """Nothing to close."""

    def abandon(self) -> None:
        """Nothing to close."""


class MemoryTracker:
    """Keeps everything in this object, for tests and notebooks."""

    def __init__(self) -> None:
        self.run: RunInfo | None = None
        self.metrics: dict[str, dict[int, float]] = {}  # name -> step -> value
        self.params: dict[str, str] = {}
        self.artifacts: dict[str, bytes] = {}
        self.status: str = ""
        self.alarms: list[str] = []

    def start(self, run: RunInfo) -> None:
        """Open the run; what an earlier start recorded stays."""
        self.run, self.status = run, "RUNNING"
        self.log_params(run.config)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Keep values that are new; alarm on repeated ones that differ."""
        tolerance = self.run.replay_tolerance if self.run else 0.0
        for name, value in metrics.items():
            held = self.metrics.setdefault(name, {}).setdefault(step, value)
            if is_deterministic(name) and not same(held, value, tolerance):
                self.alarms.append(alarm_text(step, {name: (held, value)}))

    def log_params(self, params: Mapping[str, Any]) -> None:
        """Keep flattened names; a name keeps its first value."""
        self.params = flatten(params) | self.params

    def log_text(self, text: str, path: str) -> None:
        """Keep the text as UTF-8."""
        self.artifacts[artifact_path(path)] = text.encode()

    def log_figure(self, figure: Figure, path: str) -> None:
        """Keep the rendered figure."""
        self.artifacts[path] = render(figure, artifact_path(path))

    def log_artifact(self, source: str, folder: str = "") -> None:
        """Keep the bytes of a file, or of every file in a folder."""
        inside = f"{artifact_path(folder)}/" if folder else ""
        for name in files.tree(source):
            self.artifacts[inside + name] = files.read_bytes(files.join(source, name))
        if os.path.isfile(source):
            self.artifacts[inside + files.name_of(source)] = files.read_bytes(source)

    def commit(self) -> None:
        """Memory is as durable as it gets."""

    def history(self, prefix: str | tuple[str, ...]) -> dict[str, dict[int, float]]:
        """From memory."""
        return {name: dict(points) for name, points in self.metrics.items() if name.startswith(prefix)}

    def finish(self, status: Status) -> None:
        """Keep the status."""
        self.status = status

    def abandon(self) -> None:
        """Leave the status as it is."""


DETERMINISTIC = ("train/loss", "train/lr", "train/grad_norm", "stream/")


def is_deterministic(name: str) -> bool:
    """Whether a metric must come out the same when a resumed run repeats a step; rates and memory need not."""
    return name.startswith(DETERMINISTIC)


def same(old: float, new: float, tolerance: float) -> bool:
    """Equal, both NaN, or within a relative tolerance."""
    return old == new or (old != old and new != new) or abs(old - new) <= tolerance * max(abs(old), abs(new))


def alarm_text(step: int, differences: Mapping[str, tuple[float, float]]) -> str:
    """One sentence on a repeated step that came out differently."""
    parts = ", ".join(f"{name} was {old!r} and is {new!r}" for name, (old, new) in differences.items())
    return f"step {step} came out differently when it was repeated after a resume: {parts}"


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested settings as dotted names with text values; list entries are numbered."""
    flat: dict[str, str] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
            value = {str(i): item for i, item in enumerate(value)}
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{name}.")
        else:
            flat[name] = value if isinstance(value, str) else repr(value)
    return flat


def artifact_path(path: str) -> str:
    """A path inside a run, as it was given.

    Raises:
        ValueError: it leads out of the run, or no file system takes it.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") or len(part.encode()) > 255 for part in parts) or not _PRINTABLE.fullmatch(path):
        raise ValueError(f"{path[:99]!r} is no path inside a run")
    return path


def render(figure: Figure, path: str) -> bytes:
    """A figure in the format of its path's suffix."""
    import io

    stream = io.BytesIO()
    figure.savefig(stream, format=path.rsplit(".", 1)[-1], bbox_inches="tight")
    return stream.getvalue()


def refusal(status: int, said: str) -> str:
    """What to do where an MLflow server refuses this user; empty when it does not.

    Args:
        status: HTTP status of its answer.
        said: its answer.
    """
    if status == 401:
        given = any(os.environ.get(name) for name in ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_TOKEN"))
        why = "it does not accept this user and password" if given else "it asks for a user and a password"
        return f"{why}: set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD in the environment"
    return f"it forbids this ({said}): ask its admin for the right" if status == 403 else ""


def default_uri(home: str) -> str:
    """Where runs are tracked: `MLFLOW_TRACKING_URI`, else a database in the outputs root.

    Raises:
        ValueError: the root is remote, where no sqlite file can be, and no address is given.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    if given:
        return given
    if files.is_remote(home):
        raise ValueError(
            f"HERO_HOME is {home}, where no tracking database can be: set MLFLOW_TRACKING_URI to an MLflow server"
        )
    return f"sqlite:///{os.path.abspath(home)}/mlflow.db"
