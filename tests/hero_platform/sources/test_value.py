"""VALUE's databases in their documented layout (hero.md 4.8, 5.3, 5.5), written here: no released one was at hand."""

from __future__ import annotations

import json
import math

import lz4.frame
import msgpack
import numpy as np
import pytest

from hero_platform.sources.base import Annotation, RawVideo, Reject
from hero_platform.sources.lmdb import LmdbSource
from hero_platform.sources.splits import split_of_name
from hero_platform.sources.versions import WIDTHS

NAN = math.nan


def features_of(width, frames=3):
    array = np.ones((frames, width), dtype="<f4")
    fields = {b"nd": True, b"type": "<f4", b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
    return msgpack.packb({"features": fields})


def text_of(record):
    return lz4.frame.compress(msgpack.packb(record))


@pytest.fixture
def value(tmp_path, write_lmdb):
    """A function that writes a query database: name, key -> record, side files; gives its path."""

    def write(name, records, **side):
        write_lmdb(tmp_path / "txt_db" / name, {key: text_of(record) for key, record in records.items()})
        for stem, content in side.items():
            (tmp_path / "txt_db" / name / f"{stem}.json").write_text(json.dumps(content))
        return str(tmp_path / "txt_db" / name)

    return write


def test_the_published_widths():
    assert WIDTHS == {
        "resnet_slowfast": 2048 + 2304, "resnet_mil-nce": 2048 + 1024, "clip-vit_slowfast": 512 + 2304,
        "clip-vit_mil-nce": 512 + 1024, "resnet": 2048, "slowfast": 2304, "clip-vit": 512, "mil-nce": 1024,
    }  # fmt: skip


@pytest.mark.parametrize("version", WIDTHS)
def test_each_version_is_found_and_checked(version, tmp_path, write_lmdb):
    for name, width in WIDTHS.items():  # as VALUE ships them: side by side, one count file
        write_lmdb(tmp_path / f"how2/{name}_1.5", {"a.0": features_of(width)})
    (tmp_path / "how2/id2nframe_1.5.json").write_text('{"a.0": 2}')
    source = LmdbSource(str(tmp_path / "how2"), version=version)
    assert [(video.id, video.num_frames) for video in source.plan()[0]] == [("a.0", 2)]
    (video,) = source.read(["a.0"])
    assert video.frames.shape == (2, WIDTHS[version])
    assert source.provenance()["version"] == version and source.provenance()["features"] == f"how2/{version}_1.5"
    write_lmdb(tmp_path / f"other/{version}_1.5", {"a.0": features_of(7)})
    with pytest.raises(ValueError, match=f"features are 7 wide, but {version} is {WIDTHS[version]} wide"):
        LmdbSource(str(tmp_path / "other"), version=version).plan()


def test_one_odd_video_is_a_reject_and_not_the_database(tmp_path, write_lmdb):
    write_lmdb(tmp_path / "clip-vit_1.5", {"a": features_of(511), "b": features_of(512)})
    source = LmdbSource(str(tmp_path), version="clip-vit")
    odd, good = source.read([video.id for video in source.plan()[0]])
    assert isinstance(odd, Reject) and odd.reason == "features are 511 wide, but clip-vit is 512 wide"
    assert isinstance(good, RawVideo)


def test_a_version_that_is_not_there_is_one_error(tmp_path, write_lmdb):
    write_lmdb(tmp_path / "resnet_slowfast_1.5", {"a": features_of(4352)})
    with pytest.raises(ValueError, match=r"named clip-vit_1\.5 .*the folder holds resnet_slowfast_1\.5"):
        LmdbSource(str(tmp_path), version="clip-vit").plan()


def test_counts_may_be_null(tmp_path, write_lmdb):
    write_lmdb(tmp_path / "clip-vit_1.5", {"a": features_of(512), "__keys__": b"..."})
    (tmp_path / "id2nframe.json").write_text("null")
    assert [video.id for video in LmdbSource(str(tmp_path), version="clip-vit").plan()[0]] == ["a"]
    (tmp_path / "id2nframe_1.5.json").write_text("[3]")
    with pytest.raises(ValueError, match=r"id2nframe_1\.5\.json: not a JSON object"):
        LmdbSource(str(tmp_path), version="clip-vit").plan()


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("how2r_train.db", "train"),
        ("how2r_val_1k.db", "val"),
        ("tvr_test.db", "test"),
        ("violin_test_private.db", "test_private"),
        ("vatex_en_r_test_public.db", "test_public"),
        ("yc2c_val.db", "val"),
    ],
)
def test_split_of_a_database_name(name, split):
    assert split_of_name(name) == split


