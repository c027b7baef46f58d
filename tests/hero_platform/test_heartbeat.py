"""A process that hangs ends and says where, also when what hangs holds the interpreter."""

import faulthandler
import subprocess
import sys
import time
from pathlib import Path

import pytest

from hero_platform.heartbeat import beat, watched

SCRIPT = """
import ctypes, sys, time
from hero_platform.heartbeat import beat, watched

def waits_for_ever():
    time.sleep(600)

def holds_the_interpreter():
    ctypes.PyDLL(None).sleep(600)

with watched(0.5, sys.argv[1], who="run tiny, rank 3,"):
    for step in range(4):  # longer than the timeout, but never silent for it
        time.sleep(0.25)
        beat(f"step {step}")
    print("reached", flush=True)
    globals()[sys.argv[2]]()
"""


def hang(tmp_path: Path, how: str) -> tuple[subprocess.CompletedProcess[str], str]:
    stack = tmp_path / "stack.txt"
    ended = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(stack), how], capture_output=True, text=True, timeout=120, check=False
    )
    return ended, stack.read_text()


@pytest.mark.parametrize("how", ["waits_for_ever", "holds_the_interpreter"])
def test_silence_ends_the_process_with_its_stack(tmp_path, how):
    ended, stack = hang(tmp_path, how)
    assert ended.returncode == 1 and ended.stdout == "reached\n"
    assert f"in {how}" in stack
    if how == "waits_for_ever":
        (line,) = ended.stderr.splitlines()
        assert line.startswith("run tiny, rank 3, hangs: nothing since step 3, for more than 0.5 s")
        assert str(tmp_path / "stack.txt") in line


def test_work_that_goes_on_leaves_nothing_behind(tmp_path):
    stack = tmp_path / "stack.txt"
    with watched(0.5, str(stack), who="this test"):
        for _ in range(8):
            time.sleep(0.1)
            beat("a step")
    assert not stack.exists()
    time.sleep(0.8)  # neither watch is left to end this process


def test_what_was_raised_is_raised_and_the_watch_ends(tmp_path):
    with pytest.raises(KeyError), watched(60.0, str(tmp_path / "stack.txt"), who="this test"):
        raise KeyError("cause")
    assert not list(tmp_path.iterdir())
    beat("nobody watches")


def test_zero_watches_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(faulthandler, "dump_traceback_later", lambda *_, **__: pytest.fail("it is watched"))
    with watched(0.0, str(tmp_path / "stack.txt"), who="this test"):
        beat("a step")
    assert not list(tmp_path.iterdir())
