"""Follow a job of a cluster: its output as it comes, over lost connections, to its exit code."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, TextIO

import aiohttp

from hero_platform.cluster.driver import is_lost
from hero_platform.cluster.submit import Attempt, refreshed
from hero_platform.telemetry import duration

if TYPE_CHECKING:
    from ray.job_submission import JobSubmissionClient

AGAIN_AFTER_S = 2.0
GIVE_UP_S = 600.0


class LostConnectionError(Exception):
    """The cluster does not answer any more."""


def follow(client: JobSubmissionClient, attempt: Attempt, out: TextIO | None = None) -> Attempt:
    """Show an attempt's output until it is over; returns how it ended.

    Where the connection breaks, it goes on behind the last character that was shown.

    Raises:
        LostConnectionError: the cluster has not answered for `GIVE_UP_S`.
        KeyboardInterrupt: Ctrl-C came; the job goes on.
    """
    stream = out or sys.stdout
    shown, silent_since, said = 0, time.monotonic(), False

    async def show() -> None:
        nonlocal shown, silent_since, said
        seen = 0
        async for text in client.tail_job_logs(attempt.id):
            silent_since, said = time.monotonic(), False
            new = text[max(shown - seen, 0) :]
            seen += len(text)
            if new:
                stream.write(new)
                stream.flush()
                shown = seen

    while True:
        try:
            asyncio.run(show())
            now = refreshed(client, attempt)
            silent_since = time.monotonic()
            if now.over:
                return now
        except (OSError, RuntimeError, aiohttp.ClientError) as error:  # RuntimeError: the job server itself
            if time.monotonic() - silent_since > GIVE_UP_S:
                raise LostConnectionError(
                    f"the cluster has not answered for {duration(GIVE_UP_S)} ({type(error).__name__})"
                ) from error
            if not said:
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
    """Whether an attempt failed because it was lost, and not by itself."""
    return attempt.status == "FAILED" and is_lost(attempt.exit_code)
