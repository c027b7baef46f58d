"""A job is followed over connections that break, and nothing of its output is shown twice or left out."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator
from dataclasses import replace

import aiohttp
import pytest
from ray.job_submission import JobDetails, JobStatus, JobType

from hero_platform.cluster import attach
from hero_platform.cluster.attach import LostConnectionError, follow
from hero_platform.cluster.submit import ATTEMPT, NAME, SUBMITTER, WORDS, Attempt

OUTPUT = "one\ntwo\nthree\n"
ATTEMPT_OF = Attempt("j-a1", "j", 1, "[]", "u@h", "RUNNING", "", None, 0, None)


class Flaky:
    """In the place of Ray's client: each look at the log ends with the next of these errors."""

    def __init__(self, *ends: tuple[int, Exception | None]) -> None:
        self.ends = list(ends)

    async def tail_job_logs(self, job_id: str) -> AsyncIterator[str]:
        there, error = self.ends[0] if len(self.ends) == 1 else self.ends.pop(0)
        for start in range(0, there, 3):
            yield OUTPUT[start : min(start + 3, there)]
        if error:
            raise error

    def get_job_info(self, job_id: str) -> JobDetails:
        kept = {NAME: "j", ATTEMPT: "1", WORDS: "[]", SUBMITTER: "u@h"}
        return JobDetails(
            type=JobType.SUBMISSION, submission_id=job_id, status=JobStatus.SUCCEEDED, entrypoint="", metadata=kept
        )


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
        follow(Flaky((4, ConnectionResetError())), ATTEMPT_OF, io.StringIO())
