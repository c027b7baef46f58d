"""Archives unpacked so that nothing outside can be reached: regular files only, inside one scratch folder, bounded."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import shutil
import stat
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import PurePosixPath
from typing import IO, BinaryIO, NamedTuple

from hero_platform import files
from hero_platform.scratch import scratch

MAX_RATIO = 100  # bytes unpacked per byte of the archive: features shrink by 2 to 4, a bomb by a thousand
FREE_BYTES = 64 << 20  # allowed whatever the ratio
MAX_MEMBERS = 1_000_000
_SPARE_BYTES = 1 << 30  # left free on the disk
_CHUNK = 4 << 20
# What zipfile, tarfile and their decompressors raise on damaged or crafted input, besides ValueError.
_DAMAGED = (
    *(zipfile.BadZipFile, zipfile.LargeZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, OSError),
    *(RuntimeError, MemoryError, OverflowError, KeyError, IndexError),
)


class _Member(NamedTuple):
    name: str
    content: IO[bytes] | None  # None: a folder


@contextmanager
def unpacked(path: str) -> Iterator[str]:
    """A folder with what a `.zip` or (compressed) `.tar` holds, for the time of the block; a folder is given as it is.

    The scratch folder is under TMPDIR (default /tmp), and what a killed process left there goes at the next call.

    Raises:
        ValueError: nothing is there, it is no archive, or a damaged one; or it holds a path that leads out of it, a
            link, a device, the same name twice, or more than it may unpack to. One sentence.
    """
    if os.path.isdir(path):
        yield path
        return
    if files.is_remote(path) or not os.path.isfile(path):
        raise ValueError(f"{path}: no folder or archive on this machine")
    with scratch("hero-archive-", tempfile.gettempdir()) as folder:
        name = files.name_of(path)
        try:
            content = files.join(folder, "content")  # a name that says no version and no interval
            os.mkdir(content)
            members = _zip_members(path) if _is_zip(path) else _tar_members(path, content)
            _write(members, os.path.getsize(path), content)
        except _DAMAGED as error:
            raise ValueError(f"{name}: not a readable .tar or .zip: {error or type(error).__name__}") from error
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
        yield content


def _is_zip(path: str) -> bool:
    """By its first bytes: `zipfile.is_zipfile` also takes a tar whose last member is an `.npz`."""
    with open(path, "rb") as stream:
        return stream.read(4) in (b"PK\x03\x04", b"PK\x05\x06")


def _zip_members(path: str) -> Iterator[_Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            kind = stat.S_IFMT(info.external_attr >> 16)
            if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise ValueError(f"{info.filename!r} is a link or device: refused")
            with nullcontext() if info.is_dir() else archive.open(info) as content:
                yield _Member(info.filename, content)


def _tar_members(path: str, folder: str) -> Iterator[_Member]:
    with _opened(path) as stream, tarfile.open(fileobj=_Bounded(stream), mode="r:") as archive:  # type: ignore[call-overload]
        for info in archive:
            if not (info.isreg() or info.isdir()):
                raise ValueError(f"{info.name!r} is a link or device: refused")
            _place(folder, info.name)  # of folders too
            tarfile.data_filter(info, folder)
            with archive.extractfile(info) or nullcontext() as content:
                yield _Member(info.name, content)
        # tarfile takes a damaged or missing header for the end; the end itself is a block of zeros
        stream.seek(archive.offset)
        if stream.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise ValueError("the archive is truncated or damaged behind its last readable member")


def _opened(path: str) -> BinaryIO:
    """The tar inside a compressed file, by its first bytes."""
    with open(path, "rb") as stream:
        start = stream.read(6)
    packers = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ\x00": lzma.open}
    opener = next((opener for magic, opener in packers.items() if start.startswith(magic)), open)
    return opener(path, "rb")  # type: ignore[operator,no-any-return]


class _Bounded:
    """A stream that gives a little at a time: tarfile reads headers whole, however long they claim to be."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self.seek, self.tell, self.name = stream.seek, stream.tell, None

    def read(self, size: int) -> bytes:
        """At most a chunk."""
        if size > _CHUNK:
            raise ValueError(f"a header of {size:,} bytes: refused")
        return self._stream.read(size)


def _write(members: Iterator[_Member], archive_bytes: int, folder: str) -> None:
    """Copy members into the folder, counting what really comes out of them, not what their headers claim."""
    most = max(FREE_BYTES, MAX_RATIO * archive_bytes)
    spare = shutil.disk_usage(folder).free - _SPARE_BYTES
    total = 0
    for number, member in enumerate(members, start=1):
        if number > MAX_MEMBERS:
            raise ValueError(f"more than {MAX_MEMBERS:,} files: refused")
        place = _place(folder, member.name)
        if member.content is None:
            continue
        try:
            os.makedirs(os.path.dirname(place), exist_ok=True)
            target = open(place, "xb")
        except (FileExistsError, NotADirectoryError) as error:
            raise ValueError(f"{member.name!r} stands in it twice: refused") from error
        with target:
            while block := member.content.read(_CHUNK):
                total += len(block)
                if total > most:
                    raise ValueError(f"it unpacks to more than {MAX_RATIO} times its size: refused")
                if total > spare:
                    raise ValueError(f"it does not fit the disk of {folder}: unpack it yourself, or set TMPDIR")
                target.write(block)


def _place(folder: str, name: str) -> str:
    """Where a member goes; never outside the folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts or "\0" in name:
        raise ValueError(f"the path {name!r} leads out of it: refused")
    return os.path.join(folder, *path.parts)
