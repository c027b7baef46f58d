"""What is listed, what may go, and what a killed deletion leaves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

import pytest

from hero_platform import config_io, files, home
from hero_platform.train import lease
from hero_platform.train.lease import only_one
from hero_platform.tune.study import Objective
from hero_platform.tune.sweep import Sweep, run_sweep
from jobs import clean, train
from jobs.recipes.sweeps import space_of


@pytest.fixture(scope="module")
def filled(tiny_store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store, run `a`, run `b` from its weights, sweep `s` of two trials, sweep `t` that learns from it."""
    root = tmp_path_factory.mktemp("filled") / "home"
    store = shutil.copytree(tiny_store, root / "stores" / "synthetic" / "tiny")
    words = ["--model", "debug", "--batch", "8", "--steps", "1", "--tracking.kind", "none", "--evaluation.every", "0"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HERO_HOME", str(root))
        for name, *more in (
            ["a"],
            ["b", "--init-from", "a"],
            ["s-0000", "--tracking.sweep", "s"],
            ["s-0001", "--tracking.sweep", "s"],
        ):
            assert train.main(["pretrain_synthetic", *words, "--name", name, *more]) == 0
        run = config_io.from_json((root / "runs" / "a" / "config.json").read_text())
        for name, earlier in (("s", ()), ("t", ("s",))):
            space = space_of("lr_and_warmup", run)
            run_sweep(Sweep(name, run, space, 0, (Objective("val/loss", "min"),), warm_start=earlier))
    assert run.stores[0].path == str(store)
    return root


@pytest.fixture
def root(filled: Path, hero_home: Path) -> Path:
    """A copy of it for one test, as if it had moved: its runs name the store at its old place."""
    return shutil.copytree(filled, hero_home)


@pytest.fixture
def cleaned(tmp_path: Path, capsys) -> Callable[..., tuple[int, dict, str]]:
    """Runs the command: its exit code, what `--json` says, what it printed on stderr."""

    def run(*words: str) -> tuple[int, dict, str]:
        file = tmp_path / "facts.json"
        capsys.readouterr()
        code = clean.main([*words, "--json", str(file)])
        return code, json.loads(file.read_text()), capsys.readouterr().err

    return run


def test_everything_is_listed_and_nothing_touched(filled: Path, monkeypatch, capsys, tmp_path: Path):
    monkeypatch.setenv("HERO_HOME", str(filled))
    before = files.entries(filled)
    assert clean.main(["--json", str(tmp_path / "facts.json")]) == 0
    items = {(one["kind"], one["name"]): one for one in json.loads((tmp_path / "facts.json").read_text())["items"]}
    kinds = ("run", "run", "run", "run", "sweep", "sweep", "store")
    assert [key for key in items if key[0] != "cache"] == [
        *zip(kinds, ("a", "b", "s-0000", "s-0001", "s", "t", "synthetic/tiny"), strict=True)
    ]
    for (kind, name), one in items.items():
        if kind != "cache":
            folder = filled / f"{kind}s" / name
            sizes = [path.stat() for path in folder.rglob("*") if path.is_file()]
            assert one["bytes"] == sum(stat.st_size for stat in sizes) and one["state"] == "finished"
            assert one["changed_s"] == max(stat.st_mtime for stat in sizes)
    rows = {tuple(cell.strip() for cell in line.split("|")[1:3]): line for line in capsys.readouterr().out.splitlines()}
    assert "| run b " in rows["run", "a"] and "| sweep s " in rows["run", "s-0000"]
    assert "| run a, run b, run s-0000, 3 more" in rows["store", "synthetic/tiny"]
    assert "| sweep t " in rows["sweep", "s"] and rows["sweep", "t"].rstrip(" |").endswith("-")
    assert files.entries(filled) == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--run", "a"], "run a is used by run b: delete them too (--run b), or keep all"),
        (["--store", "synthetic/tiny", "--run", "a", "--run", "b", "--sweep", "s"], "sweep s is used by sweep t"),
        (["--store", "synthetic/tiny"], "used by run a, run b, run s-0000 and 3 more: delete them too (--run a --run"),
        (["--run", "s-0001"], "run s-0001 is a trial of sweep s: delete that (--sweep s), or keep both"),
        (["--sweep", "s"], "sweep s is used by sweep t: delete them too (--sweep t), or keep all"),
    ],
)
def test_what_is_needed_stays(root: Path, cleaned, words: list[str], sentence: str):
    before = files.entries(root)
    code, facts, said = cleaned(*words, "--yes")
    assert code == 2 and any(sentence in line for line in said.splitlines()) and not facts["deleted"]
    assert len(said.splitlines()) == len(facts["refused"])
    assert files.entries(root) == before


