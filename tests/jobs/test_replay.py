"""One step again, alone: from a checkpoint or the beginning, by one process or several, it is what was recorded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hero_platform.feed.loader import Feed, open_stores
from hero_platform.tracking.journal import Journal, read
from hero_platform.train.records import starts_of
from jobs import replay, train


@pytest.fixture
def words(short_run: Callable[..., list[str]]) -> list[str]:
    """Arguments of a run of nine steps with checkpoints after 4, 8 and 9."""
    return short_run("again", "--steps", "9", "--checkpoint.every", "4", "--checkpoint.keep-last", "9")


@pytest.fixture
def folder(words: list[str], hero_home: Path) -> Path:
    """Of that run, trained in this process."""
    assert train.main(words) == 0
    return hero_home / "runs" / "again"


def rewrite(folder: Path, step: int, name: str, value: float) -> None:
    """Make the record say something else, as a run on a broken machine would have."""
    records = list(read(str(folder / "metrics.jsonl")))
    (folder / "metrics.jsonl").unlink()
    journal = Journal(str(folder))
    for record in records:
        journal.record(record.step, record.metrics | ({name: value} if record.step == step else {}))
    journal.close()


@pytest.mark.parametrize(
    ("step", "base", "between"), [(3, "the beginning", 2), (5, "step_00000004", 0), (8, "step_00000004", 3)]
)
def test_a_step_comes_out_bit_for_bit(folder: Path, tmp_path: Path, capsys, step: int, base: str, between: int):
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    file = tmp_path / "facts.json"
    assert replay.main(["--run", "again", "--step", str(step), "--json", str(file)]) == 0
    said, facts = capsys.readouterr().out, json.loads(file.read_text())
    recorded = {
        name: value
        for record in read(str(folder / "metrics.jsonl"))
        for name, value in record.metrics.items()
        if record.step == step and name.startswith(("train/", "stream/"))
    }
    assert facts["values"] == facts["recorded"] == recorded and len(recorded) >= 4
    assert facts["differing"] == [] and "equal, bit for bit" in said
    begins = next(line for line in said.splitlines() if line.startswith("begins"))
    assert base in begins and (f"{between} steps before it" in begins) == bool(between)

    config = starts_of(str(folder))[0].config
    batch = Feed(config, open_stores(config), 0, 1)[step - 1]
    assert set(facts["videos"]) == set(batch.ids) and len(facts["videos"]) == 8
    assert facts["task"] == config.mixture[batch.entry].key
    assert all(video in said for video in facts["videos"]) and f"task      {facts['task']}" in said
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before


def test_a_value_that_was_recorded_differently_is_named(folder: Path, capsys):
    rewrite(folder, 6, "train/grad_norm", 1.5)
    assert replay.main(["--run", "again", "--step", "6"]) == 1
    said = capsys.readouterr().out
    assert "differs (bit for bit): train/grad_norm" in said.splitlines()[-1]
    rewrite(folder, 6, "train/other", 1.0)
    assert replay.main(["--run", "again", "--step", "6"]) == 1
    assert said.splitlines()[-1] + ", train/other" == capsys.readouterr().out.splitlines()[-1]


def test_on_another_device_a_tolerance_is_named(folder: Path, capsys):
    start = folder / "starts" / "0000.json"
    start.write_text(json.dumps(json.loads(start.read_text()) | {"device": "cuda:0", "world": 2}))
    assert replay.main(["--run", "again", "--step", "1", "--dry-run"]) == 0
    assert "2 workers, 1 threads each, cpu" in capsys.readouterr().out
    start.write_text(json.dumps(json.loads(start.read_text()) | {"device": "cuda:0", "world": 1}))
    value = next(r.metrics["train/grad_norm"] for r in read(str(folder / "metrics.jsonl")) if r.step == 5)
    rewrite(folder, 5, "train/grad_norm", value * (1 + 1e-6))
    assert replay.main(["--run", "again", "--step", "5"]) == 0
    assert "equal, to 0.001 (it ran on cuda:0, this is cpu)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("own", "message"),
    [
        (["--run", "other", "--step", "1"], "there is no run 'other'"),
        (["--run", "again", "--step", "0"], "steps count from 1"),
    ],
)
def test_mistakes_are_one_line(folder: Path, own: list[str], message: str, capsys):
    assert replay.main(own) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_a_step_that_was_never_recorded_is_not_equal(folder: Path, capsys):
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    cut = next(number for number, line in enumerate(lines) if json.loads(line)["step"] == 9)
    (folder / "metrics.jsonl").write_text("".join(lines[:cut]))
    assert replay.main(["--run", "again", "--step", "9"]) == 1
    assert "the journal does not hold this step" in capsys.readouterr().out
    assert replay.main(["--run", "again", "--step", "10"]) == 2
    assert "ends at step 9: there is no step 10" in capsys.readouterr().err


@pytest.mark.ray
@pytest.mark.chaos
def test_the_ranks_of_ray_workers_are_repeated(ray_session, words: list[str], hero_home: Path, capsys):
    """Dropout depends on the rank, so that one process could not repeat it."""
    assert train.main([*words, "--scale.num-workers", "2"]) == 0
    capsys.readouterr()
    assert replay.main(["--run", "again", "--step", "6"]) == 0
    said = capsys.readouterr().out
    assert "2 workers, 1 threads each, cpu" in said and "equal, bit for bit" in said
