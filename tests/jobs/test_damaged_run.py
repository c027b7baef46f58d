"""Runs whose small files were damaged, copied or half written: they go on, or say in one line why not."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import pytest

from hero_platform.train import snapshot
from hero_platform.train.records import starts_of, status_of
from jobs import sync, train

pytestmark = pytest.mark.slow


@pytest.fixture
def damaged(short_run, hero_home: Path):
    """Words that continue a run of eight steps to twelve, and its folder."""
    often = ["--checkpoint.every", "2", "--checkpoint.keep-last", "9"]
    assert train.main(short_run("hurt", "--steps", "8", *often)) == 0
    return short_run("hurt", "--steps", "12", *often), hero_home / "runs" / "hurt"


def test_a_note_of_a_start_that_was_cut_off_does_not_stop_the_run(damaged, caplog):
    words, folder = damaged
    for left in (folder / "starts" / ".0001.json.999999999-ab.partial", folder / ".status.json.999999999-ab.partial"):
        left.write_text('{"step"')
        os.utime(left, (1e9, 1e9))  # a fresh one may have a writer on another machine
    (folder / "starts" / "0000.json").write_text("{}")
    assert train.main(words) == 0 and train.main([*words, "--steps", "13"]) == 0
    assert sorted(path.name for path in (folder / "starts").iterdir()) == ["0000.json", "0001.json", "0002.json"]
    assert [start.step for start in starts_of(str(folder))] == [8, 12] and not list(folder.glob("**/.*partial"))
    assert "1 notes in" in caplog.text


def test_a_start_that_was_killed_is_not_finished(damaged, tracking_database, monkeypatch):
    from hero_platform.train import worker

    words, folder = damaged
    assert status_of(str(folder)) == "FINISHED"

    def die(*given):
        raise SystemExit(9)  # as sudden as a test allows: nothing after it is recorded

    with monkeypatch.context() as dying:
        dying.setattr(worker, "run_steps", die)
        dying.setattr("hero_platform.train.launch.close", lambda tracker, status: tracker.abandon())
        with pytest.raises(SystemExit):
            train.main(words)
    assert status_of(str(folder)) == "KILLED"
    assert sync.main(["--run", "hurt", "--json", str(folder / "facts")]) == 0
    assert json.loads((folder / "facts").read_text())["status"] == "KILLED"


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"status": 1}'])
def test_a_damaged_status_says_nothing(damaged, text: str):
    words, folder = damaged
    (folder / "status.json").write_text(text)
    assert status_of(str(folder)) == "KILLED"
    assert train.main(words) == 0 and status_of(str(folder)) == "FINISHED"


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_run_without_its_config_is_still_that_run(damaged, how: str, capsys):
    words, folder = damaged
    before = (folder / "config.json").read_bytes()
    (folder / "config.json").unlink() if how == "missing" else (folder / "config.json").write_text('{"mix')
    assert train.main([*words, "--seed", "5"]) == 2
    assert "already exists with other settings: seed" in capsys.readouterr().err
    assert train.main(words) == 0
    assert json.loads((folder / "config.json").read_text()).keys() == json.loads(before).keys()


def test_a_copied_checkpoint_is_no_checkpoint_of_another_step(damaged, caplog, tmp_path):
    words, folder = damaged
    root = folder / "checkpoints"
    shutil.copytree(root / "step_00000002", root / "step_00000012")
    file = tmp_path / "facts.json"
    assert train.main([*words, "--json", str(file)]) == 0
    assert "step_00000012 is a copy of the checkpoint of step 2" in caplog.text
    assert json.loads(file.read_text())["resumed_from"] == 8
    assert snapshot.latest(str(root)).step == 12 and not any(listed.problem for listed in snapshot.survey(str(root)))


def test_steps_that_the_record_has_lost_are_named(damaged, caplog):
    words, folder = damaged
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (folder / "metrics.jsonl").write_text("".join(lines[:3]))
    with caplog.at_level(logging.ERROR):
        assert train.main(words) == 0
    assert "the record of run hurt lacks 6 steps from 3 to 8, which are behind its checkpoint of step 8" in caplog.text


def test_a_damaged_best_json_is_written_anew(damaged):
    words, folder = damaged
    best = folder / "checkpoints" / "best.json"
    best.write_text('{"ste')
    scored = [*words, "--evaluation.every", "2", "--evaluation.limit", "2", "--checkpoint.keep-last", "1"]
    assert train.main(scored) == 0
    assert json.loads(best.read_text())["step"] in (10, 12)
    assert len(snapshot.checkpoints(str(folder / "checkpoints"))) <= 2
