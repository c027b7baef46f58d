"""CONQUER's release in the layouts that docs/data.md names, written here: no released archive was at hand."""

from __future__ import annotations

import json
import pickle

import h5py
import msgpack
import numpy as np
import pytest

from hero_platform.sources.base import RawVideo, Reject
from hero_platform.sources.conquer import ConquerSource, Part, find_parts

WIDTH = 4352
CLIPS = ("castle_s01e01_seg02_clip_00", "s03e02_seg02_clip_06")


def frames_of(video, width=WIDTH, frames=3):
    return np.full((frames, width), len(video), dtype=np.float16)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "release").mkdir()
    rows = [{"vid_name": video, "sub": [{"text": "Hi", "start": 0.0, "end": 3.0}]} for video in CLIPS]
    (tmp_path / "subs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path / "release"


def write_hdf5(path, videos=CLIPS, width=WIDTH, frames=3, pattern="{}"):
    with h5py.File(path, "a") as file:
        for video in videos:
            file[pattern.format(video)] = frames_of(video, width, frames)


def source_of(folder, *chosen, **settings):
    settings = {"subtitles": str(folder.parent / "subs.jsonl"), **settings}
    return ConquerSource(str(folder), find_parts(str(folder), chosen), **settings)


def read_all(source):
    planned, rejects = source.plan()
    return {video.id: video for video in source.read([video.id for video in planned])}, rejects


def lmdb_values(videos=CLIPS, width=WIDTH):
    def packed(array):
        fields = {b"nd": True, b"type": "<f2", b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
        return msgpack.packb({"features": fields})

    return {video: packed(frames_of(video, width)) for video in videos}


def test_one_file(folder):
    write_hdf5(folder / "tvr_features.h5")
    write_hdf5(folder / "tvr_query_bert.h5", ("1", "2"), width=768)  # other things in the release are no features
    (folder / "README.txt").write_text("features")
    assert find_parts(str(folder)) == (Part("tvr_features.h5", "*"),)
    source = pickle.loads(pickle.dumps(source_of(folder)))
    videos, rejects = read_all(source)
    assert list(videos) == list(CLIPS) and not rejects
    assert [(video.num_frames, video.bytes_hint) for video in source.plan()[0]] == [(3, 3 * WIDTH * 2)] * 2
    for video, raw in videos.items():
        np.testing.assert_array_equal(raw.frames, frames_of(video))
        assert (raw.split, raw.interval_s, [sub.text for sub in raw.subtitles]) == ("train", 1.5, ["Hi"])


@pytest.mark.parametrize("version", ["resnet_slowfast", "of_their_own"])
def test_lmdb_folders(folder, write_lmdb, version):
    write_lmdb(folder / f"video_db/tv/{version}_1.5", lmdb_values())
    (folder / "video_db/tv/id2nframe.json").write_text(json.dumps(dict.fromkeys(CLIPS, 2)))
    videos, rejects = read_all(source_of(folder))
    assert {video: len(raw.frames) for video, raw in videos.items()} == dict.fromkeys(CLIPS, 2) and not rejects
    assert source_of(folder).provenance()["features"] == [f"{version}_1.5"]


def test_an_lmdb_at_the_top(folder, write_lmdb):
    write_lmdb(folder, lmdb_values())
    assert find_parts(str(folder)) == (Part("."),)
    assert set(read_all(source_of(folder))[0]) == set(CLIPS)


def test_files_joined_in_the_stated_order(folder):
    (folder / "video").mkdir()
    write_hdf5(folder / "video/resnet.h5", width=2048, frames=4)
    write_hdf5(folder / "video/slowfast.h5", width=2304)
    with pytest.raises(ValueError, match=r"no sets of features for resnet_slowfast: name those to join") as error:
        find_parts(str(folder))
    assert "video/resnet.h5:* (2048 wide), video/slowfast.h5:* (2304 wide)" in str(error.value)
    source = source_of(folder, "resnet.h5", "video/slowfast.h5")
    assert source.provenance()["features"] == ["resnet.h5:*", "slowfast.h5:*"]
    videos, _ = read_all(source)
    assert {raw.frames.shape for raw in videos.values()} == {(3, WIDTH)}  # cut to the shorter
    assert source.plan()[0][0].num_frames == 3
    with pytest.raises(ValueError, match="the joined features are 4096 wide, but resnet_slowfast is 4352 wide"):
        find_parts(str(folder), ("resnet.h5", "resnet.h5"))
    assert len(find_parts(str(folder), ("resnet.h5", "resnet.h5"), "twice")) == 2


@pytest.mark.parametrize("pattern", ["{kind}/{video}", "{video}/{kind}"])
def test_groups_joined_in_the_stated_order(folder, pattern):
    clips = (*CLIPS, "third", "fourth")
    for kind, width in (("resnet", 2048), ("slowfast", 2304)):
        write_hdf5(folder / "x.h5", clips, width, pattern=pattern.replace("{kind}", kind).replace("{video}", "{}"))
    names = [pattern.format(kind=kind, video="*") for kind in ("slowfast", "resnet")]
    source = source_of(folder, f"x.h5:{names[0]}", f"x.h5:{names[1]}", subtitles=None)
    videos, rejects = read_all(source)
    assert set(videos) == set(clips) and not rejects
    with pytest.raises(ValueError, match=r"--features x\.h5 fits 2 of what it holds"):
        find_parts(str(folder), ("x.h5",))
    with pytest.raises(ValueError, match=r"--features y\.h5 fits none of what it holds: x\.h5:"):
        find_parts(str(folder), ("y.h5",))


def test_two_that_fit_are_not_guessed(folder):
    write_hdf5(folder / "a.h5")
    write_hdf5(folder / "b.h5")
    with pytest.raises(ValueError, match=r"2 sets of features .* it holds a\.h5:\* \(4352 wide\), b\.h5:\*"):
        find_parts(str(folder))


@pytest.mark.parametrize(
    ("names", "held"),
    [((), "it holds nothing"), (("a.npy", "sub/b.json"), r"it holds a\.npy, sub/b\.json")],
)
def test_what_holds_no_features_is_told(folder, names, held):
    for name in names:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("something else")
    with pytest.raises(ValueError, match=rf"no HDF5 file and no LMDB folder with features of frames there; {held}"):
        find_parts(str(folder))


def test_bad_videos_are_rejects(folder):
    write_hdf5(folder / "x.h5")
    write_hdf5(folder / "x.h5", ("no_subtitles",))
    with h5py.File(folder / "x.h5", "a") as file:
        file["ids"] = np.array([["text"]], dtype=h5py.string_dtype())
    with open(folder.parent / "subs.jsonl", "a") as stream:
        stream.write('{"vid_name": "no_features", "sub": []}\nno json\n')
    videos, rejects = read_all(source_of(folder))
    assert set(videos) == set(CLIPS)
    assert {reject.id: reject.reason[:40] for reject in rejects} == {
        "ids": "dataset 'ids' holds object (objects, tex",
        "line 4": "not a JSON line: Expecting value: line 1",
        "no_features": "no features in x.h5:*",
        "no_subtitles": "no subtitles for this video; give it an ",
    }


def test_what_changed_since_the_plan_is_a_reject(folder):
    write_hdf5(folder / "x.h5")
    source = source_of(folder)
    source.plan()
    with h5py.File(folder / "x.h5", "a") as file:
        del file[CLIPS[0]]
        file[CLIPS[0]] = h5py.ExternalLink("/etc/passwd", "/")
    bad, good = source.read(CLIPS)
    assert isinstance(bad, Reject) and "is a link to '/etc/passwd'" in bad.reason
    assert isinstance(good, RawVideo)


def test_an_unsafe_file_stops_it_all(folder):
    write_hdf5(folder / "x.h5")
    with h5py.File(folder / "y.h5", "w") as file:
        file["a"] = h5py.ExternalLink("x.h5", "/")
    with pytest.raises(ValueError, match=r"y\.h5: 'a' is a link to 'x\.h5', and not data of this file: refused"):
        find_parts(str(folder))


def test_splits(folder):
    write_hdf5(folder / "x.h5")
    (folder.parent / "tv_val.json").write_text(json.dumps(CLIPS[:1]))
    videos, _ = read_all(source_of(folder, splits=(str(folder.parent / "tv_val.json"),)))
    assert {raw.split for raw in videos.values()} == {"val", "unlisted"}


def test_subtitles_of_other_videos(folder):
    write_hdf5(folder / "x.h5", ("elsewhere",))
    with pytest.raises(ValueError, match=r"no subtitles there for any video of x\.h5"):
        source_of(folder).plan()
