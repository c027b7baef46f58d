"""Temporary folders: gone with the block, swept after a kill, left alone while somebody lives."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from hero_platform.scratch import scratch

HOLD = """
import sys
from hero_platform.scratch import scratch
with scratch("hero-test-", sys.argv[1]) as folder:
    print(folder, flush=True)
    sys.stdin.read()
"""


def test_folder_lives_as_long_as_the_block(tmp_path: Path):
    with pytest.raises(KeyError), scratch("hero-test-", str(tmp_path)) as folder:
        (Path(folder) / "file").touch()
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_the_dead_are_swept_and_the_living_are_not(tmp_path: Path):
    (tmp_path / "hero-other").mkdir()
    (tmp_path / "hero-test-abandoned").mkdir()  # a process that had no time to remove it
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    held = Path(holder.stdout.readline().strip())
    with scratch("hero-test-", str(tmp_path)) as own:
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "hero-other", held, Path(own)])
    holder.kill()
    holder.wait()
    assert held.exists()
    with scratch("hero-test-", str(tmp_path)) as own:
        assert sorted(tmp_path.iterdir()) == sorted([tmp_path / "hero-other", Path(own)])
