"""Local and S3 paths behind one set of functions; writes are atomic: a reader sees the old file, the new one or none.

A path is a plain string or `Path` (local) or an `s3://bucket/key` URL. Credentials, region and endpoint come from the
environment (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL`, ...) or the instance role, never from a config (design D11).
Whatever is wrong with a place is an OSError.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import gettempdir
from typing import Any, BinaryIO, NamedTuple

from hero_platform import transfer
from hero_platform.credentials import check_address
from hero_platform.scratch import scratch

TEMP_SUFFIX = ".partial"
FRESH_S = 2.0  # a file that was written since may have a writer on another machine
_CHUNK = 4 << 20  # bytes read at a time when hashing or copying


def is_full(error: BaseException | None) -> bool:
    """Whether an exception, or what caused it, is a disk, a quota or a file size at its limit."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            return True
        error = error.__cause__
    return False


def is_remote(path: str | os.PathLike[str]) -> bool:
    """Whether `path` is a URL (`s3://...`) and not a place on this machine."""
    return "://" in os.fspath(path)


def join(root: str | os.PathLike[str], *parts: str) -> str:
    """Append `parts` to a local path or a URL."""
    return "/".join([os.fspath(root).rstrip("/") or "/", *(part.strip("/") for part in parts)])


def name_of(path: str | os.PathLike[str]) -> str:
    """Last component of a path or URL."""
    return os.fspath(path).rstrip("/").rsplit("/", 1)[-1]


def parent_of(path: str | os.PathLike[str]) -> str:
    """Everything before the last component of a path or URL (`.` for a bare local name)."""
    text = os.fspath(path).rstrip("/")
    return text.rsplit("/", 1)[0] or "/" if "/" in text else "."


def filesystem(path: str | os.PathLike[str]) -> tuple[Any, str]:
    """Return the fsspec file system of `path` and the path inside it. Listings are never cached: others write too.

    Names are taken as they are, `::` too, which fsspec's own `url_to_fs` takes for a chain of file systems.

    Raises:
        ValueError: a URL holds a user or a password, or no file system has its scheme.
    """
    import fsspec

    text = os.fspath(path)
    if not is_remote(text):
        fs = fsspec.filesystem("file")
        return fs, fs._strip_protocol(text)
    check_address(text)
    fs = fsspec.filesystem(text.split("://", 1)[0], use_listings_cache=False)
    transfer.watch(fs)
    return fs, fs._strip_protocol(text)


def exists(path: str | os.PathLike[str]) -> bool:
    """Whether a file or folder is there."""
    if not is_remote(path):
        return os.path.exists(path)
    with _reached(path) as (fs, inner):
        return bool(fs.exists(inner))


def size_of(path: str | os.PathLike[str]) -> int:
    """Bytes of a file. Raises FileNotFoundError when it is not there."""
    if not is_remote(path):
        return os.path.getsize(path)
    with _reached(path) as (fs, inner):
        return int(fs.size(inner))


def listdir(path: str | os.PathLike[str]) -> list[str]:
    """Sorted names directly under a folder; empty when the folder is not there."""
    if not is_remote(path):
        return sorted(os.listdir(path)) if os.path.isdir(path) else []
    with _reached(path) as (fs, inner):
        try:
            entries = fs.ls(inner, detail=False)
        except FileNotFoundError:
            return []
    # a zero-byte key for the folder itself lists under its own name
    return sorted({name_of(entry) for entry in entries if entry.rstrip("/") != inner.rstrip("/")})


