"""`build_store annotations`: public files beside a finished store, and splits chosen after the build."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.store.reader import FeatureStore
from jobs import build_store


@pytest.fixture
def store(tiny_store: str, tmp_path: Path) -> str:
    """A copy that a test may add to."""
    return shutil.copytree(tiny_store, tmp_path / "store").as_posix()


@pytest.fixture
def vocabulary(tmp_path: Path) -> str:
    path = tmp_path / "words.txt"
    path.write_text("\n".join(SyntheticSource(frame_dim=16).words()), "utf-8")
    return str(path)


def didemo(tmp_path: Path, video: str) -> str:
    rows = [
        {"annotation_id": 1, "video": f"{video}.mp4", "description": "x", "num_segments": 6, "times": [[1, 1]] * 4},
        {"annotation_id": 2, "video": "stranger.mp4", "description": "x", "num_segments": 6, "times": [[0, 9]]},
        {"annotation_id": 3, "video": "stranger.mp4", "description": "x", "num_segments": 6, "times": [[0, 1]] * 4},
    ]
    path = tmp_path / "val_data.json"
    path.write_text(json.dumps(rows), "utf-8")
    return str(path)


def test_a_table_is_added_and_the_store_stays(store, vocabulary, tmp_path, capsys):
    before = FeatureStore.open(store)
    path = didemo(tmp_path, "val-000001")
    command = ["annotations", "--corpus", "didemo", "--split", "extra", path, "--store", store]
    assert build_store.main([*command, "--dry-run"]) == 0
    assert "val_data.json: entry 2: segments [0, 9]" in capsys.readouterr().out
    assert not list(Path(store).glob("annotations/moments/extra*"))
    assert build_store.main([*command, "--tokenizer", vocabulary, "--json", str(tmp_path / "a.json")]) == 0
    printed, facts = capsys.readouterr().out, json.loads((tmp_path / "a.json").read_text())["annotations"]
    assert "1 annotations of 1 videos that the store has not (such as stranger.mp4)" in printed
    assert (facts["annotations"], facts["unmatched_annotations"], len(facts["rejects"])) == (2, 1, 1)
    after = FeatureStore.open(store)
    assert after.digest == before.digest and after.damaged() == []
    table = after.annotations("moments", "extra")
    assert table.digest == facts["digest"]
    assert table.videos.tolist() == ["val-000001", "stranger.mp4"] and table.video_rows[0] >= 0 > table.video_rows[1]
    assert table.all_spans_s.shape == (2, 4, 2) and (table.all_spans_s[0] == [5, 10]).all()
    assert table.spans_s[0].tolist() == [5, 10]
    other = after.annotations("moments", "val")
    assert np.array_equal(other.all_spans_s, other.spans_s[:, None]) and other.tags == other.groups == ()


def test_the_same_file_gives_the_same_table_with_the_vocabulary_the_store_carries(store, vocabulary, tmp_path):
    command = ["annotations", "--corpus", "didemo", "--split", "extra", didemo(tmp_path, "val-000001")]
    digests = []
    for named in (["--tokenizer", vocabulary], []):
        assert build_store.main([*command, "--store", store, *named]) == 0
        digests.append(FeatureStore.open(store).annotations("moments", "extra").digest)
    assert digests[0] == digests[1] and len(list(Path(store).glob("annotations/moments/extra-*"))) == 1


def tvr(tmp_path: Path, *texts: str) -> str:
    rows = [
        {"vid_name": "val-000001", "ts": [1, 4], "desc": text, "desc_id": number} for number, text in enumerate(texts)
    ]
    path = tmp_path / "tvr.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


def contents(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_file_without_a_row_that_can_be_stored_changes_nothing(store, tmp_path, capsys):
    before = contents(tmp_path)
    path = tvr(tmp_path, "\ud800")
    assert build_store.main(["annotations", "--corpus", "tvr", "--split", "val", path, "--store", store]) == 2
    assert "no annotation of tvr can be stored: undecodable text" in capsys.readouterr().err
    assert contents(tmp_path) == before | {path: Path(path).read_bytes()}


def test_only_a_corpus_of_video_files_loses_the_ending_of_its_names(store, tmp_path):
    path = tmp_path / "how2r.csv"
    path.write_text('val-000001,[180:240],[190:200],"a clip that the store has not"\n', "utf-8")
    assert build_store.main(["annotations", "--corpus", "how2r", "--split", "x", str(path), "--store", store]) == 0
    table = FeatureStore.open(store).annotations("moments", "x")
    assert table.videos.tolist() == ["val-000001.3"] and table.video_rows.tolist() == [-1]


def test_a_row_that_cannot_be_stored_is_named_by_file_and_line(store, tmp_path, capsys):
    path = tvr(tmp_path, "x", "\ud800", "x " * 5000)
    assert build_store.main(["annotations", "--corpus", "tvr", "--split", "val", path, "--store", store]) == 0
    printed = capsys.readouterr().out
    assert "  tvr.jsonl:2: undecodable text\n" in printed
    assert "  tvr.jsonl:3: a text of 5000 tokens, at most 511 fit the model\n" in printed
    assert FeatureStore.open(store).annotations("moments", "val").ids.tolist() == ["0"]


@pytest.mark.parametrize("split", ["../../evil", "a/b", ".hidden", "..", "two words"])
@pytest.mark.parametrize("extra", [[], ["--dry-run"]])
def test_a_split_names_a_table_and_no_other_place(split, extra, store, tmp_path, capsys):
    path = tvr(tmp_path, "x")
    before = contents(tmp_path)
    assert build_store.main(["annotations", "--corpus", "tvr", "--split", split, path, "--store", store, *extra]) == 2
    error = capsys.readouterr().err
    assert f"split name {split!r} may only hold" in error and error.count("\n") == 1
    assert contents(tmp_path) == before


def test_mistakes_are_one_line(store, tmp_path, capsys):
    path = didemo(tmp_path, "val-000001")
    (tmp_path / "other.txt").write_text("other\nwords\n", "utf-8")
    for extra, message in (
        (
            ["--corpus", "didemo", "--split", "x", path, "--tokenizer", str(tmp_path / "other.txt")],
            "another vocabulary",
        ),
        (["--corpus", "didemo", path], "--split names the split"),
        (["--corpus", "dideno", "--split", "x", path], "no annotation files are known for 'dideno'"),
        (["--corpus", "didemo"], "nothing to do"),
        (["--corpus", "didemo", "--split", "x", str(tmp_path)], f"{tmp_path} is a folder, where a file is needed"),
        (["--corpus", "didemo", "--splits", f"a={tmp_path}/none.json"], "not there"),
    ):
        assert build_store.main(["annotations", "--store", store, *extra]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
    shutil.rmtree(Path(store) / "tokenizer")  # as in a store whose source gave ids only
    assert build_store.main(["annotations", "--store", store, "--corpus", "didemo", "--split", "x", path]) == 2
    assert "carries no vocabulary, only token ids: name its vocabulary with --tokenizer" in capsys.readouterr().err


def test_splits_are_set_beside_the_store(store, tmp_path, capsys):
    before = FeatureStore.open(store)
    (tmp_path / "tv_train.json").write_text(json.dumps(["train-000003", "val-000001", "gone"]), "utf-8")
    (tmp_path / "tv_val.json").write_text(json.dumps(["train-000001"]), "utf-8")
    command = ["annotations", "--corpus", "synthetic", "--store", store, "--splits"]
    lists = [str(tmp_path / f"tv_{split}.json") for split in ("train", "val")]
    assert build_store.main([*command, *lists]) == 0
    assert "train: 2 videos; 1 ids that the store has not" in capsys.readouterr().out
    after = FeatureStore.open(store)
    assert after.digest != before.digest and after.manifest.digest == before.manifest.digest
    named = {split: set(after.index.ids[after.rows_of(split)]) for split in ("train", "val")}
    assert named == {"train": {"train-000003", "val-000001"}, "val": {"train-000001"}}
    assert np.array_equal(after.rows_of("test"), before.rows_of("test"))  # not named: as it was built
    assert build_store.main([*command, *lists]) == 0 and FeatureStore.open(store).digest == after.digest
    assert after.damaged() == []
    (table,) = (path for path in Path(store).glob("splits/*.json") if path.name != "current.json")
    table.write_text("{}", "utf-8")
    assert any(str(table) in line for line in after.damaged())
    with pytest.raises(ValueError, match="does not have the digest"):
        FeatureStore.open(store)
