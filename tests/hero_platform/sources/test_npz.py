"""One's own features and subtitles: real samples, the raw files behind the golden databases, and every bad row."""

import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from hero_platform.sources.base import RawVideo, Reject
from hero_platform.sources.npz import NpzSource, feature_arrays
from hero_platform.store.rows import RowRules, make_row
from hero_platform.store.tokens import TokenizerSpec

REAL_ARRAYS = ("i3d_k400", "efficientnet_lite0")


def read_all(source):
    planned, rejects = source.plan()
    return {video.id: video for video in source.read([video.id for video in planned])}, rejects


@pytest.mark.parametrize("subtitles", ["subtitles/subs.jsonl", "video"])
def test_real_videos(real, subtitles):
    spec = TokenizerSpec.roberta(str(real / "roberta"))
    source = NpzSource((str(real / "features"),), REAL_ARRAYS, str(real / subtitles))
    videos, rejects = read_all(pickle.loads(pickle.dumps(source)))
    example = json.loads((real / "subtitles/hero_alignment_example.json").read_text())
    for video, raw in videos.items():
        row = make_row(raw, RowRules(None, "float16", spec), "test")
        case = example[video]
        assert row.tokens == case["input_ids"]
        assert row.segment_frames == list(case["1.5"]["unique_sub2frames"].values())
        with np.load(real / f"features/{video}.npz") as arrays:
            np.testing.assert_array_equal(row.frames[:, :1024], arrays["i3d_k400"])
            np.testing.assert_array_equal(row.frames[:, 1024:], arrays["efficientnet_lite0"])
    without_srt = {"nasa_13013"} if subtitles == "video" else set()
    assert videos.keys() == {"popeye_p2", "popeye_p3", "nasa_13013"} - without_srt
    assert {reject.id for reject in rejects} == without_srt


def test_srt_says_what_the_jsonl_says(real):
    by_file = dict.fromkeys(["subtitles/subs.jsonl", "video"])
    for subtitles in by_file:
        by_file[subtitles], _ = read_all(NpzSource((str(real / "features"),), REAL_ARRAYS, str(real / subtitles)))
    for video, raw in by_file["video"].items():
        assert raw.subtitles == by_file["subtitles/subs.jsonl"][video].subtitles


def test_two_folders_equal_the_official_database(golden_lmdb):
    """ResNet then SlowFast, cut to the shorter: what convert_videodb.py wrote."""
    folders = tuple(str(golden_lmdb / f"raw/features/tv/{kind}_features") for kind in ("resnet", "slowfast"))
    source = NpzSource(folders, subtitles=str(golden_lmdb / "raw/annotations/tv_subtitles.jsonl"))
    videos, rejects = read_all(source)
    features = json.loads((golden_lmdb / "expected/video_features.json").read_text())["tv|max_clip_len=100"]
    segments = json.loads((golden_lmdb / "expected/sub_db.json").read_text())["tv|max_clip_len=100"]["vid_sub2frame"]
    spec = TokenizerSpec.roberta(str(golden_lmdb / "tokenizer/roberta-base"))
    assert videos.keys() == features.keys()
    for video, raw in videos.items():
        np.testing.assert_array_equal(raw.frames.sum(axis=1, dtype=np.float64), features[video]["row_sum"])
        row = make_row(raw, RowRules(4352, "float16", spec), "test")
        assert [[number, frames] for number, frames in enumerate(row.segment_frames)] == segments[video]
    assert [(reject.id, reject.reason) for reject in rejects] == [
        ("castle_s02e10_seg02_clip_15", "no features in resnet_features")
    ]


# --- a corpus written here


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "features/show").mkdir(parents=True)
    (tmp_path / "subs").mkdir()
    return tmp_path


def add(folder, video, frames=4, subtitles="1\n00:00:00,000 --> 00:00:03,000\nhello\n", **arrays):
    arrays = arrays or {"features": np.ones((frames, 3), dtype=np.float16)}
    np.savez(folder / f"features/show/{video}.npz", **arrays)
    if subtitles is not None:
        data = subtitles if isinstance(subtitles, bytes) else subtitles.encode()
        (folder / f"subs/{video}.srt").write_bytes(data)


def source_of(folder, **settings):
    return NpzSource((str(folder / "features"),), subtitles=str(folder / "subs"), **settings)


def outcome(folder, **settings):
    videos, rejects = read_all(source_of(folder, **settings))
    reasons = {reject.id: reject.reason for reject in rejects}
    reasons |= {video: raw.reason for video, raw in videos.items() if isinstance(raw, Reject)}
    return {video for video, raw in videos.items() if isinstance(raw, RawVideo)}, reasons


def test_each_bad_row_is_a_reject(folder):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(folder / "exploded"),)

    ones = np.ones((4, 3), dtype=np.float32)
    add(folder, "good")
    add(folder, "cp1252", subtitles="1\n00:00:00,000 --> 00:00:03,000\ncaf\u00e9\n".encode("cp1252"))
    add(folder, "pickled", features=np.array([Bomb()], dtype=object))
    add(folder, "flat", features=np.ones(4, dtype=np.float32))
    add(folder, "other_name", feats=ones)
    add(folder, "other_interval", features=ones, clip_seconds=np.float32(2.0))
    add(folder, "no_subtitles", subtitles=None)
    add(folder, "no_times", subtitles="a story")
    add(folder, "truncated")
    path = folder / "features/show/truncated.npz"
    path.write_bytes(path.read_bytes()[:-30])
    (folder / "subs/no_features.vtt").write_text("WEBVTT\n")
    add(folder, "two_files")
    (folder / "subs/two_files.vtt").write_text("WEBVTT\n")
    good, reasons = outcome(folder)
    assert good == {"good"}
    assert {video: reason[:30] for video, reason in sorted(reasons.items())} == {
        "cp1252": "undecodable text: byte 35 is n",
        "flat": "array 'features' has shape [4]",
        "no_features": "no features in features",
        "no_subtitles": "no subtitles for this video; g",
        "no_times": "no subtitle timing line (00:00",
        "other_interval": "made at 2 s a frame, the store",
        "other_name": "no array 'features' in the .np",
        "pickled": "array 'features' holds object ",
        "truncated": "not a readable .npz: File is n",
        "two_files": "two files of subtitles have th",
    }
    assert not (folder / "exploded").exists()