def test_a_plan_first_then_all_that_was_named(root: Path, cleaned):
    before = files.entries(root)
    words = ("--run", "a", "--run", "b", "--sweep", "s", "--sweep", "t", "--store", "synthetic/tiny")
    code, facts, _ = cleaned(*words)
    assert code == 0 and not facts["deleted"] and files.entries(root) == before
    keys = ["run a", "run b", "run s-0000", "run s-0001", "sweep s", "sweep t", "store synthetic/tiny"]
    assert facts["going"] == keys
    code, facts, _ = cleaned(*words, "--yes")
    assert code == 0 and facts["deleted"] and files.tree(root) == []


def test_a_sweep_takes_its_trials_and_one_that_gave_weights_keeps_it(root: Path, cleaned):
    config = root / "runs" / "b" / "config.json"
    step = root / "runs" / "s-0001" / "checkpoints" / "step_00000001"
    files.write_json(config, {**files.read_json(config), "init_from": str(step)})
    code, facts, said = cleaned("--sweep", "t", "--sweep", "s", "--yes")
    assert code == 2 and "run s-0001 is used by run b" in said and len(facts["refused"]) == 1
    assert cleaned("--sweep", "t", "--sweep", "s", "--run", "b", "--yes")[0] == 0
    assert files.listdir(root / "runs") == ["a"] and files.listdir(root / "sweeps") == []


def test_a_store_at_the_path_that_a_run_names_is_not_confused_with_its_copy(root: Path, filled: Path, cleaned):
    config = root / "runs" / "a" / "config.json"
    shutil.copytree(root / "stores" / "synthetic" / "tiny", root / "stores" / "synthetic" / "copy")
    old = str(filled / "stores")
    for path in (root / "runs").glob("*/config.json"):
        path.write_text(path.read_text().replace(old, str(root / "stores")))
    shutil.rmtree(root / "sweeps")
    assert str(root) in config.read_text()
    assert cleaned("--store", "synthetic/tiny", "--yes")[0] == 2
    assert cleaned("--store", "synthetic/copy", "--yes")[0] == 0
    assert files.listdir(root / "stores" / "synthetic") == ["tiny"]


def test_a_run_that_cannot_be_read_may_need_anything(root: Path, cleaned):
    (root / "runs" / "b" / "config.json").write_text("{")
    code, facts, said = cleaned("--run", "a", "--yes")
    assert code == 2 and {one["name"]: one["state"] for one in facts["items"]}["b"] == "damaged"
    assert said.strip().endswith(
        "run a may be used by run b, whose config.json cannot be read: "
        "repeat its command, which writes it anew, or delete that too (--run b)"
    )
    assert cleaned("--run", "a", "--run", "b", "--yes")[0] == 0
    (root / "sweeps" / "t" / "sweep.json").write_text("[]")
    assert "may be used by sweep t, whose sweep.json cannot be read: delete that" in cleaned("--sweep", "s")[2]


@pytest.mark.parametrize(
    ("folder", "role", "words"), [("runs/b", "driver", ["--run", "b"]), ("runs/b", "", ["--run", "b"]),
    ("sweeps/t", "sweep", ["--sweep", "t"]), ("runs/s-0001", "driver", ["--sweep", "t", "--sweep", "s"])],
)  # fmt: skip
def test_what_a_living_process_holds_stays(root: Path, cleaned, folder: str, role: str, words: list[str]):
    with only_one(str(root / folder), role=role):
        before = files.tree(root)
        code, facts, said = cleaned(*words, "--yes")
        assert code == 2 and f"is in use by process {os.getpid()} on" in said and len(facts["refused"]) == 1
        name = Path(folder).name
        assert {one["name"]: one["state"] for one in facts["items"]}[name] == "running"
        assert files.tree(root) == before
    assert cleaned(*words, "--yes")[0] == 0


def test_a_start_between_plan_and_deletion_keeps_the_run(root: Path):
    from hero_platform import housekeeping

    made = housekeeping.plan(housekeeping.inventory(), {"run": ["b"]})
    with only_one(str(root / "runs" / "b"), role="driver"), pytest.raises(ValueError, match="another process"):
        housekeeping.delete(made.going)
    assert (root / "runs" / "b" / "config.json").exists()


KILLED = """
import os, shutil, signal, sys
from pathlib import Path
from jobs import clean
def die(path):
    next(Path(path).rglob("*.safetensors")).unlink()
    os.kill(os.getpid(), signal.SIGKILL)
shutil.rmtree = die
clean.main(sys.argv[1:])
"""


def test_what_a_killed_deletion_left_is_no_run_and_goes_with_the_next(root: Path, cleaned, short_run, capsys):
    done = subprocess.run([sys.executable, "-c", KILLED, "--run", "b", "--yes"], capture_output=True)
    assert done.returncode == -signal.SIGKILL
    code, facts, _ = cleaned()
    left = [one for one in facts["items"] if one["name"] == "b"]
    assert code == 0 and [one["state"] for one in left] == ["half deleted"] and left[0]["bytes"] > 0
    assert train.main(short_run("b", "--steps", "1")) == 0, "the name is free"
    assert "went on from" not in capsys.readouterr().out
    code, facts, _ = cleaned("--yes")
    assert code == 0 and facts["going"] == ["run b"]
    assert files.listdir(root / "runs") == ["a", "b", "s-0000", "s-0001"]
    assert cleaned("--run", "b", "--yes")[0] == 0


