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
# of what Ray says when a worker is gone: about its actor, and from where on it is advice and tables of memory
_LISTED = re.compile(r"^\t(class_name|actor_id|pid|name|namespace|ip): (.*)\n?", re.MULTILINE)
_ADVICE = re.compile(r"\s*(?:Some common causes include|OOM kill reason|Top 10 memory users).*", re.DOTALL)


def last_line(error: BaseException) -> str:
    """Type and message of an exception in one line; of one whose message is a remote traceback, the traceback's end.

    Of an actor of Ray that died: its process and why, as far as Ray knows. No credential is in it.
    """
    error = getattr(error, "health_check_failure", error)  # Ray Train's wrapping of it is 700 characters about an actor
    said = _ADVICE.sub("", without_credentials(str(error)))
    if type(error).__name__ == "ActorDiedError" and "pid" in (listed := dict(_LISTED.findall(said))):
        return f"process {listed['pid']} on {listed.get('ip', '?')} is gone: {_death(said)}"
    lines = [line.strip() for line in said.strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) > 1 and any(line.startswith(("Traceback (most recent call last)", 'File "')) for line in lines):
        return _OURS.sub("", lines[-1], count=1)
    return _OURS.sub("", f"{type(error).__name__}: {' '.join(lines)}", count=1)


def _death(said: str) -> str:
    """Why an actor is gone, of all that Ray says then."""
    text = " ".join(_LISTED.sub("", said).split("\n")[1:])  # the first line only says that it is
    its_own, _, detail = text.partition("Worker exit detail: ")
    if "owner has died" in its_own or not detail:
        return " ".join(text.split())
    if "exits with a connection error" in detail:  # all that Ray sees of it
        return "it was killed, ran out of memory, crashed or ended itself"
    return " ".join(detail.split())


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
