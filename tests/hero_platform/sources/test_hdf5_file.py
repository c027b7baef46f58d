"""HDF5: layouts that hold features by video, and every way in which a file could reach beyond itself."""

from __future__ import annotations

import json
import zlib

import h5py
import numpy as np
import pytest

from hero_platform.sources.hdf5_file import is_hdf5, open_hdf5, patterns_of, read_frames

FRAMES = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "x.h5")


def read(path, video="a", pattern="*"):
    with open_hdf5(path) as file:
        return read_frames(file, pattern, video)


def test_layouts(path):
    with h5py.File(path, "w") as file:
        for video in "abc":
            file[video] = FRAMES
            file[f"slow/{video}"] = FRAMES * 2
            file[f"fast/{video}"] = FRAMES.astype(np.float16)
        file["deep/er/than/that"] = FRAMES  # no layout of videos, so not looked at
    found = patterns_of(path)
    assert {pattern: sorted(entries) for pattern, entries in found.items()} == {
        pattern: ["a", "b", "c"] for pattern in ("*", "fast/*", "slow/*")
    }
    assert found["*"]["a"] == ((3, 4), 48, "") and found["fast/*"]["a"].num_bytes == 24
    np.testing.assert_array_equal(read(path, "b", "slow/*"), FRAMES * 2)
    assert read(path, "b", "fast/*").dtype == np.float16


def test_a_group_per_video(path):
    with h5py.File(path, "w") as file:
        for video in ("v1", "v2", "v3"):
            file[f"{video}/resnet"] = FRAMES
            file[f"{video}/slowfast"] = FRAMES + 1
    assert {pattern: list(entries) for pattern, entries in patterns_of(path).items()} == {
        pattern: ["v1", "v2", "v3"] for pattern in ("*/resnet", "*/slowfast")
    }
    np.testing.assert_array_equal(read(path, "v2", "*/slowfast"), FRAMES + 1)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"chunks": (2, 4)},
        {"compression": "gzip"},
        {"compression": "gzip", "shuffle": True, "fletcher32": True, "chunks": (2, 3)},
        {"compression": "lzf"},
        {"shuffle": True},
    ],
)
def test_ordinary_storage(path, options):
    with h5py.File(path, "w") as file:
        file.create_dataset("a", data=FRAMES, **options)
    np.testing.assert_array_equal(read(path), FRAMES)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (np.array([["x"]], dtype=h5py.string_dtype()), "holds object (objects, text or records), not numbers: refused"),
        (np.array([[(1, 2.0)]], dtype="i4,f4"), "not numbers: refused"),
        (np.array([[b"pickle"]], dtype="V6"), "not numbers: refused"),
        (np.ones(3), "has shape [3], not [frames, width]"),
        (h5py.Empty("f4"), "has shape [], not [frames, width]"),
        (np.ones((2, 3), dtype=np.complex64), "not numbers: refused"),
    ],
)
def test_a_bad_dataset_is_one_video(path, value, reason):
    with h5py.File(path, "w") as file:
        file["bad"], file["good"] = value, FRAMES
    entries = patterns_of(path)["*"]
    assert entries["good"].problem == "" and entries["bad"].problem.endswith(reason)
    with pytest.raises(ValueError, match="dataset 'bad'"):
        read(path, "bad")


def test_ragged_and_reference_types(path):
    with h5py.File(path, "w") as file:
        ragged = file.create_dataset("ragged", (1, 1), dtype=h5py.vlen_dtype(np.float32))
        ragged[0, 0] = np.ones(3, dtype=np.float32)
        file.create_dataset("reference", (1, 1), dtype=h5py.ref_dtype)
    assert all("not numbers: refused" in entry.problem for entry in patterns_of(path)["*"].values())


def refused(path, message):
    """Both ways in: listing what is there, and asking for a video that was listed before."""
    with pytest.raises(ValueError, match=message):
        patterns_of(path)
    with pytest.raises(ValueError, match=message):
        read(path)


