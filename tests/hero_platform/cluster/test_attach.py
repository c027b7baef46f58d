"""A job is followed over connections that break, and nothing of its output is shown twice or left out."""

from __future__ import annotations

import argparse
import io
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace

import aiohttp
import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from hero_platform.cluster import attach
from hero_platform.cluster.attach import LostConnectionError, follow, went_with_its_node
from hero_platform.cluster.submit import ATTEMPT, NAME, SUBMITTER, WORDS, Attempt
from jobs import submit

OUTPUT = "one\ntwo\nthree\n"
ATTEMPT_OF = Attempt("j-a1", "j", 1, "[]", "u@h", "RUNNING", "", None, 0, None)


class Flaky:
    """In the place of Ray's client: each look at the log ends with the next of these errors."""

    def __init__(
        self, *ends: tuple[int, BaseException | None], status: Sequence[JobStatus] = (JobStatus.SUCCEEDED,)
    ) -> None:
        self.ends, self.status = list(ends), list(status)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        there, error = self.ends[0] if len(self.ends) == 1 else self.ends.pop(0)
        for start in range(0, there, 3):
            yield OUTPUT[start : min(start + 3, there)]
        if error:
            raise error

    def get_job_info(self, job_id: str) -> JobDetails:
        if not self.status:
            raise ConnectionResetError
        status = self.status[0] if len(self.status) == 1 else self.status.pop(0)
        kept = {NAME: "j", ATTEMPT: "1", WORDS: "[]", SUBMITTER: "u@h"}
        return JobDetails(type=JobType.SUBMISSION, submission_id=job_id, status=status, entrypoint="", metadata=kept)


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attach, "AGAIN_AFTER_S", 0.0)


@pytest.mark.parametrize(
    "error", [RuntimeError("closed"), ConnectionResetError(), aiohttp.ServerDisconnectedError(), aiohttp.ClientError()]
)
def test_output_goes_on_behind_the_last_character(error: Exception, capsys):
    out = io.StringIO()
    ended = follow(Flaky((5, error), (0, error), (9, error), (len(OUTPUT), None)), ATTEMPT_OF, out)
    assert out.getvalue() == OUTPUT and ended == replace(ATTEMPT_OF, status="SUCCEEDED")
    assert capsys.readouterr().err.count("the connection to j is lost; trying again") == 2, "once for each break"


def test_a_cluster_that_is_gone_is_given_up(monkeypatch):
    monkeypatch.setattr(attach, "GIVE_UP_S", 0.05)
    with pytest.raises(LostConnectionError, match="has not answered for"):
        follow(Flaky((4, ConnectionResetError()), status=()), ATTEMPT_OF, io.StringIO())


def test_output_that_went_with_its_node_does_not_hide_how_the_job_ended(monkeypatch, capsys):
    """The job server answers, and the node with the log does not: each look at the output fails."""
    monkeypatch.setattr(attach, "GIVE_UP_S", 60.0)
    out = io.StringIO()
    status = (JobStatus.RUNNING, JobStatus.RUNNING, JobStatus.FAILED)
    ended = follow(Flaky((4, None), (0, RuntimeError("closed with 1006")), status=status), ATTEMPT_OF, out)
    assert (out.getvalue(), ended.status) == (OUTPUT[:4], "FAILED") and went_with_its_node(ended)
    assert "the rest of the output of j is gone with its node" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("exit_code", "error", "lost"),
    [
        (-9, "JOB_ENTRYPOINT_COMMAND_ERROR", True),
        (None, "JOB_SUPERVISOR_ACTOR_DIED", True),
        (137, "JOB_ENTRYPOINT_COMMAND_ERROR", False),  # what the driver says when its retries are spent
        (2, "JOB_ENTRYPOINT_COMMAND_ERROR", False),
        (None, "RUNTIME_ENV_SETUP_FAILURE", False),
        (None, "JOB_SUPERVISOR_ACTOR_START_TIMEOUT", False),
    ],
)
def test_only_what_was_lost_is_submitted_again(exit_code: int | None, error: str, lost: bool):
    ended = replace(ATTEMPT_OF, status="FAILED", exit_code=exit_code, error=error)
    assert went_with_its_node(ended) is lost
    assert not went_with_its_node(replace(ended, status="STOPPED"))


def test_nobody_reads_what_is_shown_any_more():
    """`... | head`: that is no lost connection, which would be tried again."""

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        follow(Flaky((4, None)), ATTEMPT_OF, Closed())


@pytest.mark.parametrize("stops", [True, False])
def test_after_ctrl_c_nothing_that_waits_for_the_job_goes_on(monkeypatch, stops: bool):
    """The job did not succeed, whichever the answer was; a stop is sent for the one answer only."""
    asked: list[str] = []
    client = Flaky((0, KeyboardInterrupt()), status=(JobStatus.RUNNING, JobStatus.STOPPED))
    client.stop_job = asked.append
    monkeypatch.setattr(submit, "_wants_stop", lambda: stops)
    assert submit._follow(argparse.Namespace(json=None), client, ATTEMPT_OF) == (130, None)
    assert asked == (["j-a1"] if stops else [])


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (JobStatus.PENDING, "job j waits for a machine, and ends as soon as it has one"),
        (JobStatus.RUNNING, "job j was asked to commit and end"),
        (JobStatus.SUCCEEDED, "job j is over already: succeeded"),
    ],
)
def test_a_stop_says_what_it_waits_for(status: JobStatus, said: str, capsys):
    client = Flaky(status=(status, JobStatus.STOPPED))
    client.stop_job = lambda job: None
    assert submit._stop(argparse.Namespace(json=None), client, ATTEMPT_OF) == 0
    assert said in "".join(capsys.readouterr())