def makedirs(path: str | os.PathLike[str]) -> None:
    """Create a local folder and its parents; S3 has no folders, so nothing happens there."""
    if not is_remote(path):
        os.makedirs(path, exist_ok=True)


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Whole content of a file. Raises FileNotFoundError when it is not there."""
    if not is_remote(path):
        return Path(path).read_bytes()
    with _reached(path) as (fs, inner):
        return bytes(fs.cat_file(inner))


def read_range(path: str | os.PathLike[str], start: int, stop: int) -> bytes:
    """Bytes `start .. stop - 1` of a file, fewer where it ends before. Raises FileNotFoundError if it is not there."""
    if not is_remote(path):
        with open(path, "rb") as stream:
            stream.seek(start)
            return stream.read(stop - start)
    with _reached(path) as (fs, inner):
        return bytes(fs.cat_file(inner, start=start, end=stop))


def open_read(path: str | os.PathLike[str]) -> BinaryIO:
    """Open a file for reading in parts. Raises FileNotFoundError when it is not there."""
    if not is_remote(path):
        return open(path, "rb")
    with _reached(path) as (fs, inner):
        stream: BinaryIO = fs.open(inner, "rb", block_size=_CHUNK)
    return stream


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a whole file atomically and durably."""
    if is_remote(path):
        with _reached(path) as (fs, inner):
            transfer.write(fs, inner, data)
        return
    with staged(path) as local:
        local.write_bytes(data)


def read_json(path: str | os.PathLike[str]) -> Any:
    """Parse a JSON file. Raises ValueError naming the file when it is not JSON."""
    try:
        return json.loads(read_bytes(path))
    except ValueError as error:  # JSONDecodeError and UnicodeDecodeError
        raise ValueError(f"{os.fspath(path)} is not valid JSON: {error}") from error


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    write_bytes(path, (json.dumps(value, indent=2) + "\n").encode())


