"""What every job does alike."""

from __future__ import annotations

import subprocess
import sys
from typing import NoReturn

import pytest

from hero_platform.infer.on_ray import SearchFailed
from jobs.cli import run_search

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


def test_what_failed_on_workers_is_one_line_and_what_nobody_foresaw_is_not(capsys: pytest.CaptureFixture[str]):
    def fails(error: Exception) -> NoReturn:
        raise error

    assert run_search("it", lambda: fails(SearchFailed("a worker died"))) == 1
    assert capsys.readouterr().err == "it: a worker died\n"
    with pytest.raises(RuntimeError, match="a surprise"):
        run_search("it", lambda: fails(RuntimeError("a surprise")))


def test_a_search_counts_what_it_imports():
    """Nothing slow comes before its clock starts."""
    program = "import sys; from jobs.cli import run_search; run_search('it', lambda: 0); print('torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said == "False\n"
