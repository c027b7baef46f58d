"""A run once more under a new name: what differs before it starts, and whether its losses are the same."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hero_platform.store.reader import FeatureStore
from hero_platform.store.split_tables import write_splits
from hero_platform.tracking.journal import Journal, read
from hero_platform.train.launch import launch
from hero_platform.train.records import starts_of
from jobs import reproduce, train


@pytest.fixture
def again(tmp_path: Path, capsys) -> Callable[..., tuple[int, str, dict[str, Any]]]:
    """Runs the job: exit code, what was printed, the facts."""

    def run(*words: str) -> tuple[int, str, dict[str, Any]]:
        file = tmp_path / "facts.json"
        file.unlink(missing_ok=True)
        capsys.readouterr()
        code = reproduce.main([*words, "--json", str(file)])
        said = capsys.readouterr()
        return code, said.err + said.out, json.loads(file.read_text()) if file.exists() else {}

    return run


@pytest.fixture
def older_package(runs: Path) -> Path:
    """Folder of `base`, as if it had been trained with an older NumPy."""
    path = runs / "base" / "provenance.json"
    facts = json.loads(path.read_text())
    facts["packages"] = ["numpy==1.0" if line.startswith("numpy==") else line for line in facts["packages"]]
    path.write_text(json.dumps(facts))
    return path.parent


def losses(folder: Path) -> dict[tuple[int, str], float]:
    """Of every step, and the fingerprint of its batch."""
    wanted = ("train/loss/", "stream/")
    return {
        (r.step, n): v
        for r in read(str(folder / "metrics.jsonl"))
        for n, v in r.metrics.items()
        if n.startswith(wanted)
    }


def test_losses_are_equal_and_the_same_command_goes_on(runs: Path, again):
    code, said, facts = again("base", "--strict")
    assert code == 0 and "base-again: losses equal to those of base, bit for bit, in 6 steps; the same examples" in said
    assert losses(runs / "base-again") == losses(runs / "base") and facts["losses"]["equal"]
    assert facts["rows"] == {} and {"config", "code", "data", "packages", "hardware"} <= set(facts["equal"])
    old, new = (starts_of(str(runs / name))[-1].config for name in ("base", "base-again"))
    assert replace(new, name="base") == old
    code, said, _ = again("base")
    assert code == 0 and "was finished already, at step 6" in said and "losses equal" in said
    assert len(starts_of(str(runs / "base-again"))) == 1


def test_other_packages_are_named_and_strict_refuses(older_package: Path, runs: Path, again):
    code, said, facts = again("base", "--dry-run")
    assert code == 0 and facts["rows"]["packages"]["numpy"][0] == "1.0" and "| numpy " in said
    code, said, _ = again("base", "--strict")
    assert code == 2 and not (runs / "base-again").exists()
    assert "what run 'base' was made of differs now: packages (numpy)\n" in said
    code, said, facts = again("base", "--name", "newer")
    assert code == 0 and "losses equal" in said and facts["losses"]["reasons"] == ["packages (numpy)"]


def test_losses_that_part_though_nothing_differs_fail(runs: Path, again, older_package: Path):
    records = list(read(str(runs / "base" / "metrics.jsonl")))
    (runs / "base" / "metrics.jsonl").unlink()
    journal = Journal(str(runs / "base"))
    for record in records:
        losses = [name for name in record.metrics if name.startswith("train/loss/")]
        journal.record(record.step, record.metrics | ({losses[0]: 1.5} if losses and record.step == 4 else {}))
    journal.close()
    code, said, facts = again("base")
    assert code == 0 and facts["losses"]["loss"][0] == 4, "the package explains it"
    assert said.splitlines()[-1] == "what differs: packages (numpy)"
    shutil.copy(runs / "slower" / "provenance.json", older_package / "provenance.json")
    code, said, facts = again("base")
    assert code == 1 and facts["losses"]["loss"][2] == 1.5 and not facts["losses"]["equal"]
    assert "losses part from base at step 4 of 6 steps" in said
    assert said.splitlines()[-1] == "nothing that is recorded differs"


def test_another_store_is_named_and_explains(short_run, hero_home: Path, tiny_store: str, tmp_path: Path, again):
    place = tmp_path / "copied"
    shutil.copytree(tiny_store, place)
    assert train.main(short_run("mine", "--steps", "3", "--store", f"synthetic={place}")) == 0
    (hero_home / "moved").mkdir()
    moved = shutil.move(place, hero_home / "moved" / "store")
    code, said, _ = again("mine")
    assert code == 2 and f"{place} is not a store" in said and said.count("\n") == 1
    elsewhere = ["mine", "--store", f"synthetic={moved}"]
    code, _, facts = again(*elsewhere, "--dry-run")
    assert code == 0 and "data" in facts["equal"] and "stores.synthetic" in facts["rows"]["execution"]

    store = FeatureStore.open(str(moved))
    ids = store.index.ids[store.rows_of("train")].tolist()
    write_splits(str(moved), {"train": ids[1:]}, store.index.row_of)
    code, said, _ = again(*elsewhere, "--strict")
    assert code == 2 and "differs now: data (synthetic)" in said
    code, said, facts = again(*elsewhere)
    assert code == 0 and facts["losses"]["stream"] == 1 and facts["losses"]["reasons"] == ["data (synthetic)"]
    assert said.splitlines()[-1] == "what differs: data (synthetic)"


def test_an_interrupted_trial_is_repeated_to_the_end(runs: Path, again):
    config = starts_of(str(runs / "base"))[0].config
    trial = replace(config, name="cut", tracking=replace(config.tracking, sweep="sweep"))
    assert launch(trial, judge=lambda step, found: True).step == 3
    code, said, facts = again("cut")
    assert code == 0 and facts["losses"]["steps"] == 3 and facts["losses"]["equal"]
    assert "in 3 steps that both have (cut-again has 3 more)" in said
    assert starts_of(str(runs / "cut-again"))[0].config.tracking.sweep == ""


def test_threads_are_those_of_the_run_and_another_device_explains(runs: Path, again):
    path = runs / "base" / "starts" / "0000.json"
    facts = json.loads(path.read_text())
    facts["config"]["scale"]["threads_per_worker"] = 0  # the node's cores, whatever they are here
    path.write_text(json.dumps(facts | {"threads_per_worker": 7}))
    assert again("base", "--dry-run")[2]["rows"]["execution"] == {"scale.threads_per_worker": ["0", "7"]}
    path.write_text(json.dumps(facts | {"device": "cuda:0"}))
    code, _, facts = again("base")
    (start,) = starts_of(str(runs / "base-again"))
    assert code == 0 and start.threads == 1 and facts["losses"]["reasons"] == ["split (workers)"]


def test_initial_weights_that_are_other_or_gone(runs: Path, again):
    assert again("tuned", "--dry-run")[2]["rows"] == {}
    shutil.rmtree(runs / "base")
    code, said, _ = again("tuned")
    assert code == 2 and "init_from 'base' is neither a run with a checkpoint" in said and said.count("\n") == 1
    shutil.copytree(runs / "slower", runs / "base")
    code, said, _ = again("tuned", "--strict")
    assert code == 2 and "differs now: data (initial weights)" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nobody"], "there is no run 'nobody' under"),
        (["base", "--name", "base"], "--name base is the run itself"),
        (["base", "--name", "a/b"], "run name 'a/b' may only hold"),
        (["base", "--name", "slower"], "run 'slower' already exists with other settings"),
        (["base", "--store", "tv=x"], "reads no corpus 'tv' but synthetic"),
        (["tuned"], "run 'tuned' has recorded no loss"),
    ],
)
def test_mistakes_are_one_line(runs: Path, words: list[str], message: str, capsys):
    (runs / "tuned" / "metrics.jsonl").unlink()
    assert reproduce.main(words) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1
