"""Jobs by name on a cluster: submitted, found again, stopped (design D11).

A name is a run's. Each time that it is submitted is an attempt, a Ray job of its own: `<name>-a<attempt>`.
"""

from __future__ import annotations

import json
import os
import shlex
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from hero_platform import home
from hero_platform.cluster.package import stage
from hero_platform.credentials import shareable
from hero_platform.scratch import scratch

if TYPE_CHECKING:
    from ray.job_submission import JobDetails, JobSubmissionClient

NAME, ATTEMPT, WORDS, SUBMITTER = "hero_name", "hero_attempt", "hero_words", "hero_submitter"  # metadata of a Ray job
HOME = "hero_home"
OVER = ("SUCCEEDED", "FAILED", "STOPPED")


@dataclass(frozen=True)
class Job:
    """What is to run on a cluster."""

    name: str
    module: str  # jobs.train, ...
    words: tuple[str, ...]  # its arguments
    retries: int = 3  # starts after a driver that was lost
    cpus: float = 0.0  # that the driver itself takes; 0: it runs on the head, and its work elsewhere
    gpus: float = 0.0

    @property
    def entrypoint(self) -> str:
        """The shell command; `exec`, so that the shell is not one more process to lose."""
        driver = ["hero_platform.cluster.driver", self.name, str(self.retries), "--", self.module, *self.words]
        return f"exec python -m {shlex.join(driver)}"

    def asked(self) -> str:
        """What tells it from another job of its name."""
        return json.dumps([self.module, *self.words])


@dataclass(frozen=True)
class Attempt:
    """One Ray job of a name."""

    id: str
    name: str
    number: int
    asked: str
    submitter: str
    status: str  # PENDING, RUNNING, SUCCEEDED, FAILED, STOPPED
    message: str
    exit_code: int | None
    started_ms: int
    ended_ms: int | None
    error: str = ""  # what kind of failure Ray calls it
    home: str = ""  # where its outputs go

    @property
    def over(self) -> bool:
        """Whether nothing of it runs any more."""
        return self.status in OVER


@dataclass(frozen=True)
class Submitted:
    """What a call of `submit` found or made."""

    attempt: Attempt
    how: Literal["submitted", "running", "finished"]
    notes: tuple[str, ...] = field(default=())


def attempts(client: JobSubmissionClient, name: str = "") -> list[Attempt]:
    """All attempts that the cluster knows, oldest first; of one name, or of all."""
    found = [_attempt(details) for details in client.list_jobs() if NAME in (details.metadata or {})]
    chosen = [attempt for attempt in found if name in ("", attempt.name)]
    return sorted(chosen, key=lambda attempt: (attempt.started_ms, attempt.number))


def newest(client: JobSubmissionClient, name: str) -> Attempt:
    """The newest attempt of a name.

    Raises:
        ValueError: the cluster knows none.
    """
    if found := attempts(client, name):
        return found[-1]
    known = ", ".join(dict.fromkeys(attempt.name for attempt in attempts(client)))
    raise ValueError(f"the cluster knows no job {name!r}; it knows {known or 'none'}")


def submit(client: JobSubmissionClient, job: Job, *, again: bool = False) -> Submitted:
    """Submit a job, unless one of its name runs, or has done the same already.

    Args:
        client: of the cluster.
        job: what is to run.
        again: submit even what has finished.

    Raises:
        RuntimeError: the cluster does not take it.
    """
    before = attempts(client, job.name)
    if before and (taken := _taken(before[-1], job, again)):
        return taken
    number = before[-1].number + 1 if before else 1
    with scratch("hero-package-") as place:
        origin = stage(Path(place))
        try:
            client.submit_job(
                entrypoint=job.entrypoint,
                submission_id=f"{job.name}-a{number}",
                metadata={
                    NAME: job.name, ATTEMPT: str(number), WORDS: job.asked(), SUBMITTER: origin["submitter"],
                    HOME: home.root(),
                },
                runtime_env={"working_dir": place, "env_vars": environment()},
                entrypoint_num_cpus=job.cpus or None,
                entrypoint_num_gpus=job.gpus or None,
            )  # fmt: skip
        except RuntimeError:
            found = attempts(client, job.name)
            if len(found) == len(before):
                raise
            return Submitted(found[-1], "running", ("somebody else has just submitted it",))
    return Submitted(newest(client, job.name), "submitted", _notes(origin))


def _taken(last: Attempt, job: Job, again: bool) -> Submitted | None:
    """The attempt that makes another one needless."""
    words, place = last.asked == job.asked(), last.home == home.root()
    same = words and place  # a run of another HERO_HOME is another run
    if not last.over:
        notes = []
        if not words:
            notes.append(f"it has other arguments, and yours are not used: {shlex.join(json.loads(last.asked))}")
        if not place:
            notes.append(f"it writes to {last.home} and not to your HERO_HOME: give your job another --name")
        return Submitted(last, "running", tuple(notes))
    return Submitted(last, "finished") if last.status == "SUCCEEDED" and same and not again else None


def environment() -> dict[str, str]:
    """What a job knows of this environment: where outputs and records go, and no secret (design D11)."""
    return {"PYTHONPATH": "platform", **home.environment()}


def _notes(origin: dict[str, Any]) -> tuple[str, ...]:
    notes = []
    if "://" not in home.root():
        notes.append(
            f"outputs go to {home.root()} on the cluster's machines: set HERO_HOME=s3://... unless they all share it"
        )
    if os.environ.get("MLFLOW_TRACKING_URI") and not shareable(["MLFLOW_TRACKING_URI"]):
        notes.append("MLFLOW_TRACKING_URI holds a password and stays here: set it on the cluster's nodes")
    if origin["git"].get("diff") or origin["git"].get("untracked"):
        notes.append("the code has uncommitted changes, which go along and are kept with the run")
    return tuple(notes)


def stop(client: JobSubmissionClient, attempt: Attempt) -> None:
    """Ask an attempt to commit and end; `attach.wait` sees it end."""
    client.stop_job(attempt.id)


def refreshed(client: JobSubmissionClient, attempt: Attempt) -> Attempt:
    """The same attempt as it is now."""
    return _attempt(client.get_job_info(attempt.id))


def _attempt(details: JobDetails) -> Attempt:
    kept: dict[str, Any] = details.metadata or {}
    return Attempt(
        id=str(details.submission_id),
        name=kept[NAME],
        number=int(kept[ATTEMPT]),
        asked=kept[WORDS],
        submitter=kept[SUBMITTER],
        status=str(details.status.value),
        message=details.message or "",
        exit_code=details.driver_exit_code,
        started_ms=details.start_time or 0,
        ended_ms=details.end_time,
        error=details.error_type or "",
        home=kept.get(HOME, ""),
    )