def query(**fields):
    return {"desc": "a man cooks", "input_ids": [5, 6], **fields}


def test_retrieval_databases_say_which_videos_are_searched(value, tmp_path, write_lmdb):
    write_lmdb(tmp_path / "how2/clip-vit_1.5", {f"{name}.0": features_of(512) for name in "abcd"})
    train = value("how2r_train.db", {"1": query(vid="a.0", ts=[0, 3])}, query2video={"1": "a.0"})
    val = value("how2r_val_1k.db", {"2": query(vid="b.0", ts=[0, 3])}, query2video={"2": "b.0"})
    hidden = value("how2r_test.db", {"3": query()}, query2video={"3": None}, video_ids=["c.0"])
    questions = value("how2qa_val.db", {"4": QUESTION}, query2video={"4": "a.0"})  # not searched: no say

    def splits_of(*queries, **settings):
        source = LmdbSource(str(tmp_path / "how2"), queries=queries, version="clip-vit", **settings)
        return {raw.id[0]: raw.split for raw in source.read([video.id for video in source.plan()[0]])}

    assert splits_of(train, val, hidden, questions) == {"a": "train", "b": "val", "c": "test", "d": "unlisted"}
    assert splits_of(questions) == dict.fromkeys("abcd", "train")
    assert splits_of(train, f"dev={val}") == {"a": "train", "b": "dev", "c": "unlisted", "d": "unlisted"}
    assert splits_of(train, val, splits=(f"mine={val}",)) == {"a": "unlisted", "b": "mine"} | dict.fromkeys(
        "cd", "unlisted"
    )
    again = value("how2r_test_public.db", {"5": query(vid="b.0")}, query2video={"5": "b.0"})
    with pytest.raises(ValueError, match=r"video b\.0 is already in split val: say which with --splits"):
        splits_of(val, again)
    bad = value("how2r_dev.db", {"5": query(vid="b.0")}, video_ids=[7])
    with pytest.raises(ValueError, match="not a JSON list of video ids"):
        splits_of(bad)
    with pytest.raises(ValueError, match=r"neither video_ids\.json nor query2video\.json there"):
        splits_of(train, splits=(f"val={tmp_path}/how2/clip-vit_1.5",))


def test_durations_of_a_subtitle_database_come_second(value, tmp_path, write_lmdb):
    write_lmdb(tmp_path / "tv/clip-vit_1.5", {name: features_of(512) for name in "ab"})
    record = {"sub": [], "input_ids": [[]], "unique_sub2frames": [[0, [0, 1, 2]]]}
    index = {"test_public": {"a": [4.5, 0], "b": [4.5, 1]}}
    subtitles = value("tv_subtitles.db", {"a": record, "b": record}, vid2dur_idx=index)
    test = value("tvr_test.db", {"1": query()}, video_ids=["a"])
    source = LmdbSource(str(tmp_path / "tv"), subtitles, (test,), version="clip-vit")
    assert {raw.id: raw.split for raw in source.read(["a", "b"])} == {"a": "test", "b": "test_public"}


QUESTION = {
    "q": "what?", "a0": "x", "a1": "y", "a2": "z", "a3": "w", "ts": "0.0-3.0", "vid": "v", "target": 3,
    "input_ids": [[5], [6], [7], [8], [9]],
}  # fmt: skip
EVENTS = {"events": ["she laughs", "he leaves"], "ts": [1.0, 2.5], "vid_name": "v", "target": 1}
CAPTION = {"desc": "he cooks", "input_ids": [5], "vid_name": "v"}


