"""Notices that this process hangs: long work says where it is, and silence ends the process with every thread's stack.

Two watches, since either alone can be blind. A thread says in one sentence what hung; it cannot run while other code
holds the interpreter, so a timer of the C library (`faulthandler`) stands behind it and needs no interpreter.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import sys
import threading
import time
from collections.abc import Iterator
from typing import TextIO

logger = logging.getLogger(__name__)

LOOKS = 8  # within one timeout
_now: _Watch | None = None  # a process is watched as a whole, as `faulthandler` is


def beat(where: str) -> None:
    """Say that work goes on and what comes next: `step 12`. Costs two assignments; nothing where nobody watches."""
    if _now is not None:
        _now.seen(where)


@contextlib.contextmanager
def watched(timeout_s: float, stack_file: str, *, who: str) -> Iterator[None]:
    """End this process with code 1 when no `beat` came for `timeout_s`; 0 or less: never.

    Args:
        timeout_s: longer than the longest stretch between two beats.
        stack_file: a local path; the stacks of all threads are written there.
        who: the subject of the sentence that is logged.
    """
    global _now
    if timeout_s <= 0 or _now is not None:
        yield
        return
    with contextlib.ExitStack() as after:
        stacks = after.enter_context(open(stack_file, "w", encoding="utf-8"))
        after.callback(os.remove, stack_file)
        watch = _now = _Watch(timeout_s, stacks, who=who)
        watch.start()
        after.callback(watch.close)
        try:
            yield
        finally:
            _now = None


class _Watch:
    """A thread that looks at the time of the last beat, and winds up the timer behind it."""

    def __init__(self, timeout_s: float, stacks: TextIO, *, who: str) -> None:
        self._timeout_s = timeout_s
        self._stacks = stacks
        self._who = who
        self._last = (time.monotonic(), "its start")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, name="heartbeat", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def seen(self, where: str) -> None:
        self._last = (time.monotonic(), where)

    def close(self) -> None:
        self._over.set()
        self._thread.join()
        faulthandler.cancel_dump_traceback_later()

    def _look(self) -> None:
        pause = self._timeout_s / LOOKS
        while True:
            faulthandler.dump_traceback_later(self._timeout_s + pause, exit=True, file=self._stacks)
            if self._over.wait(pause):
                return
            at, where = self._last
            if time.monotonic() - at > self._timeout_s:
                self._end(where)

    def _end(self, where: str) -> None:
        faulthandler.dump_traceback(file=self._stacks, all_threads=True)
        self._stacks.flush()
        logger.error(
            "%s hangs: nothing since %s, for more than %g s (scale.hang_timeout_s); it ends here, its stacks are in %s",
            self._who,
            where,
            self._timeout_s,
            self._stacks.name,
        )
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(1)  # whatever hangs would hang an orderly end too
