"""Runs side by side: where losses part, what the runs were made of, what came out."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hero_platform import files
from jobs import compare, train

SECTIONS = ["config", "seed", "code", "data", "packages", "hardware", "execution", "split", "place", "begun"]


@pytest.fixture
def compared(tmp_path: Path, capsys) -> Callable[..., tuple[str, dict[str, Any]]]:
    """Compares runs: what was printed, and the facts in full."""

    def run(*names: str) -> tuple[str, dict[str, Any]]:
        file = tmp_path / "compared.json"
        capsys.readouterr()
        assert compare.main([*names, "--json", str(file)]) == 0
        return capsys.readouterr().out, json.loads(file.read_text())

    return run


def recorded(folder: Path) -> dict[str, dict[int, float]]:
    """Metric -> step -> value."""
    found: dict[str, dict[int, float]] = {}
    for line in (folder / "metrics.jsonl").read_text().splitlines():
        record = json.loads(line)
        for name, value in record["metrics"].items():
            found.setdefault(name, {})[record["step"]] = value
    return found


def best_step(folder: Path) -> int:
    return int(json.loads((folder / "checkpoints" / "best.json").read_text())["step"])


def mixture_of(folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text())
    return ", ".join(f"{entry['task']['kind']}/{entry['corpus']}" for entry in config["mixture"])


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a JSON file."""
    facts = json.loads(path.read_text())
    change(facts)
    path.write_text(json.dumps(facts))


def test_twins_are_equal_in_everything(runs: Path, compared):
    shutil.copytree(runs / "base", runs / "twin")
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*")}
    said, facts = compared("base", "twin")
    assert said.splitlines() == [
        "twin: losses equal to those of base, bit for bit, in 6 steps; the same examples",
        f"equal: {', '.join(SECTIONS)}",
        "equal: all results",
    ]
    assert facts["equal"] == SECTIONS and facts["rows"] == {} and facts["losses"]["twin"]["equal"]
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*")} == before


def test_it_says_where_losses_part_what_differs_and_what_came_out(runs: Path, compared):
    shutil.copytree(runs / "base", runs / "twin")
    said, facts = compared("base", "slower", "twin")
    old, new = recorded(runs / "base"), recorded(runs / "slower")
    step, name, *values = facts["losses"]["slower"]["loss"]
    assert step == min(
        s for n in old if n.startswith("train/loss/") for s in old[n] if new.get(n, {}).get(s) != old[n][s]
    )
    assert values == [own.get(name, {}).get(step) for own in (old, new)] and values[0] != values[1]
    assert facts["losses"]["slower"]["stream"] == 1 and "other examples or masks, first at step 1" in said
    assert facts["losses"]["twin"]["equal"]
    assert facts["names"] == ["base", "slower", "twin"]
    assert facts["rows"] == {"config": {"optim.lr": ["0.002", "0.001", "0.002"]}, "seed": {"seed": ["77", "5", "77"]}}
    first, second = old["val/loss"][6], new["val/loss"][6]
    assert facts["results"]["val/loss (last)"] == [[6, first], [6, second], [6, first]]
    assert f"{second:.5g} {second - first:+.4g} (6)" in said
    assert f"slower at step {best_step(runs / 'slower')} by lowest val/loss" in said
    assert not [row for row in facts["results"] if row.startswith("val/examples")], "those are the same"


def test_a_best_before_the_end_has_its_own_row(runs: Path, compared):
    for name, step in (("base", 6), ("slower", 3)):
        rewrite(runs / name / "checkpoints" / "best.json", lambda best, step=step: best.update(step=step))
    said, facts = compared("base", "slower")
    old, new = (recorded(runs / name)["val/loss"] for name in ("base", "slower"))
    assert facts["results"]["val/loss (best)"] == [[6, old[6]], [3, new[3]]]
    assert said.index("val/loss (best)") < said.index("val/loss (last)") < said.index("val/accuracy")


def test_other_tasks_are_one_row_and_initial_weights_are_data(runs: Path, compared):
    _, facts = compared("base", "tuned")
    mixtures = {name: values for name, values in facts["rows"]["config"].items() if name.startswith("mixture")}
    assert mixtures == {"mixture.tasks": [mixture_of(runs / "base"), "moment_retrieval/synthetic"]}
    assert set(facts["rows"]["data"]) == {"synthetic annotations", "initial weights"}
    best = f"step_{best_step(runs / 'base'):08d}"
    weights = files.sha256_file(runs / "base" / "checkpoints" / best / "model.safetensors")
    assert facts["rows"]["data"]["initial weights"] == [None, weights]
    assert facts["rows"]["execution"]["init_from"] == ["", "base"]