@pytest.mark.parametrize("where", ["a", "group/a"])
@pytest.mark.parametrize("link", [h5py.SoftLink("/real"), h5py.ExternalLink("secret.h5", "/a")])
def test_links(path, tmp_path, link, where):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = FRAMES
    with h5py.File(path, "w") as file:
        file["real"] = FRAMES
        file[where] = link
    with pytest.raises(ValueError, match=r"'a' is a link to '(/real|secret\.h5)', and not data of this file: refused"):
        patterns_of(path)
    with pytest.raises(ValueError, match="and not data of this file: refused"):
        read(path, pattern=where.replace("a", "*"))


def test_a_group_behind_a_link(path, tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["inner/a"] = FRAMES
    with h5py.File(path, "w") as file:
        file["group"] = h5py.ExternalLink("secret.h5", "/inner")
    with pytest.raises(ValueError, match=r"'group' is a link to 'secret\.h5'"):
        patterns_of(path)
    with pytest.raises(ValueError, match=r"'group' is a link to 'secret\.h5'"):
        read(path, pattern="group/*")


def test_virtual_datasets(path, tmp_path):
    with h5py.File(tmp_path / "secret.h5", "w") as file:
        file["a"] = FRAMES
    layout = h5py.VirtualLayout(FRAMES.shape, "f4")
    layout[:] = h5py.VirtualSource(str(tmp_path / "secret.h5"), "a", FRAMES.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("a", layout)
    refused(path, "dataset 'a' takes its data from other files: refused")


def test_external_storage(path, tmp_path):
    (tmp_path / "secret").write_bytes(b"password" * 6)
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (3, 4), "f4", external=[(str(tmp_path / "secret"), 0, 48)])
    refused(path, "dataset 'a' takes its data from other files: refused")


def test_sizes_that_no_video_has(path):
    with h5py.File(path, "w") as file:
        file.create_dataset("a", (1 << 20, 4352), "f4", chunks=(1, 4352))  # nothing written: a few bytes on disk
        file.create_dataset("b", (2, 4), "f4", chunks=(1 << 28, 4), maxshape=(None, 4))
    assert "more than the limit" in patterns_of(path)["*"]["a"].problem
    with pytest.raises(ValueError, match=r"dataset 'a' is .* more than the limit"):
        read(path)
    with pytest.raises(ValueError, match=r"dataset 'b' has chunks of .* more than the limit"):
        read(path, "b")


@pytest.mark.parametrize(
    ("packed", "message"),
    [
        (zlib.compress(bytes(32 << 20)), "a chunk of dataset 'a' unpacks to more than its 48 bytes: refused"),
        (b"no zlib at all", "dataset 'a' is damaged"),
        (zlib.compress(FRAMES.tobytes())[:-12], "dataset 'a' is damaged"),
    ],
)
def test_a_chunk_that_unpacks_to_more_than_its_shape_or_not_at_all(path, packed, message):
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset("a", (3, 4), "f4", chunks=(3, 4), compression="gzip")
        dataset.id.write_direct_chunk((0, 0), packed)
    with pytest.raises(ValueError, match=message):
        read(path)


def test_packed_twice(path):
    with h5py.File(path, "w") as file:
        plist = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        plist.set_chunk((3, 4))
        plist.set_deflate(1)
        plist.set_deflate(9)
        space = h5py.h5s.create_simple((3, 4))
        h5py.h5d.create(file.id, b"a", h5py.h5t.IEEE_F32LE, space, plist)
    with pytest.raises(ValueError, match=r"packed by the filters \[1, 1\]; only gzip and lzf are read"):
        read(path)


def test_damaged_files(path):
    with h5py.File(path, "w") as file:
        file["a"] = np.ones((300, 40))
    assert is_hdf5(path)
    with open(path, "rb") as stream:
        data = stream.read()
    for cut in (100, len(data) // 2):
        with open(path, "wb") as stream:
            stream.write(data[:cut])
        with pytest.raises(ValueError, match=r"x\.h5: not a readable HDF5 file"):
            patterns_of(path)
    with open(path, "w") as stream:
        json.dump({}, stream)
    assert not is_hdf5(path)


@pytest.mark.parametrize("video", ["../a", "group/a", "", ".", "group", "none"])
def test_ids_that_are_no_dataset(path, video):
    with h5py.File(path, "w") as file:
        file["group/a"] = FRAMES
    with pytest.raises(ValueError, match=r"not in the file|no 'none' in the file|'group' is no dataset"):
        read(path, video)
