"""Crafted and damaged values give a reason and never run anything."""

import io
import os
import pickle
import zipfile

import lz4.frame
import msgpack
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hero_platform.sources.decode import npz_sizes, read_npz, unpack_array, unpack_text


class Bomb:
    """Unpickling it makes a folder."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return os.mkdir, (self.path,)


def npz(**arrays):
    stream = io.BytesIO()
    np.savez_compressed(stream, **arrays)
    return stream.getvalue()


def packed(array, **changes):
    """`{"features": array}` as msgpack-numpy writes it."""
    fields = {b"nd": True, b"type": array.dtype.str, b"kind": b"", b"shape": array.shape, b"data": array.tobytes()}
    fields |= {name.encode(): value for name, value in changes.items()}
    return msgpack.packb({"features": fields}, use_bin_type=True)


FEATURES = np.arange(12, dtype=np.float32).reshape(3, 4)


def test_the_bomb_is_live(tmp_path):
    pickle.loads(pickle.dumps(Bomb(tmp_path / "live")))
    assert (tmp_path / "live").exists()


def test_npz_with_pickled_objects_is_refused(tmp_path):
    data = npz(features=np.array([Bomb(tmp_path / "npz")], dtype=object))
    with pytest.raises(ValueError, match=r"holds object .* refused"):
        read_npz(data, ["features"])
    assert not (tmp_path / "npz").exists()


def test_msgpack_object_array_is_refused(tmp_path):
    bomb = np.array([Bomb(tmp_path / "msgpack")], dtype=object)
    for kind in (b"O", b""):
        data = packed(FEATURES, type="|O8", kind=kind, data=pickle.dumps(bomb))
        with pytest.raises(ValueError, match="refused"):
            unpack_array(data, "features")
    assert not (tmp_path / "msgpack").exists()


def test_msgpack_extension_is_refused(tmp_path):
    data = msgpack.packb({"features": msgpack.ExtType(42, pickle.dumps(Bomb(tmp_path / "ext")))})
    with pytest.raises(ValueError, match="extension type 42: refused"):
        unpack_array(data, "features")
    with pytest.raises(ValueError, match="refused"):
        unpack_text(lz4.frame.compress(data))
    assert not (tmp_path / "ext").exists()


def test_old_numpys_extra_array_is_left_alone(tmp_path):
    data = npz(features=FEATURES, allow_pickle=np.array(Bomb(tmp_path / "extra"), dtype=object))
    np.testing.assert_array_equal(read_npz(data, ["features"])["features"], FEATURES)
    assert not (tmp_path / "extra").exists()


@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f8", "<i8", "|u1"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_numeric_arrays_read_as_written(dtype, order):
    array = np.asarray(FEATURES, dtype=dtype, order=order)
    np.testing.assert_array_equal(read_npz(npz(features=array), ["features"])["features"], array)
    np.testing.assert_array_equal(unpack_array(packed(np.ascontiguousarray(array)), "features"), array)


def test_empty_arrays():
    empty = np.empty((0, 4), dtype=np.float32)
    assert read_npz(npz(features=empty), ["features"])["features"].shape == (0, 4)
    assert unpack_array(packed(empty), "features").shape == (0, 4)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"shape": [3, 5]}, "truncated array"),
        ({"data": b"123"}, "truncated array"),
        ({"shape": [1 << 62, 1 << 62]}, "truncated array"),
        ({"shape": [-3, -4]}, "damaged"),
        ({"shape": "34"}, "damaged"),
        ({"data": "text"}, "damaged"),
        ({"type": [["a", "<f4"]], "kind": b"V"}, "refused"),
        ({"type": "<M8[s]"}, "refused"),
        ({"type": "<c8"}, "refused"),
    ],
)
def test_crafted_msgpack_arrays(changes, reason):
    with pytest.raises(ValueError, match=reason):
        unpack_array(packed(FEATURES, **changes), "features")


def crafted_npz(content):
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("features.npy", content)
    return stream.getvalue()


def npy_header(text):
    body = text.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not numpy",
        b"\x93NUMPY\x09\x00",
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 4352), }"),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }"),
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }") + b"short",
        npy_header("__import__('os').mkdir('/tmp/never')"),
        npy_header("((((("),
        npy_header("{'descr': 'O', 'fortran_order': False, 'shape': (1,), }") + pickle.dumps(1),
    ],
)
def test_crafted_npy(content):
    with pytest.raises(ValueError, match="array 'features'"):
        read_npz(crafted_npz(content), ["features"])


def test_other_names_and_sizes():
    with pytest.raises(ValueError, match=r"no array 'features' in the .npz, only other.npy"):
        read_npz(npz(other=FEATURES), ["features"])
    assert npz_sizes(io.BytesIO(npz(features=FEATURES))) == {"features": FEATURES.nbytes + 128}
    with pytest.raises(ValueError, match=r"not a readable .npz"):
        npz_sizes(io.BytesIO(b"PK"))
    with pytest.raises(ValueError, match="no array 'features'"):
        unpack_array(msgpack.packb({"other": 1}), "features")
    with pytest.raises(ValueError, match="no array 'features'"):
        unpack_array(msgpack.packb([1]), "features")


def test_text_records():
    record = {"vid_name": "a", "input_ids": [[1], []], "name": "caf\u00e9", "start": 0.5, "none": None}
    data = lz4.frame.compress(msgpack.packb(record, use_bin_type=True))
    assert unpack_text(data) == record
    for damaged in (data[:-9], data[: len(data) // 2], b"", b"plain", data[:4] + b"\xff" * 20):
        with pytest.raises(ValueError, match="lz4"):
            unpack_text(damaged)
    with pytest.raises(ValueError, match="msgpack"):
        unpack_text(lz4.frame.compress(b"\xc1"))
    with pytest.raises(ValueError, match="msgpack"):
        unpack_text(lz4.frame.compress(msgpack.packb("caf\xe9").replace(b"\xc3\xa9", b"\xe9\xe9")))


def test_an_lz4_bomb_stops_at_the_limit(monkeypatch):
    monkeypatch.setattr("hero_platform.sources.decode.MAX_TEXT_BYTES", 1 << 16)
    with pytest.raises(ValueError, match="truncated, or larger"):
        unpack_text(lz4.frame.compress(bytes(1 << 20)))


@settings(max_examples=200, deadline=None)
@given(data=st.data(), form=st.sampled_from(["npz", "msgpack", "text"]))
def test_flipped_and_cut_bytes_only_ever_raise_value_error(data, form):
    values = {
        "npz": npz(features=FEATURES),
        "msgpack": packed(FEATURES),
        "text": lz4.frame.compress(msgpack.packb({"sub": [{"text": "hello", "start": 1.0}]})),
    }
    value = bytearray(values[form])
    for _ in range(data.draw(st.integers(1, 4))):
        value[data.draw(st.integers(0, len(value) - 1))] = data.draw(st.integers(0, 255))
    value = bytes(value[: data.draw(st.integers(0, len(value)))])
    readers = {
        "npz": lambda: read_npz(value, ["features"]),
        "msgpack": lambda: unpack_array(value, "features"),
        "text": lambda: unpack_text(value),
    }
    try:
        readers[form]()
    except ValueError as error:
        assert str(error)
