"""What every job does alike."""

from __future__ import annotations

import subprocess
import sys

TALKS = """
from jobs.cli import run_job
raise SystemExit(run_job("it", lambda: [print("x" * 9999) for _ in range(99)] and 0))
"""


def test_a_reader_that_has_seen_enough_is_no_error():
    """`... | head`: nothing more is said, and the exit code is that of a command in a pipe."""
    process = subprocess.Popen([sys.executable, "-c", TALKS], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 141
