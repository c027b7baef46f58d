"""What runs on the cluster in the place of a job: the job itself as a child, started again when it is lost.

python -m hero_platform.cluster.driver NAME RETRIES -- MODULE WORDS...

Ray keeps a job's log with its cluster. Here it is kept under HERO_HOME as well, with what was asked for and what came
of it, so that it outlives the cluster.
"""

from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from types import FrameType

from hero_platform import files, home
from hero_platform.scratch import scratch

KEEP_EVERY_S = 15.0
SHOW_EVERY_S = 0.2
LOG_FILE, RESULT_FILE, FACTS_FILE = "driver.log", "result.json", "job.json"
PR_SET_PDEATHSIG = 1  # of prctl(2)

logger = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the job until it ends by itself; returns its exit code, 130 when it was asked to stop."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    name, retries, dashes, module, *words = sys.argv[1:] if argv is None else argv
    assert dashes == "--"
    folder = home.job_dir(name)
    result, kept = files.join(folder, RESULT_FILE), files.join(folder, FACTS_FILE)
    facts = {"name": name, "job": [module, *words], "started": time.time(), "retries": int(retries)}
    try:
        files.makedirs(folder)
        files.remove(result)  # of an earlier start
        files.write_json(kept, facts)
    except (OSError, ValueError) as error:
        logger.error("nothing can be kept in %s, so the job is not started: %s", folder, error)
        return 1
    asked = [sys.executable, "-m", module, *words, "--json", result]
    with scratch("hero-job-") as place, _kept(f"{place}/{LOG_FILE}", _log_of(folder)) as log:
        code, starts = _run(asked, int(retries), log)
        facts |= {"ended": time.time(), "exit_code": code, "starts": starts}
        try:
            files.write_json(kept, facts)
        except OSError as error:  # the job has ended as it has, whatever became of the storage
            logger.error("how the job ended cannot be kept in %s: %s", kept, error)
    return code


def is_lost(code: int) -> bool:
    """Whether an exit code says that a process was killed, and did not end by itself."""
    return code < 0 or (code > 128 and code not in (128 + signal.SIGINT, 128 + signal.SIGTERM))


def _run(asked: Sequence[str], retries: int, log: str) -> tuple[int, int]:
    """Start the job, and again when it is lost; its exit code, and how often it was started."""
    stopped = threading.Event()

    def stop(number: int, frame: FrameType | None) -> None:
        stopped.set()  # Ray sends the signal to each process of the job, so the child has it too

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    for start in range(1, retries + 2):
        code = _once(asked, log, stopped)
        if stopped.is_set() or not is_lost(code):
            return (130 if stopped.is_set() and code else code), start
        logger.warning("the job was lost (%s)", signal.Signals(-code).name if code < 0 else f"exit code {code}")
        if start <= retries:
            logger.warning("it is started again, start %d of at most %d", start + 1, retries + 1)
    return 128 - code if code < 0 else code, start


def _once(asked: Sequence[str], log: str, stopped: threading.Event) -> int:
    """Run the job once; what it says goes to the log, and from there to this process' output."""
    parent = os.getpid()

    def with_me() -> None:
        """Commit and end when this process is killed: nobody would know of the job any more."""
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it was killed before that
            os._exit(1)

    with open(log, "ab") as into, open(log, "rb") as shown:  # a file, since a pipe would break when this process dies
        shown.seek(0, os.SEEK_END)
        child = subprocess.Popen(asked, stdout=into, stderr=subprocess.STDOUT, preexec_fn=with_me)
        if stopped.is_set():  # the signal came before there was a child
            child.terminate()
        code = None
        while code is None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = child.wait(SHOW_EVERY_S)
            sys.stdout.buffer.write(shown.read())
            sys.stdout.buffer.flush()
    return code


def _log_of(folder: str) -> str:
    """The first `driver-N.log` that is not there yet."""
    there = files.listdir(folder)
    number = next(number for number in range(1, len(there) + 2) if f"driver-{number}.log" not in there)
    return files.join(folder, f"driver-{number}.log")


@contextlib.contextmanager
def _kept(path: str, target: str) -> Iterator[str]:
    """Copy a growing local file to where it is kept, now and then and at the end."""
    over, size = threading.Event(), -1

    def keep() -> None:
        nonlocal size
        now = os.path.getsize(path)
        if now == size:
            return
        try:
            files.copy_file(path, target)
            size = now
        except OSError as error:  # the storage is away: the next copy has it all
            logger.warning("the log cannot be kept at %s: %s", target, error)

    def now_and_then() -> None:
        while not over.wait(KEEP_EVERY_S):
            keep()

    open(path, "wb").close()
    keep()  # the name is taken
    thread = threading.Thread(target=now_and_then, name="keep-log", daemon=True)
    thread.start()
    try:
        yield path
    finally:
        over.set()
        thread.join()
        keep()


if __name__ == "__main__":
    raise SystemExit(main())
