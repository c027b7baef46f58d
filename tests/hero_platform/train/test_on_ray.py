"""What a worker tells the driver; workers themselves are tested in tests/integration."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hero_platform import files
from hero_platform.train.on_ray import PROGRESS_FILE, shown_progress


def test_the_last_progress_is_there_at_the_end(tmp_path: Path):
    with shown_progress(str(tmp_path)) as show:
        for step in range(1, 4):
            show(step, {"train/lr": float(step)})
    assert files.read_json(tmp_path / PROGRESS_FILE) == {"step": 3, "metrics": {"train/lr": 3.0}}


def test_a_step_never_waits_for_its_progress_to_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    wrote = []

    def write_json(path: str, value: dict) -> None:
        wrote.append((threading.current_thread(), value["step"]))
        raise ConnectionError("out of reach")

    monkeypatch.setattr(files, "write_json", write_json)
    with shown_progress(str(tmp_path)) as show:
        show(1, {})
    assert [step for _, step in wrote] == [1], "and what cannot be written ends nothing"
    assert wrote[0][0] is not threading.current_thread()