def test_code_packages_and_machine(runs: Path, compared):
    log = ["git", "-C", str(Path(__file__).parent), "log", "-1", "--no-merges", "--format=%H %P", "--", "."]
    commits = subprocess.run(log, capture_output=True, text=True).stdout.split()
    if len(commits) < 2:
        pytest.skip("this checkout has no history")

    def older(facts: dict[str, Any]) -> None:
        facts["git"] = {"commit": commits[1], "branch": "x", "diff": "a\nb\n", "untracked": "notes.py\n"}
        facts["packages"] = ["numpy==2.0", "torch==2.13.0"]
        facts["hardware"] |= {"gpus": [{"name": "H100", "memory_gb": 80.0}]}

    def newer(facts: dict[str, Any]) -> None:
        lines = "".join(f"line {number}\n" for number in range(100))
        facts["git"] = {"commit": commits[0], "branch": "y", "diff": f"a\nc\n{lines}", "untracked": ""}
        facts["packages"] = ["numpy==2.1", "tqdm==4.0", "torch==2.13.0"]

    for name, change in (("base", older), ("twin", newer)):
        if name == "twin":
            shutil.copytree(runs / "base", runs / "twin")
            rewrite(runs / name / "provenance.json", lambda facts: facts["hardware"].update(gpus=[]))
        rewrite(runs / name / "provenance.json", change)
    said, facts = compared("base", "twin")
    assert facts["rows"]["packages"] == {"numpy": ["2.0", "2.1"], "tqdm": [None, "4.0"]}
    assert facts["rows"]["hardware"]["gpus.0.name"] == ["H100", None]
    assert facts["rows"]["code"]["commit"] == [commits[1], commits[0]] and commits[0] not in said
    assert facts["rows"]["code"]["new file notes.py"] == ["there", None]
    changes = facts["changes"]["twin"]
    assert "tests/jobs/" in changes["committed"] and changes["committed"].splitlines()[-1] in said
    assert {"-b", "+c", "+line 99"} <= set(changes["uncommitted"].splitlines())
    assert "+c\n" in said and "+line 99" not in said and "more lines: --json FILE has them" in said


def test_what_was_not_recorded_is_not_called_equal(runs: Path, compared):
    (runs / "slower" / "provenance.json").unlink()
    said, facts = compared("base", "slower")
    assert facts["unknown"] == ["code", "packages", "hardware", "place"]
    assert "not recorded: code, packages, hardware, place" in said


def test_starts_on_another_split_and_other_code_are_told(runs: Path, short_run, monkeypatch, compared):
    monkeypatch.setattr("hero_platform.tracking.system.packages", lambda: ["torch==1.0"])
    more = ["--steps", "8", "--checkpoint.every", "3", "--scale.micro-batch", "2"]
    assert train.main(short_run("base", *more)) == 0
    said, facts = compared("slower", "base")
    assert facts["rows"]["split"]["workers"] == [
        "1 x 1 threads on cpu",
        "from step 0: 1 x 1 threads on cpu; from step 6: 1 x 1 threads on cpu in micro-batches of 2",
    ]
    assert facts["rows"]["code"]["over its starts"][1].startswith("2 versions of code or packages")
    assert "of 6 steps that both have (base has 2 more)" in said
    assert facts["rows"]["execution"]["scale.micro_batch"] == ["0", "2"]


def test_runs_may_lie_in_a_remote_store(runs: Path, monkeypatch, compared):
    files.copy_tree(str(runs.parent), "memory://compared")
    shutil.rmtree(runs)
    monkeypatch.setenv("HERO_HOME", "memory://compared")
    _, facts = compared("base", "slower")
    assert facts["losses"]["slower"]["steps"] == 6 and "code" in facts["equal"]


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["base"], "name two runs or more, each once, not base"),
        (["base", "base"], "each once, not base base"),
        (["base", "nobody"], "there is no run 'nobody' under"),
        (["base", "../x"], "run name '../x' may only hold"),
        (["base", "tuned"], "has no start on record"),
    ],
)
def test_mistakes_are_one_line(runs: Path, names: list[str], message: str, capsys):
    shutil.rmtree(runs / "tuned" / "starts")
    assert compare.main(names) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
