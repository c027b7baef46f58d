"""The commands a user types on VALUE's databases and CONQUER's archive, in the documented layouts, and on traps."""

from __future__ import annotations

import io
import json
import os
import tarfile
import zipfile
from pathlib import Path

import h5py
import lmdb
import lz4.frame
import msgpack
import numpy as np
import pytest

from hero_platform.store.reader import FeatureStore
from jobs import build_store

REPO = Path(__file__).resolve().parents[2]
SHARED = REPO.parent / "shared" / "golden"
VOCABULARY = Path(os.environ.get("HERO_GOLDEN_DIR") or SHARED) / "lmdb/tokenizer/roberta-base"

pytestmark = pytest.mark.ray


def write_lmdb(folder: Path, values: dict[str, bytes], **side):
    folder.mkdir(parents=True)
    with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
        for key, value in values.items():
            transaction.put(key.encode(), value)
    for name, content in side.items():
        (folder / f"{name}.json").write_text(json.dumps(content))


def packed(array) -> bytes:
    fields = {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
    return msgpack.packb({"features": fields})


def texts(records) -> dict[str, bytes]:
    return {key: lz4.frame.compress(msgpack.packb(record)) for key, record in records.items()}


def build(command: list[str], out: Path) -> FeatureStore:
    """Build, look into and open a store."""
    assert build_store.main([*command, "--out", str(out)]) == 0
    assert build_store.main(["inspect", str(out)]) == 0
    return FeatureStore.open(str(out))


def test_value(ray_session, tmp_path, capsys):
    clips = {"a.0": 3, "b.0": 2, "c.0": 4}
    for version, width in (("clip-vit_slowfast", 2816), ("resnet_slowfast", 4352)):
        write_lmdb(
            tmp_path / f"video_db/how2/{version}_1.5",
            {clip: packed(np.full((count, width), 0.5, dtype="<f4")) for clip, count in clips.items()},
        )
    (tmp_path / "video_db/how2/id2nframe_1.5.json").write_text(json.dumps(clips))
    subtitle = {"sub": [{"text": "hi", "start": 0.0, "end": 3.0}], "input_ids": [[5, 6]]}
    subtitles = {clip: {**subtitle, "unique_sub2frames": [[0, [0, 1]]]} for clip in clips}
    write_lmdb(tmp_path / "txt_db/how2_subtitles.db", texts(subtitles), meta={"frame_length": 1.5})
    moment = {"desc": "he cooks", "input_ids": [7], "ts": [0.0, 3.0]}
    for name, clip in (("how2r_train", "a.0"), ("how2r_val_1k", "b.0")):
        write_lmdb(tmp_path / f"txt_db/{name}.db", texts({"1": {**moment, "vid": clip}}), query2video={"1": clip})
    hidden = {"9": {"desc": "he cooks", "input_ids": [7]}}
    write_lmdb(tmp_path / "txt_db/how2r_test.db", texts(hidden), query2video={}, video_ids=["c.0"])
    txt = str(tmp_path / "txt_db")
    command = ["lmdb", "--video-db", str(tmp_path / "video_db/how2"), "--txt-db", f"{txt}/how2_subtitles.db"]
    command += ["--query-db", *(f"{txt}/how2r_{split}.db" for split in ("train", "val_1k", "test")), "--corpus", "how2"]
    store = build([*command, "--feature-set", "clip-vit_slowfast"], tmp_path / "store")
    said = capsys.readouterr().out
    assert "features clip-vit_slowfast_1.5" in said and '"version": "clip-vit_slowfast"' in said
    assert (store.frame_dim, store.manifest.source["version"]) == (2816, "clip-vit_slowfast")
    assert store.splits == ["test", "train", "val"] and store.rows_of("val").tolist() == [1]
    for split in store.splits:
        assert len(store.annotations("moments", split)) == 1
    assert build_store.main([*command, "--feature-set", "mil-nce", "--out", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert "named mil-nce_1.5" in error and error.count("\n") == 1


@pytest.fixture(scope="module")
def release(tmp_path_factory):
    """A release of three clips in two files, and its subtitles."""
    root = tmp_path_factory.mktemp("conquer")
    (root / "tvr_feature_release/video").mkdir(parents=True)
    draw = np.random.default_rng(3)
    clips = [f"castle_s01e01_seg02_clip_{number:02}" for number in range(3)]
    for name, width in (("resnet", 2048), ("slowfast", 2304)):
        with h5py.File(root / f"tvr_feature_release/video/{name}.h5", "w") as file:
            for clip in clips:
                file.create_dataset(clip, data=draw.normal(size=(4, width)).astype("f4"), compression="gzip")
    rows = [{"vid_name": clip, "sub": [{"text": "It's OK.", "start": 0.2, "end": 3.9}]} for clip in clips]
    (root / "subs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def test_conquer_is_the_same_from_folder_and_archives(ray_session, release, tmp_path, capsys):
    if not VOCABULARY.exists():
        pytest.skip(f"no {VOCABULARY}")
    rest = ["--features", "resnet.h5", "slowfast.h5", "--subtitles", str(release / "subs.jsonl")]
    rest += ["--tokenizer", str(VOCABULARY), "--corpus", "tv"]
    folder = release / "tvr_feature_release"
    with tarfile.open(tmp_path / "x.tar.gz", "w:gz") as archive:
        archive.add(folder, "tvr_feature_release")
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for path in sorted(folder.rglob("*.h5")):
            archive.write(path, path.relative_to(folder))
    stores = [
        build(["conquer", str(path), *rest], tmp_path / f"store{number}")
        for number, path in enumerate([folder, tmp_path / "x.tar.gz", tmp_path / "x.zip"])
    ]
    assert len({store.digest for store in stores}) == 1
    assert len({json.dumps(store.manifest.source) for store in stores}) == 1
    store = stores[0]
    assert (store.manifest.feature_set, store.frame_dim, len(store)) == ("resnet_slowfast_1.5", 4352, 3)
    rows = store.rows([0])
    assert len(rows.tokens) > 0 and rows.segment_frames.tolist() == [0, 1, 2]
    with h5py.File(folder / "video/resnet.h5") as one, h5py.File(folder / "video/slowfast.h5") as other:
        want = np.concatenate([one[rows.ids[0]][()], other[rows.ids[0]][()]], axis=1)
    np.testing.assert_array_equal(rows.frames, want.astype(np.float16))
    assert "found    " in capsys.readouterr().out
    # the same command again finds it finished, from whichever of the three
    assert build_store.main(["conquer", str(tmp_path / "x.zip"), *rest, "--out", str(tmp_path / "store0")]) == 0


def one_line(command: list[str], capsys) -> str:
    """The one line that a command is refused with."""
    assert build_store.main(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and "Traceback" not in error
    return error


def test_a_dry_run_names_what_was_found(release, tmp_path, capsys):
    command = ["conquer", str(release / "tvr_feature_release"), "--corpus", "tv", "--out", str(tmp_path / "out")]
    assert "no sets of features for resnet_slowfast" in one_line(command, capsys)
    assert build_store.main([*command, "--features", "resnet.h5", "--feature-set", "resnet", "--dry-run"]) == 0
    assert "found    video/resnet.h5:*" in capsys.readouterr().out
    assert "subtitles need --tokenizer" in one_line([*command, "--subtitles", str(release / "subs.jsonl")], capsys)
    assert not (tmp_path / "out").exists()


def test_traps_are_one_line_and_exit_code_2(ray_session, tmp_path, capsys):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    out = ["--corpus", "x", "--out", str(tmp_path / "out")]
    with tarfile.open(tmp_path / "x.tar", "w") as archive:
        archive.addfile(tarfile.TarInfo("../../ran"), io.BytesIO())
    assert "x.tar: the path '../../ran' leads out of it: refused" in one_line(
        ["conquer", str(tmp_path / "x.tar"), *out], capsys
    )
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz/a.npz", features=np.array([Evil()], dtype=object))
    said = one_line(["npz", "--features", str(tmp_path / "npz"), *out], capsys)
    assert "array 'features' holds object (objects or text), not numbers: refused" in said
    with h5py.File(tmp_path / "x.h5", "w") as file:
        file["a"] = h5py.ExternalLink("/etc/passwd", "/")
    (tmp_path / "h5").mkdir()
    (tmp_path / "x.h5").rename(tmp_path / "h5/x.h5")
    assert "is a link to '/etc/passwd'" in one_line(["conquer", str(tmp_path / "h5"), *out], capsys)
    assert not (tmp_path / "ran").exists() and not (tmp_path / "out").exists()
