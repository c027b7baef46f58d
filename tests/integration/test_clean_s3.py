"""Outputs on a real S3 server: listed with their sizes, refused, deleted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hero_platform import files
from jobs import clean, train

pytestmark = [pytest.mark.s3, pytest.mark.slow]


def test_runs_and_a_store_on_s3(object_store, tiny_store: str, monkeypatch, tmp_path: Path, capsys):
    root = "s3://hero/clean"
    monkeypatch.setenv("HERO_HOME", root)
    files.copy_tree(tiny_store, f"{root}/stores/synthetic/tiny")
    words = ["--model", "debug", "--batch", "8", "--steps", "1", "--tracking.kind", "none", "--evaluation.every", "0"]
    for name, more in (("a", []), ("b", ["--init-from", "a"])):
        assert train.main(["pretrain_synthetic", *words, "--name", name, *more]) == 0
    facts = tmp_path / "facts.json"
    assert clean.main(["--store", "synthetic/tiny", "--run", "a", "--yes", "--json", str(facts)]) == 2
    said = capsys.readouterr().err
    assert "run a is used by run b" in said and "store synthetic/tiny is used by run b" in said
    items = {one["name"]: one for one in json.loads(facts.read_text())["items"]}
    for name, folder in (("a", "runs/a"), ("synthetic/tiny", "stores/synthetic/tiny")):
        inside = files.tree(f"{root}/{folder}")
        assert items[name]["bytes"] == sum(files.size_of(f"{root}/{folder}/{file}") for file in inside)
        assert items[name]["changed_s"] > 1e9 and items[name]["state"] == "finished"
    assert clean.main(["--store", "synthetic/tiny", "--run", "a", "--run", "b", "--yes"]) == 0
    assert files.tree(root) == []
