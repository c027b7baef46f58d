"""The list of a run's checkpoints: what is there, what is damaged, what a start would take."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hero_platform import files
from hero_platform.train import snapshot
from jobs import checkpoints, train


@pytest.fixture
def folder(short_run: Callable[..., list[str]], hero_home: Path) -> Path:
    """Checkpoints of steps 2, 4 and 6 of a run; validation scored the first two."""
    kept = ["--steps", "6", "--checkpoint.every", "2", "--checkpoint.keep-last", "9"]
    assert train.main(short_run("listed", *kept, "--evaluation.every", "4", "--evaluation.limit", "8")) == 0
    return hero_home / "runs" / "listed" / "checkpoints"


def test_every_checkpoint_is_listed_with_its_state(folder: Path, tmp_path: Path, capsys):
    file = tmp_path / "list.json"
    assert checkpoints.main(["--run", "listed", "--json", str(file)]) == 0
    listed = {one["step"]: one for one in json.loads(file.read_text())["checkpoints"]}
    assert list(listed) == [2, 4, 6] and all(one["problem"] == "" for one in listed.values())
    for step, path in snapshot.checkpoints(str(folder)).items():
        assert listed[step]["bytes"] == sum(file.stat().st_size for file in Path(path).iterdir())
        assert listed[step]["digest"] == files.read_json(Path(path) / "checksums.json")["digest"]
    best = files.read_json(folder / "best.json")["step"]
    assert [step for step, one in listed.items() if one["best"]] == [best] and listed[6]["last"]
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 4 and listed[6]["digest"][:12] in said[3] and "last" in said[3]

    weights = folder / "step_00000006" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-5] ^= 1
    weights.write_bytes(data)
    (folder / "step_00000002" / "checksums.json").unlink()
    assert checkpoints.main(["--run", "listed", "--json", str(file)]) == 1
    two, four, six = json.loads(file.read_text())["checkpoints"]
    assert "checksums.json is missing" in two["problem"] and four["problem"] == "" and four["last"] and not six["last"]
    assert f"damaged: {weights} is damaged: its SHA-256" in capsys.readouterr().out.replace(
        "damaged, best:", "damaged:"
    )
    assert snapshot.latest(str(folder)).step == 4, "and that is what a start takes"


def test_a_run_without_any_is_one_line(hero_home: Path, capsys):
    assert checkpoints.main(["--run", "nothing"]) == 2
    assert "there is no checkpoint under" in capsys.readouterr().err
