"""No name leads out of its folder: every flag that takes one, through the command line of its job."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from hero_platform import home
from hero_platform.home import check_name, is_name
from jobs import tune

BAD = [
    *("../../x", "..", "/tmp/hero-by-name", "a/b", "a/", "./a", ".hidden", "~", "~root"),
    *("..\\x", "a\\b", "C:\\x", "C:x", "\\\\host\\x"),
    *("a\x00b", "a\nb", "a\x1b[2J", "a b", " a", "-rf", "*", "$HOME", "a;b", "a'b", 'a"b', "caf\u00e9", "x" * 201),
]
TRAIN = ["pretrain_synthetic", "--store", "synthetic=STORE", "--model", "debug", "--batch", "8"]
EVALUATE = ["--corpus", "synthetic", "--split", "val", "--store", "STORE"]
TUNE = [*TRAIN, "--space", "lr_and_warmup", "--trials", "1", "--dry-run"]
COMMANDS = [  # what takes a name, with NAME in its place
    ("train", [*TRAIN, "--name=NAME"]),
    ("train", [*TRAIN, "--tracking.experiment=NAME"]),
    ("train", [*TRAIN, "--tracking.sweep=NAME"]),
    ("train", [*TRAIN, "--mixture.0.corpus=NAME"]),
    ("train", [*TRAIN, "--mixture.0.split=NAME"]),
    ("tune", [*TUNE, "--name=NAME"]),
    ("tune", [*TUNE, "--warm-start=NAME"]),
    ("tune", [*TRAIN, "--space=init_from:NAME"]),
    ("evaluate", ["--run=NAME", *EVALUATE]),
    ("evaluate", ["--run", "base", *EVALUATE, "--name=NAME"]),
    ("evaluate", ["--run", "base", *EVALUATE, "--corpus=NAME"]),
    ("evaluate", ["--run", "base", *EVALUATE, "--split=NAME"]),
    ("build_store", ["synthetic", "--videos", "10", "--name=NAME"]),
    ("build_store", ["synthetic", "--videos", "10", "--corpus=NAME"]),
    ("build_store", ["synthetic", "--videos", "10", "--feature-set=NAME"]),
    ("build_store", ["annotations", "--corpus=NAME", "--split", "val", "file.jsonl"]),
    ("build_store", ["annotations", "--corpus", "tvr", "--store", "STORE", "--split=NAME", "file.jsonl"]),
    ("checkpoints", ["--run=NAME"]),
    ("replay", ["--run=NAME", "--step", "1"]),
    ("sync", ["--run=NAME"]),
    ("compare", ["base", "--", "NAME"]),
    ("reproduce", ["--", "NAME"]),
    ("reproduce", ["base", "--name=NAME"]),
    ("clean", ["--run=NAME", "--yes"]),
    ("clean", ["--sweep=NAME", "--yes"]),
    ("clean", ["--store=NAME", "--yes"]),
    ("demo", ["--name=NAME"]),
    ("submit", ["train", "pretrain_synthetic", "--name=NAME"]),
    ("submit", ["tune", "pretrain_synthetic", "--space", "lr_and_warmup", "--trials", "1", "--name=NAME"]),
    ("submit", ["evaluate", "--run=NAME", *EVALUATE]),
    ("submit", ["evaluate", "--run", "base", *EVALUATE, "--corpus=NAME"]),
    ("submit", ["build_store", "synthetic", "--videos", "10", "--corpus=NAME"]),
    ("submit", ["logs", "NAME"]),
    ("submit", ["stop", "NAME"]),
    ("submit", ["--attach=NAME"]),
]


def _contents(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*")}


@pytest.mark.parametrize(
    ("job", "words"), COMMANDS, ids=[f"{job} {next(w for w in words if 'NAME' in w)}" for job, words in COMMANDS]
)
def test_a_bad_name_is_refused_before_anything_is_written(
    job: str, words: list[str], runs: Path, tiny_store: str, tmp_path: Path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    before, outside = _contents(tmp_path), set(Path("/tmp").glob("hero-by-name*"))
    main = importlib.import_module(f"jobs.{job}").main
    for name in BAD:
        given = [word.replace("NAME", name).replace("STORE", tiny_store) for word in words]
        assert main(given) == 2, given
        said = capsys.readouterr()
        (line,) = [line for line in said.err.splitlines() if line.startswith("python -m")]
        assert ("may only hold letters" in line or "there is no " in line) and len(line) < 500, line
        assert "\x1b" not in line and "\x00" not in line
    assert _contents(tmp_path) == before and set(Path("/tmp").glob("hero-by-name*")) == outside


def test_a_sweep_leaves_room_for_the_numbers_of_its_trials(tiny_store: str, hero_home: Path, capsys):
    given = [word.replace("STORE", tiny_store) for word in TUNE]
    assert tune.main([*given, "--name", "x" * 197]) == 2
    assert "trial name 'xxx" in capsys.readouterr().err
    assert tune.main([*given, "--name", "x" * 195]) == 0


@pytest.mark.parametrize("name", BAD)
def test_such_a_name_is_none(name: str):
    assert not is_name(name)
    with pytest.raises(ValueError, match=r"run name .* may only hold letters") as refused:
        home.run_dir(name)
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("name", ["a", "tv-4", "hero_1.5", "lr=3e-5", "0", "x" * 200, "a..b"])
def test_such_a_name_is_one(name: str):
    check_name("run", name)