@contextmanager
def staged(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a local file to write; when the block succeeds it becomes `path` (synced and renamed, or uploaded to S3).

    When the block raises, nothing appears at `path` and the temporary file is removed.
    """
    if is_remote(path):
        with scratch("hero-upload-", gettempdir()) as folder:
            local = Path(folder) / name_of(path)
            yield local
            with _reached(path) as (fs, inner):
                transfer.upload(fs, str(local), inner)
        return
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    local = target.with_name(f".{target.name}.{os.getpid()}-{secrets.token_hex(4)}{TEMP_SUFFIX}")
    try:
        yield local
        _sync(local)
        os.replace(local, target)
        _sync(target.parent)
    finally:
        local.unlink(missing_ok=True)


def remove(path: str | os.PathLike[str]) -> None:
    """Remove one file; nothing happens when it is not there."""
    if not is_remote(path):
        Path(path).unlink(missing_ok=True)
        return
    with _reached(path) as (fs, inner):
        if fs.exists(inner):
            fs.rm_file(inner)


def remove_partial(folder: str | os.PathLike[str], *, shared: bool = False) -> None:
    """Remove what killed writers left behind in a local folder; on S3 `jobs.clean --cache partial` does.

    In a folder that is `shared` with other writers, what a living process may be writing stays.
    """
    if is_remote(folder):
        return
    for path in (join(folder, name) for name in listdir(folder)):
        if _is_partial(path) and not (shared and _is_being_written(path, FRESH_S)):
            remove(path)


def is_left_behind(path: str, silent_s: float) -> bool:
    """Whether a local file is what a killed writer left: its process is gone, and it did not change for so long."""
    return _is_partial(path) and not _is_being_written(path, silent_s)


def _is_partial(path: str) -> bool:
    return name_of(path).startswith(".") and path.endswith(TEMP_SUFFIX)


def _is_being_written(path: str, fresh_s: float) -> bool:
    """Whether a temporary file's writer lives: here, or, on a disk that others share, perhaps elsewhere."""
    with suppress(OSError, ValueError):
        pid = int(name_of(path).removesuffix(TEMP_SUFFIX).rsplit(".", 1)[1].split("-")[0])
        return pid != os.getpid() and (os.path.exists(f"/proc/{pid}") or time.time() - os.stat(path).st_mtime < fresh_s)
    return False


def rename(path: str, new: str) -> None:
    """Give a local file or folder another name beside its own, durably."""
    os.rename(path, new)
    _sync(Path(new).parent)


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a folder and all in it; nothing happens when it is not there."""
    if not is_remote(path):
        if os.path.isdir(path):
            shutil.rmtree(path)
        return
    with _reached(path) as (fs, inner):
        if fs.exists(inner):
            fs.rm(inner, recursive=True)


def tree(path: str | os.PathLike[str]) -> list[str]:
    """Sorted paths of all files under a folder, relative to it; empty when the folder is not there."""
    return sorted(entries(path))


class Entry(NamedTuple):
    """What a listing says of a file."""

    bytes: int
    changed_s: float  # wall clock of its last change, seconds since 1970


def entries(path: str | os.PathLike[str]) -> dict[str, Entry]:
    """All files under a folder by their path relative to it; on S3 a request for each thousand of them."""
    if not is_remote(path):
        return dict(_walk(os.fspath(path)))
    with _reached(path) as (fs, inner):
        found = fs.find(inner, detail=True) if fs.exists(inner) else {}
    prefix = inner.rstrip("/") + "/"
    return {
        file.removeprefix(prefix): _entry(info)
        for file, info in found.items()
        if file != inner and not file.endswith("/")
    }


def entry_of(path: str | os.PathLike[str]) -> Entry:
    """Size and last change of one file. Raises FileNotFoundError when no file is there, or something else is."""
    if not is_remote(path):
        found = os.stat(path)
        if stat.S_ISREG(found.st_mode):
            return Entry(found.st_size, found.st_mtime)
    else:
        with _reached(path) as (fs, inner):
            info = fs.info(inner)
        if info["type"] == "file":
            return _entry(info)
    raise FileNotFoundError(errno.ENOENT, "no file", os.fspath(path))


def _entry(info: dict[str, Any]) -> Entry:
    """What a remote file system says of a file. One in memory, as in tests, has other names, and two kinds of times."""
    changed = info["LastModified"] if "LastModified" in info else info["created"]
    return Entry(int(info["size"]), changed if isinstance(changed, float) else changed.timestamp())


def _walk(root: str) -> Iterator[tuple[str, Entry]]:
    for folder, _, names in os.walk(root):
        for path in (os.path.join(folder, name) for name in names):
            with suppress(FileNotFoundError):  # removed meanwhile
                found = os.stat(path)
                yield os.path.relpath(path, root), Entry(found.st_size, found.st_mtime)


def copy_file(src: str | os.PathLike[str], dest: str | os.PathLike[str]) -> None:
    """Copy one file between any two places; `dest` appears whole or not at all."""
    with staged(dest) as local:
        if is_remote(src):
            download(src, local, size_of(src))
        else:
            shutil.copyfile(src, local)


def copy_tree(src: str | os.PathLike[str], dest: str | os.PathLike[str]) -> None:
    """Copy every file under `src` to `dest`, each atomically, in sorted order. Raises FileNotFoundError on no `src`."""
    names = tree(src)
    if not names and not exists(src):
        raise FileNotFoundError(f"nothing to copy at {os.fspath(src)}")
    for name in names:
        copy_file(join(src, name), join(dest, name))


def download(path: str | os.PathLike[str], local: Path, num_bytes: int) -> str:
    """Write a URL's first `num_bytes` to a local file, over what it holds; returns their hex SHA-256."""
    digest = hashlib.sha256()
    with open(local, "r+b" if local.exists() else "wb") as sink, _reached(path) as (fs, inner):
        for part in transfer.parts(fs, inner, num_bytes):
            sink.write(part)
            digest.update(part)
    return digest.hexdigest()


def sha256_file(path: str | os.PathLike[str]) -> str:
    """Hex SHA-256 of a file, read in blocks; on S3 several requests at once."""
    digest = hashlib.sha256()
    if is_remote(path):
        with _reached(path) as (fs, inner):
            for part in transfer.parts(fs, inner, int(fs.size(inner))):
                digest.update(part)
        return digest.hexdigest()
    with open_read(path) as stream:
        while block := stream.read(_CHUNK):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def _reached(path: str | os.PathLike[str]) -> Iterator[tuple[Any, str]]:
    """The file system of a URL and the path inside it, for one call.

    Raises:
        ConnectionError: it is out of reach, which s3fs leaves to the errors of its transport: those are no OSError.
    """
    try:
        yield filesystem(path)
    except Exception as error:
        if type(error).__module__.startswith(("botocore.", "aiobotocore.")):
            raise ConnectionError(f"{os.fspath(path)}: {error}") from error
        raise


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk, so that a rename survives a power cut."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
