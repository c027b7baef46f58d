"""Follow a job of a cluster: its output as it comes, over lost connections, to its exit code."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, TextIO

import aiohttp

from hero_platform.cluster.submit import Attempt, refreshed
from hero_platform.telemetry import duration

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

AGAIN_AFTER_S = 2.0
GIVE_UP_S = 600.0
OUTPUT_TRIES = 3  # in a row that showed nothing, after the end of an attempt
FAILURES = (
    OSError,
    RuntimeError,
    aiohttp.ClientError,
)  # of a connection; RuntimeError: of the job server
NEVER_BEGAN = frozenset(
    {
        "RUNTIME_ENV_SETUP_FAILURE",
        "JOB_SUPERVISOR_ACTOR_START_TIMEOUT",
        "JOB_SUPERVISOR_ACTOR_UNSCHEDULABLE",
        "JOB_ENTRYPOINT_COMMAND_START_ERROR",
    }
)


class LostConnectionError(Exception):
    """The cluster does not answer any more."""


def follow(client: JobSubmissionClient, attempt: Attempt, out: TextIO | None = None) -> Attempt:
    """Show an attempt's output until it is over; returns how it ended.

    Where the connection breaks, it goes on behind the last character that was shown. Output that went with
    its node is given up once the attempt is over.

    Raises:
        LostConnectionError: the cluster has not answered for `GIVE_UP_S`.
        KeyboardInterrupt: Ctrl-C came; the job goes on.
        BrokenPipeError: nobody reads what is shown any more; the job goes on.
    """
    stream = out or sys.stdout
    shown, silent_since, said, in_vain = 0, time.monotonic(), False, 0

    async def show() -> None:
        nonlocal shown, silent_since, said, in_vain
        seen = 0
        async for text in client.tail_job_logs(attempt.id):
            silent_since, said = time.monotonic(), False
            new = text[max(shown - seen, 0) :]
            seen += len(text)
            if new:
                stream.write(new)
                stream.flush()
                shown, in_vain = seen, 0

    while True:
        broken: Exception | None = None
        try:
            asyncio.run(show())
        except BrokenPipeError:  # whoever reads our output has gone; what a connection raises is of another type
            raise
        except FAILURES as error:  # also where the server is well, and the node that has the output is gone
            broken = error
            in_vain += 1
        try:
            now = refreshed(client, attempt)
            silent_since = time.monotonic()
            if now.over and (not broken or in_vain >= OUTPUT_TRIES):
                if broken:
                    print(f"the rest of the output of {attempt.name} is gone with its node", file=sys.stderr)
                return now
        except FAILURES as error:
            broken = error
        if broken and time.monotonic() - silent_since > GIVE_UP_S:
            raise LostConnectionError(
                f"the cluster has not answered for {duration(GIVE_UP_S)} ({type(broken).__name__})"
            ) from broken
        if broken and not said:
            said = True
            print(f"the connection to {attempt.name} is lost; trying again", file=sys.stderr)
        time.sleep(AGAIN_AFTER_S)


def wait(client: JobSubmissionClient, attempt: Attempt) -> Attempt:
    """Until an attempt is over; returns how it ended."""
    while not (now := refreshed(client, attempt)).over:
        time.sleep(0.5)
    return now


def exit_code(attempt: Attempt) -> int:
    """What a job's own command would have returned: 130 when it was stopped."""
    if attempt.status == "SUCCEEDED":
        return 0
    if attempt.status == "STOPPED":
        return 130
    return attempt.exit_code if attempt.exit_code is not None and attempt.exit_code > 0 else 1


def went_with_its_node(attempt: Attempt) -> bool:
    """Whether an attempt failed because what watches the job was lost, and not by itself.

    A driver that was lost too often ends with 128 and more: its retries are spent, and another attempt has no others.
    """
    if attempt.status != "FAILED" or attempt.error in NEVER_BEGAN:
        return False
    return attempt.exit_code is None or attempt.exit_code < 0
