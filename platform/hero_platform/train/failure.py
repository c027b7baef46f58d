"""How a run that failed says so: one line with the cause for people, the traceback in a file."""

from __future__ import annotations


class TrainingFailed(RuntimeError):
    """A run failed; the message is one line, the cause is chained."""


class NonFiniteError(RuntimeError):
    """A loss or a gradient is not finite; the message names the step, its task and videos, and how to repeat it."""


def last_line(error: BaseException) -> str:
    """Type and message of an exception in one line; of one whose message is a remote traceback, the traceback's end."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    if len(lines) > 1 and any(line.startswith("Traceback (most recent call last)") for line in lines):
        return lines[-1]
    return f"{type(error).__name__}: {' '.join(lines)}"
