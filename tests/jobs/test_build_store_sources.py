"""The commands a user types on HERO's databases and on their own features, through Ray Data, to an open store."""

import json
import os
from pathlib import Path

import numpy as np
import pytest

from hero_model.packed.pack import cut, segment_text
from hero_platform.store.reader import FeatureStore
from jobs import build_store

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared"
GOLDEN = Path(os.environ.get("HERO_GOLDEN_DIR") or SHARED / "golden") / "lmdb"
REAL = SHARED / "real"

pytestmark = pytest.mark.ray


@pytest.fixture(scope="module")
def tv(ray_session, tmp_path_factory):
    """The golden TV databases, with annotations, in several shards."""
    if not GOLDEN.exists():
        pytest.skip(f"no {GOLDEN}")
    out = str(tmp_path_factory.mktemp("tv") / "store")
    queries = ["tvr_train", "tvr_test_public", "tvqa_val", "tvc_val"]
    arguments = ["lmdb", "--video-db", f"{GOLDEN}/video_db/tv", "--txt-db", f"{GOLDEN}/txt_db/tv_subtitles.db"]
    arguments += ["--query-db", *(f"{GOLDEN}/txt_db/{name}.db" for name in queries), "--corpus", "tv", "--out", out]
    assert build_store.main([*arguments, "--shard-mb", "0.5"]) == 0
    return FeatureStore.open(out)


def test_lmdb_store_gives_the_official_inputs(tv):
    items = json.loads((GOLDEN / "expected/video_sub_items.json").read_text())["tv|max_clip_len=10|sub_ctx_len=1"]
    features = json.loads((GOLDEN / "expected/video_features.json").read_text())["tv|max_clip_len=10"]
    rows = cut(tv.rows(np.arange(len(tv))), 10)
    texts = segment_text(rows, context=1)
    assert set(rows.ids) == items.keys() and len(tv.manifest.shards) > 1
    for index, video in enumerate(rows.ids):
        first, last = rows.segment_offsets[index : index + 2]
        ids = [texts.tokens[texts.offsets[i] : texts.offsets[i + 1]].tolist() for i in range(first, last)]
        assert [[2, *text] for text in ids] == items[video]["input_ids"]
        frames = rows.frames[rows.frame_offsets[index] : rows.frame_offsets[index + 1]]
        assert frames.dtype == np.float16  # the golden values are exact in it
        np.testing.assert_array_equal(frames.astype(np.float64).sum(axis=1), features[video]["row_sum"])


def test_lmdb_annotations_splits_and_rejects(tv):
    tv.verify()
    assert tv.splits == ["test_public", "train", "val"]
    moments = tv.annotations("moments", "train")
    assert len(moments.table) == 32 and (moments.video_rows >= 0).all()
    assert np.isnan(tv.annotations("moments", "test_public").spans_s).all()
    assert tv.annotations("questions", "val").labels.tolist()[0] == 2
    assert len(tv.annotations("captions", "val").table) == 12
    rejects = [json.loads(line) for line in Path(tv.root, "rejects.jsonl").read_text().splitlines()]
    assert [reject["id"] for reject in rejects] == ["castle_s02e10_seg02_clip_15"]


def test_npz_store_of_real_videos(ray_session, tmp_path):
    if not REAL.exists():
        pytest.skip(f"no {REAL}")
    out = str(tmp_path / "store")
    arguments = ["npz", "--features", f"{REAL}/features", "--arrays", "i3d_k400", "efficientnet_lite0"]
    arguments += ["--subtitles", f"{REAL}/subtitles/subs.jsonl", "--tokenizer", f"{REAL}/roberta", "--corpus", "mine"]
    assert build_store.main([*arguments, "--out", out]) == 0
    store = FeatureStore.open(out)
    example = json.loads((REAL / "subtitles/hero_alignment_example.json").read_text())
    rows = store.rows(np.arange(len(store)))
    assert set(rows.ids) == example.keys() and store.frame_dim == 1024 + 1280
    for index, video in enumerate(rows.ids):
        first, last = rows.segment_offsets[index : index + 2]
        tokens = [rows.tokens[rows.token_offsets[i] : rows.token_offsets[i + 1]].tolist() for i in range(first, last)]
        assert tokens == example[video]["input_ids"]


@pytest.mark.parametrize("command", ["lmdb", "npz"])
def test_a_wrong_folder_is_one_line(command, tmp_path, capsys):
    arguments = {"lmdb": ["--video-db", str(tmp_path)], "npz": ["--features", str(tmp_path)]}[command]
    assert build_store.main([command, *arguments, "--corpus", "x", "--out", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and str(tmp_path) in error and "Traceback" not in error
    assert not (tmp_path / "out").exists()