def test_a_file_name_that_is_not_text(folder):
    add(folder, "a")
    with open(os.fsencode(folder) + b"/features/show/caf\xe9.npz", "wb") as stream:
        stream.write(b"")
    assert outcome(folder) == ({"a"}, {r"'caf\udce9'": "undecodable text: the file name is not UTF-8"})


def test_arrays_in_the_stated_order(folder):
    add(folder, "a", x=np.zeros((2, 2)), y=np.ones((2, 1)), duration=np.float64(2.9))
    (video,) = source_of(folder, arrays=("y", "x")).read(["a"])
    np.testing.assert_array_equal(video.frames, [[1, 0, 0], [1, 0, 0]])
    assert video.duration_s == 2.9
    add(folder, "b", x=np.zeros((3, 2)), y=np.ones((2, 1)))
    assert outcome(folder, arrays=("x", "y"))[1]["b"] == "2 frames in 'y', but 3 in 'x'"


def test_a_video_named_twice(folder):
    add(folder, "a")
    add(folder, "b")
    (folder / "features/other").mkdir()
    np.savez(folder / "features/other/a.npz", features=np.ones((1, 3)))
    good, reasons = outcome(folder)
    assert (good, reasons) == ({"b"}, {"a": "two files of features have this name"})


def test_jsonl_lines(folder):
    for video in "abcd":
        add(folder, video, subtitles=None)
    rows = [json.dumps({"vid_name": video, "sub": [], "duration": 6.0}) for video in "abb"]
    lines = [*(row.encode() for row in rows), b"", b'{"vid_name": "d", "sub": [{"text": "\xe9"}]}']
    (folder / "subs.jsonl").write_bytes(b"\n".join(lines))
    source = NpzSource((str(folder / "features"),), subtitles=str(folder / "subs.jsonl"))
    videos, rejects = read_all(source)
    assert list(videos) == ["a"] and videos["a"].duration_s == 6.0
    assert {reject.id for reject in rejects} == {"b", "c", "d", "line 5"}
    assert {reject.reason[:16] for reject in rejects if reject.id == "line 5"} == {"undecodable text"}


def test_features_only_and_splits(folder):
    add(folder, "a", subtitles=None)
    add(folder, "b", subtitles=None)
    (folder / "my_val.json").write_text('["b"]')
    source = NpzSource((str(folder / "features"),), splits=(str(folder / "my_val.json"),))
    videos, rejects = read_all(source)
    assert {video: raw.split for video, raw in videos.items()} == {"a": "unlisted", "b": "val"} and not rejects
    assert videos["a"].subtitles == []
    assert list(source.provenance()["splits"]) == ["val=my_val.json"]


def test_provenance_tells_contents_not_places(folder, tmp_path_factory):
    add(folder, "a")
    before = source_of(folder).provenance()
    moved = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, moved)
    (moved / "subs/film.mkv").write_text("not a subtitle")
    assert source_of(moved).provenance() == before
    (moved / "subs/a.srt").write_text("1\n00:00:00,000 --> 00:00:03,000\nHELLO\n")
    assert source_of(moved).provenance() != before


def test_wrong_folders_are_one_error(folder):
    with pytest.raises(ValueError, match="no features there"):
        source_of(folder).plan()
    add(folder, "a", subtitles=None)
    with pytest.raises(ValueError, match="no subtitles there"):
        source_of(folder).plan()
    (folder / "subs/zzz.srt").write_text("")
    with pytest.raises(ValueError, match="no subtitles there for any video"):
        source_of(folder).plan()
    with pytest.raises(ValueError, match="not a JSON list"):
        (folder / "x_val.json").write_text("{}")
        source_of(folder, splits=(str(folder / "x_val.json"),)).plan()
    with pytest.raises(ValueError, match="no subtitle file there"):
        NpzSource((str(folder / "features"),), subtitles=str(folder / "none.jsonl")).plan()


def test_ids_cannot_leave_the_folder(folder):
    add(folder, "a")
    (folder / "secret.npz").write_bytes(b"secret")
    (reject,) = source_of(folder).read(["../../secret"])
    assert reject.reason == "no features in features"


def test_feature_arrays_are_found_when_none_are_named(tmp_path: Path) -> None:
    np.savez(tmp_path / "b.npz", features=np.zeros((2, 3), np.float16))
    (tmp_path / "a.npz").write_bytes(b"no zip at all")
    assert feature_arrays(str(tmp_path)) == ("features",)
    np.savez(tmp_path / "a.npz", slow=np.zeros((2, 3), np.float16), fps=np.float32(2), fast=np.zeros((2, 1)))
    assert feature_arrays(str(tmp_path)) == ("slow", "fast")