@pytest.mark.parametrize(
    ("name", "record", "expected"),
    [
        ("tvr_val.db", query(vid="v", ts=[0.5, 2], type="vt"), ("moments", "v", 0.5, 2, None)),
        ("how2r_val_1k.db", query(vid_name="v", ts=[1, 2]), ("moments", "v", 1, 2, None)),
        ("yc2r_val.db", query(vid_name="v"), ("moments", "v", NAN, NAN, None)),
        ("vatex_en_r_val.db", query(clip_name="v"), ("moments", "v", NAN, NAN, None)),
        ("tvr_test.db", query(target=None), ("moments", "", NAN, NAN, None)),
        ("how2qa_val.db", QUESTION, ("questions", "v", 0, 3, 3)),
        ("tvqa_test_public.db", {**QUESTION, "target": None}, ("questions", "v", 0, 3, None)),
        ("vlep_val.db", {**EVENTS, "input_ids": [[5], [6, 7]]}, ("questions", "v", 1, 2.5, 1)),
        ("vlep_test.db", {**EVENTS, "input_ids": [[], [5], [6, 7]], "target": None}, ("questions", "v", 1, 2.5, None)),
        ("violin_val.db", query(vid="v", label=True, target=True), ("statements", "v", NAN, NAN, 1)),
        ("violin_test_private.db", query(vid="v", target=None), ("statements", "v", NAN, NAN, None)),
        ("tvc_val.db/cap.db", {**CAPTION, "clip_id": "7", "ts": [0, 3]}, ("captions", "v", 0, 3, None)),
        ("yc2c_val.db/cap.db", {**CAPTION, "clip_id": "7", "ts": [0, 3]}, ("captions", "v", 0, 3, None)),
        ("vatex_en_c_val.db/cap.db", CAPTION, ("captions", "v", NAN, NAN, None)),
        ("tvc_test_public.db/clip.db", {"vid_name": "v", "ts": [0, 3]}, ("captions", "v", 0, 3, None)),
    ],
)
def test_a_record_of_each_task(value, name, record, expected):
    path = value(name, {"1": record}).removesuffix("/cap.db").removesuffix("/clip.db")
    (note,) = LmdbSource("unused", queries=(path,)).annotations()
    assert isinstance(note, Annotation) and note.split == split_of_name(name.split("/")[0])
    assert str((note.kind, note.video, float(note.start_s), float(note.end_s), note.label)) == str(
        (expected[0], expected[1], float(expected[2]), float(expected[3]), expected[4])
    )


def test_events_are_answers_without_a_question(value):
    path = value("vlep_val.db", {"1": {**EVENTS, "input_ids": [[5], [6, 7]]}, "2": {**EVENTS, "input_ids": [[5]]}})
    note, damaged = LmdbSource("unused", queries=(path,)).annotations()
    assert (note.text, note.tokens) == ("", [])
    assert (note.answers, note.answers_tokens) == (("she laughs", "he leaves"), [[5], [6, 7]])
    assert damaged.reason == "damaged query record: ValueError('2 answers, but tokens of 1')"


def test_hidden_captions_become_one_annotation_a_clip(value):
    clip = {"vid_name": "v", "ts": [0.0, 3.0]}
    value("tvc_test.db/cap.db", {"none": {}}, cap2vid={})
    value("tvc_test.db/clip.db", {"70": clip, "71": clip}, clip2vid={"71": "v", "70": "v"})
    value("tvc_val.db/clip.db", {"70": {**clip, "captions": [{"id": 1, "text": "he cooks", "input_ids": [5]}]}})
    queries = tuple(value(f"{name}/clip.db", {}).removesuffix("/clip.db") for name in ("tvc_test.db", "tvc_val.db"))
    assert [
        (note.id, note.group, note.text, note.tokens) for note in LmdbSource("x", queries=queries).annotations()
    ] == [
        ("71", "71", "", []),
        ("70", "70", "", []),
        ("1", "70", "he cooks", [5]),
    ]
