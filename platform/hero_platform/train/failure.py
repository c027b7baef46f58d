"""How a run that failed says so: one line with the cause for people, the traceback in a file."""

from __future__ import annotations

import re
from collections.abc import Mapping

from hero_platform.credentials import without_credentials


class TrainingFailed(RuntimeError):
    """A run failed; the message is one line, the cause is chained."""


class StepFailed(RuntimeError):
    """What a worker raised, in one line with the step it had reached: `after step 12: OSError: ...`."""


class SameErrorAgain(RuntimeError):
    """Workers that were started again failed like before: starting them once more would not help."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; the message names the step, its task and videos, and how to repeat it."""


_OURS = re.compile(r"(?:[\w.]+\.)?(?:StepFailed|SameErrorAgain): ")  # says nothing to people
_NUMBER = re.compile(r"0x[0-9a-f]+|\d+")
_DEAD_AT = re.compile(r"^\t(pid|ip): (.+)$", re.MULTILINE)


def last_line(error: BaseException) -> str:
    """Type and message of an exception in one line; of one whose message is a remote traceback, the traceback's end.

    No credential is in it.
    """
    error = getattr(error, "health_check_failure", error)  # Ray Train's wrapping of it is 700 characters about an actor
    if type(error).__name__ == "ActorDiedError" and (found := dict(_DEAD_AT.findall(str(error)))):
        return f"process {found.get('pid', '?')} on {found.get('ip', '?')} is gone: {_death(str(error))}"
    lines = [line.strip() for line in without_credentials(str(error)).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) > 1 and any(line.startswith("Traceback (most recent call last)") for line in lines):
        return _OURS.sub("", lines[-1], count=1)
    return _OURS.sub("", f"{type(error).__name__}: {' '.join(lines)}", count=1)


def _death(told: str) -> str:
    """What Ray says about the end of an actor, without its listing of the actor and its advice, which fill a screen."""
    text = " ".join(line for line in told.splitlines()[1:] if not line.startswith("\t"))
    text = (text.partition("Worker exit detail: ")[2] or text).partition(" Some common causes include")[0]
    if "exits with a connection error" in text:  # all that Ray sees of it
        return "it was killed, ran out of memory or crashed"
    return without_credentials(text)


def signature(failures: Mapping[int, Exception]) -> str:
    """What the workers raised, equal when it is the same error at the same step again.

    Addresses and numbers in a message do not count. Empty when they raised nothing themselves: a worker that was
    killed, or that only lost its partner, says nothing about the next time.
    """
    raised = []
    for error in failures.values():
        step, colon, text = last_line(error).partition(": ")
        if colon and step.startswith("after step ") and not is_lost_partner(text):
            raised.append(f"{step}: {_NUMBER.sub('#', text)}")
    return "; ".join(sorted(set(raised)))


def is_lost_partner(line: str) -> bool:
    """Whether an exception, in one line, only says that another rank went away."""
    return any(word in line for word in ("Connection closed by peer", "Connection reset by peer", "gloo", "NCCL"))
