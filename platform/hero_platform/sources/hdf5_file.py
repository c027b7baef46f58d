"""Frame features in HDF5: numbers that stand in the file itself. Nothing it points to is opened (design D6)."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np

from hero_platform import files
from hero_platform.sources.decode import MAX_ARRAY_BYTES

_MAGIC = b"\x89HDF\r\n\x1a\n"
_DEFLATE, _SHUFFLE, _FLETCHER32, _LZF = 1, 2, 3, 32000  # filters that HDF5 and h5py bring along
_PACKINGS: tuple[list[int], ...] = (
    [],
    [_SHUFFLE],
    [_DEFLATE],
    [_SHUFFLE, _DEFLATE],
    [_LZF],
    [_SHUFFLE, _LZF],
)  # besides checksums


class Entry(NamedTuple):
    """What a file says about the features of one video."""

    shape: tuple[int, ...]
    num_bytes: int
    problem: str  # why they cannot be used; empty when they can


def is_hdf5(path: str) -> bool:
    """Whether a file begins as HDF5 does."""
    with open(path, "rb") as stream:
        return stream.read(len(_MAGIC)) == _MAGIC


@contextmanager
def open_hdf5(path: str) -> Iterator[Any]:
    """Open a file for reading.

    Raises:
        ValueError: it is damaged or truncated.
    """
    import h5py

    try:
        file = h5py.File(path, "r", locking=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise ValueError(f"{files.name_of(path)}: not a readable HDF5 file: {error}") from error
    with file:
        yield file


def patterns_of(path: str) -> dict[str, dict[str, Entry]]:
    """What a file holds: a pattern, in which `*` is the video's id, -> id -> its dataset.

    The patterns are `*` (datasets named by video), `GROUP/*` (groups of these) and `*/NAME` (a group per video). Where
    groups hold datasets, those that are more numerous, the groups or the names in them, are the videos.

    Raises:
        ValueError: the file is damaged, or refers to data outside of itself.
    """
    flat: dict[str, Entry] = {}
    nested: dict[tuple[str, str], Entry] = {}
    with open_hdf5(path) as file:
        try:
            for name in file:
                node = _follow(file, name)
                if _is_dataset(node):
                    flat[name] = _describe(node, name)
                for inner in node if _is_group(node) else ():
                    if _is_dataset(below := _follow(node, inner)):  # what is nested deeper is no video's
                        nested[name, inner] = _describe(below, f"{name}/{inner}")
        except (OSError, RuntimeError, KeyError, TypeError, OverflowError) as error:
            raise ValueError(f"{files.name_of(path)}: damaged HDF5: {error}") from error
        except ValueError as error:
            raise ValueError(f"{files.name_of(path)}: {error}") from error
    by_pattern: dict[str, dict[str, Entry]] = defaultdict(dict)
    by_pattern.update({"*": flat} if flat else {})
    groups, names = ({key[part] for key in nested} for part in (0, 1))
    for (group, name), entry in nested.items():
        if len(groups) > len(names):
            by_pattern[f"*/{name}"][group] = entry
        else:
            by_pattern[f"{group}/*"][name] = entry
    return dict(sorted(by_pattern.items()))


def read_frames(file: Any, pattern: str, video: str) -> np.ndarray:
    """The features [F, V] of one video.

    Raises:
        ValueError: they are not there, or cannot be used; the reason fits a reject.
    """
    if "/" in video or video in ("", "."):
        raise ValueError("not in the file")
    path = pattern.replace("*", video)
    try:
        node = file
        for name in path.split("/"):
            node = _follow(node, name)
        if not _is_dataset(node):
            raise ValueError(f"{path!r} is no dataset")
        if problem := _describe(node, path).problem:
            raise ValueError(problem)
        _check_chunks(node, path)
        frames: np.ndarray = node[()]
    except (OSError, RuntimeError, KeyError, TypeError, MemoryError, zlib.error) as error:
        raise ValueError(f"dataset {path!r} is damaged: {error}") from error
    return frames


def _follow(group: Any, name: str) -> Any:
    """What a group holds under a name.

    Raises:
        ValueError: it is not there, or somewhere else: links are not followed.
    """
    import h5py

    link = group.get(name, getlink=True) if _is_group(group) else None
    if link is None:
        raise ValueError(f"no {name!r} in the file")
    if not isinstance(link, h5py.HardLink):
        to = getattr(link, "filename", None) or getattr(link, "path", "")
        raise ValueError(f"{name!r} is a link to {to!r}, and not data of this file: refused")
    return group[name]


def _is_group(node: Any) -> bool:
    import h5py

    return isinstance(node, h5py.Group)


def _is_dataset(node: Any) -> bool:
    import h5py

    return isinstance(node, h5py.Dataset)


def _describe(node: Any, path: str) -> Entry:
    """Shape, size and problem of a dataset; nothing of it is read.

    Raises:
        ValueError: its data stand in another file.
    """
    if node.is_virtual or node.external:
        raise ValueError(f"dataset {path!r} takes its data from other files: refused")
    try:
        dtype = node.dtype
    except TypeError:
        return Entry((), 0, f"dataset {path!r} holds a type that is no number: refused")
    shape = node.shape
    if dtype.kind not in "iuf":
        return Entry((), 0, f"dataset {path!r} holds {dtype} (objects, text or records), not numbers: refused")
    if shape is None or len(shape) != 2:
        return Entry(shape or (), 0, f"dataset {path!r} has shape {list(shape or ())}, not [frames, width]")
    num_bytes = math.prod(shape) * dtype.itemsize
    too_large = f"dataset {path!r} is {num_bytes} bytes, more than the limit of {MAX_ARRAY_BYTES}"
    return Entry(shape, num_bytes, too_large if num_bytes > MAX_ARRAY_BYTES else "")


def _check_chunks(dataset: Any, path: str) -> None:
    """Raise ValueError unless every compressed chunk unpacks to at most its own size: HDF5 would go on to the end."""
    plist = dataset.id.get_create_plist()
    filters = [plist.get_filter(number)[0] for number in range(plist.get_nfilters())]
    if [number for number in filters if number != _FLETCHER32] not in _PACKINGS:
        raise ValueError(f"dataset {path!r} is packed by the filters {filters}; only gzip and lzf are read")
    if dataset.chunks is None:
        return
    most = math.prod(dataset.chunks) * dataset.dtype.itemsize
    if most > MAX_ARRAY_BYTES:
        raise ValueError(f"dataset {path!r} has chunks of {most} bytes, more than the limit of {MAX_ARRAY_BYTES}")
    if _DEFLATE in filters:
        chunks: list[Any] = []
        dataset.id.chunk_iter(chunks.append)
        for chunk in chunks:
            mask, packed = dataset.id.read_direct_chunk(chunk.chunk_offset)
            skipped = mask >> filters.index(_DEFLATE) & 1
            if not skipped and len(zlib.decompressobj().decompress(packed, most + 1)) > most:
                raise ValueError(f"a chunk of dataset {path!r} unpacks to more than its {most} bytes: refused")
