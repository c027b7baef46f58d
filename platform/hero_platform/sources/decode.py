"""Decoders for foreign files that can never execute anything (design D6): numbers and text only, sizes bounded.

Every failure, whatever the crafted or damaged input, is a ValueError with a reason that fits a reject.
"""

from __future__ import annotations

import io
import math
import re
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO

import numpy as np

MAX_TEXT_BYTES = 64 << 20  # one unpacked text record
MAX_ARRAY_BYTES = 2 << 30  # one feature array; a day of video at 1.5 s and 4352 float32 columns is 1 GB
# What zipfile, zlib and NumPy's header parser raise on damaged or crafted input, besides ValueError.
_DAMAGED_ZIP = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, tokenize.TokenError, OSError, EOFError, SyntaxError),
    *(RuntimeError, MemoryError, OverflowError, TypeError, KeyError, IndexError),
)
_NUMERIC = re.compile(r"[<>|=]?[iuf][1248]")


def is_text(text: str) -> bool:
    """Whether a name that came from bytes was UTF-8 (Python smuggles other bytes in as lone surrogates)."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


class _RefusedError(ValueError):
    """A value that decodes, but to something other than numbers and text."""


def unpack_text(value: bytes | memoryview) -> Any:
    """Decode an lz4 frame of msgpack with text, numbers, lists and maps (hero.md 5.1)."""
    import lz4.frame

    stream = lz4.frame.LZ4FrameDecompressor()
    try:
        data = stream.decompress(bytes(value), max_length=MAX_TEXT_BYTES)
    except (RuntimeError, EOFError, MemoryError) as error:
        raise ValueError(f"not a readable lz4 frame: {error}") from error
    if not stream.eof:
        raise ValueError(f"the lz4 frame is truncated, or larger than {MAX_TEXT_BYTES >> 20} MiB")
    return _unpack(data)


def unpack_array(value: bytes | memoryview, key: str) -> np.ndarray:
    """Decode the array under `key` of a msgpack map with msgpack-numpy arrays (hero.md 5.4)."""
    record = _unpack(value)
    array = record.get(key) if isinstance(record, dict) else None
    if not isinstance(array, np.ndarray):
        raise ValueError(f"no array {key!r} in the record")
    return array


def read_npz(data: bytes | memoryview | BinaryIO, names: Sequence[str]) -> dict[str, np.ndarray]:
    """Read these arrays of an `.npz`, and no others (files of old NumPy also hold one named `allow_pickle`)."""
    stream = io.BytesIO(data) if isinstance(data, bytes | memoryview) else data
    try:
        with zipfile.ZipFile(stream) as archive:
            return {name: _read_member(archive, name) for name in names}
    except _DAMAGED_ZIP as error:
        raise ValueError(f"not a readable .npz: {error or type(error).__name__}") from error


def npz_sizes(data: BinaryIO) -> dict[str, int]:
    """Name -> bytes once unpacked, of the arrays in an `.npz`; only its directory is read."""
    try:
        with zipfile.ZipFile(data) as archive:
            members = [member for member in archive.infolist() if member.filename.endswith(".npy")]
            return {member.filename.removesuffix(".npy"): member.file_size for member in members}
    except _DAMAGED_ZIP as error:
        raise ValueError(f"not a readable .npz: {error or type(error).__name__}") from error


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    try:
        member = archive.getinfo(f"{name}.npy")
    except KeyError:
        present = ", ".join(archive.namelist()[:5]) or "nothing"
        raise ValueError(f"no array {name!r} in the .npz, only {present}") from None
    if member.file_size > MAX_ARRAY_BYTES:
        raise ValueError(f"array {name!r} is {member.file_size} bytes, more than the limit of {MAX_ARRAY_BYTES}")
    with archive.open(member) as stream:
        shape, fortran_order, dtype = _read_header(stream, name)
        if dtype.kind not in "iuf":
            raise ValueError(f"array {name!r} holds {dtype} (objects or text), not numbers: refused")
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or size > MAX_ARRAY_BYTES:
            raise ValueError(f"array {name!r} claims the shape {shape}")
        content = stream.read(size + 1)
    if len(content) != size:
        raise ValueError(f"array {name!r} of shape {shape} needs {size} bytes, the file has {member.file_size}")
    return np.ndarray(shape, dtype, content, order="F" if fortran_order else "C")


def _read_header(stream: Any, name: str) -> tuple[tuple[int, ...], bool, np.dtype]:
    """Shape, Fortran order and dtype of a `.npy`; NumPy's own messages can hold memory addresses, so not those."""
    try:
        version = np.lib.format.read_magic(stream)
        reader = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
        return reader(stream)
    except (ValueError, KeyError, SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError):
        raise ValueError(f"array {name!r} has no readable .npy header") from None


def _unpack(data: bytes | memoryview) -> Any:
    import msgpack

    try:
        return msgpack.unpackb(data, raw=False, object_hook=_numpy_hook, ext_hook=_refuse_extension)
    except _RefusedError:
        raise
    except (ValueError, msgpack.UnpackException, TypeError, RecursionError) as error:
        raise ValueError(f"truncated or damaged msgpack: {error or type(error).__name__}") from error


def _refuse_extension(code: int, _: bytes) -> Any:
    raise _RefusedError(f"msgpack extension type {code}: refused")


def _numpy_hook(record: Mapping[Any, Any]) -> Any:
    """Turn msgpack-numpy's map into an array if it is numeric; its object arrays are pickles and are refused."""
    if b"nd" not in record:
        if b"complex" in record:
            raise _RefusedError("complex numbers in the record: refused")
        return record
    kind = record.get(b"kind", b"")
    dtype = record.get(b"type")
    dtype = dtype.decode("ascii", "replace") if isinstance(dtype, bytes) else dtype
    if kind not in (b"", "") or not isinstance(dtype, str) or not _NUMERIC.fullmatch(dtype):
        raise _RefusedError(f"an array of type {dtype!r} and kind {kind!r} (objects or records), not numbers: refused")
    shape = record.get(b"shape", []) if record[b"nd"] else []
    data = record.get(b"data")
    if not isinstance(data, bytes) or not all(isinstance(size, int) and size >= 0 for size in shape):
        raise _RefusedError("damaged msgpack-numpy array")
    if len(data) != math.prod(shape) * np.dtype(dtype).itemsize:
        raise _RefusedError(f"truncated array: shape {shape} of {dtype} does not fit {len(data)} bytes")
    return np.ndarray(tuple(shape), np.dtype(dtype), data)