def test_a_store_that_is_being_built_stays_for_a_while(root: Path, cleaned):
    half = root / "stores" / "synthetic" / "half"
    files.write_json(half / "plan.json", {})
    assert "may be being built, it changed" in cleaned("--store", "synthetic/half", "--yes")[2]
    os.utime(half / "plan.json", (0, 0))
    code, facts, _ = cleaned("--store", "synthetic/half", "--yes")
    assert code == 0 and facts["deleted"] and files.listdir(root / "stores" / "synthetic") == ["tiny"]


def test_what_is_being_extracted_from_films_stays_for_a_while(hero_home: Path):
    from hero_platform import housekeeping

    settings = hero_home / "stores" / "mine" / "lite.extracted" / "settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text("{}")
    (item,) = housekeeping._stores()
    assert (item.name, item.state) == ("mine/lite.extracted", "unfinished") and "may be being built" in item.busy
    os.utime(settings, (0, 0))
    (item,) = housekeeping._stores()
    assert item.state == "unfinished" and not item.busy


def test_caches_lose_what_nobody_uses(root: Path, cleaned, tmp_path: Path, monkeypatch):
    from hero_platform.store.cache import ShardCache
    from hero_platform.tracking.journal import Journal

    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    monkeypatch.setenv("HERO_CACHE", str(tmp_path / "cache"))
    shard = next((root / "stores").rglob("*.arrow"))
    sha256 = files.sha256_file(shard)
    ShardCache.default().fetch(f"file://{shard}", sha256, shard.stat().st_size)
    copy = ShardCache.default().path_of(sha256)
    dead = tmp_path / "tmp" / "hero-upload-dead"
    files.write_bytes(dead / "file", b"12345")
    partial = root / "runs" / "a" / ".config.json.999999999-ab.partial"
    partial.write_bytes(b"123")
    abandoned = Journal("memory://home/runs/dead")
    abandoned.abandon()
    live = Journal("memory://home/runs/live")

    def sizes(facts: dict) -> dict[str, int]:
        return {one["name"]: one["bytes"] for one in facts["items"] if one["kind"] == "cache"}

    _, facts, _ = cleaned()
    assert sizes(facts)["shards"] == copy.stat().st_size and sizes(facts)["partial"] == 0, "it may be being written"
    os.utime(partial, (0, 0))
    assert sizes(cleaned()[1])["partial"] == 3 and sizes(cleaned()[1])["scratch"] >= 5
    assert cleaned("--cache", "all", "--yes")[0] == 0
    assert not any(path.exists() for path in (copy, dead, partial, Path(abandoned.path)))
    assert Path(live.path).exists() and shard.exists()
    live.close()


def test_a_root_behind_fsspec(short_run, cleaned, monkeypatch, filled: Path, capsys):
    monkeypatch.setenv("HERO_HOME", f"memory://{uuid4().hex}")
    monkeypatch.setattr(lease, "_SETTLE_S", 0.01)  # there is no rival
    for name in ("runs/a", "runs/b", "stores"):
        files.copy_tree(filled / name, files.join(home.root(), name))
    store = files.join(home.root(), "stores", "synthetic", "tiny")
    code, facts, said = cleaned("--run", "a", "--store", "synthetic/tiny", "--yes")
    assert code == 2 and "run a is used by run b" in said and "synthetic/tiny is used by run b" in said
    assert {one["name"]: one["bytes"] for one in facts["items"]}["synthetic/tiny"] == sum(
        files.size_of(files.join(store, name)) for name in files.tree(store)
    )
    real = files.remove_tree

    def die(path: str) -> None:
        if path.endswith("metrics.jsonl"):  # the last
            raise KeyboardInterrupt
        real(path)

    with monkeypatch.context() as patch:
        patch.setattr(files, "remove_tree", die)
        assert clean.main(["--run", "b", "--yes"]) == 130
    assert files.tree(home.run_dir("b")) == ["metrics.jsonl"]
    assert train.main(short_run("b", "--steps", "1")) == 2, "nothing begins on what is left"
    assert "nobody knows what run this is" in capsys.readouterr().err
    assert cleaned("--run", "b", "--run", "a", "--store", "synthetic/tiny", "--yes")[0] == 0
    assert files.tree(home.root()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--run", "c"], "there is no run 'c' under"),
        (["--cache", "none"], "there is no cache 'none' under"),
        (["--store", "synthetic"], "there is no store 'synthetic' under"),
    ],
)
def test_mistakes_are_one_line(root: Path, words: list[str], message: str, capsys):
    assert clean.main(words) == 2
    assert message in capsys.readouterr().err
