"""HERO's and VALUE's databases as a source: features, subtitles and queries in LMDB folders (hero.md 4.8, 5.1-5.6).

Features are read whole: cutting a video at `max_clip_len` is the tasks' business, so a store serves every setting. The
official reader's loss of the last frame at `max_clip_len=-1` is not reproduced (docs/data.md).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from hero_model.config import TextIds
from hero_platform import files
from hero_platform.sources.base import Annotation, Planned, RawVideo, Reject, Subtitle
from hero_platform.sources.decode import is_text, read_npz, unpack_array, unpack_text
from hero_platform.sources.lmdb_file import open_lmdb, sizes_of, value_of
from hero_platform.sources.lmdb_queries import QueryDb, read_annotations
from hero_platform.sources.splits import UNLISTED, content_of, describe_paths, read_json, read_splits
from hero_platform.sources.versions import width_problem
from hero_platform.store.align import Alignment, segment_times

_COMPRESSED = "_compressed"
_PROBES = 8  # videos of a wrong width after which it is the database that is wrong
_MAX_FRAMES = 1 << 31  # a frame's number beyond that is damage, whatever the video


class _WidthError(ValueError):
    """Features of another width than their version's."""


@dataclass(frozen=True)
class LmdbSource:
    """A feature database, with its subtitle database (None: no subtitles) and any query databases.

    `features` is the dataset's folder (`video_db/tv`, holding `<version>_<interval>[_compressed]`) or such an LMDB
    folder itself. `splits` are JSON lists of ids or query databases, as PATH (the name ends in the split) or
    SPLIT=PATH. Without them the retrieval databases among `queries` decide about the videos they list, since those are
    the corpora that are searched; then the subtitle database's vid2dur_idx.json; and if there is neither, every video
    is `train`.
    """

    features: str
    subtitles: str | None = None
    queries: tuple[str, ...] = ()  # PATH (the name ends in the split) or SPLIT=PATH
    splits: tuple[str, ...] = ()
    version: str = "resnet_slowfast"
    interval_s: float = 1.5
    compressed: bool | None = None  # None: whichever is there, uncompressed first

    def plan(self) -> tuple[list[Planned], list[Reject]]:
        """Ids of either database, sorted; those without features or without a subtitle record are rejects.

        Raises:
            ValueError: a database is missing, unreadable or truncated, or was made for another interval, or its frames
                are not as wide as those of the version it is named for.
        """
        self._check_settings()
        planned, rejects = [], []
        with open_lmdb(self._feature_folder) as transaction:
            sizes = sizes_of(transaction)
            sizes.pop("__keys__", None)  # not a video: a list that old versions of the official writer kept
            frame_bytes = self._bytes_per_frame(transaction, sizes)
        subtitled = self._subtitled()
        for video in sorted(sizes.keys() | subtitled | self._num_frames.keys()):
            if not is_text(video):
                rejects.append(Reject(ascii(video), self._where, "undecodable text: the id is not UTF-8"))
            elif video not in sizes:
                reason = " (listed in corrupted.json)" if video in self._corrupted else ""
                rejects.append(Reject(video, self._where, f"no features in the feature database{reason}"))
            elif self.subtitles is not None and video not in subtitled:
                rejects.append(Reject(video, self._where, "no record in the subtitle database"))
            else:
                num_frames = self._num_frames.get(video)
                planned.append(Planned(video, num_frames, (num_frames or 0) * frame_bytes or sizes[video]))
        return planned, rejects

    def read(self, ids: Sequence[str]) -> Iterator[RawVideo | Reject]:
        """Give each id as a video with its official tokens and alignment, or the reason why not."""
        with ExitStack() as stack:
            features = stack.enter_context(open_lmdb(self._feature_folder))
            subtitles = stack.enter_context(open_lmdb(self.subtitles)) if self.subtitles is not None else None
            for video in ids:
                try:
                    frames = self._frames(features, video)
                    yield self._video(video, frames, None if subtitles is None else value_of(subtitles, video))
                except ValueError as error:
                    yield Reject(video, self._where, str(error))

    def provenance(self) -> dict[str, Any]:
        """Names (not places) of the databases, the content of all but the features, and the settings."""
        return {
            "kind": "lmdb",
            "version": self.named_version,
            "features": f"{files.name_of(files.parent_of(self._feature_folder))}/{files.name_of(self._feature_folder)}",
            "subtitles": None if self.subtitles is None else files.name_of(self.subtitles),
            "subtitles_sha256": self._subtitle_content,
            "interval_s": self.interval_s,
            "queries": describe_paths(self.queries),
            "splits": describe_paths(self.splits),
        }

    def annotations(self) -> Iterator[Annotation | Reject]:
        """Every row of the query databases, in their order."""
        for query in self.queries:
            yield from read_annotations(QueryDb.parse(query))

    @cached_property
    def text_ids(self) -> TextIds:
        """Special ids from the subtitle database's meta.json; RoBERTa's where it is not there."""
        meta = _optional_json(self.subtitles, "meta.json")
        low, high = meta.get("v_range", (TextIds.random_low, TextIds.random_high))
        mask = int(meta.get("MASK", TextIds.mask))
        return TextIds(
            cls=int(meta.get("CLS", TextIds.cls)),
            pad=int(meta.get("PAD", TextIds.pad)),
            sep=int(meta.get("SEP", TextIds.sep)),
            mask=mask,
            vocab_size=mask + 1,  # the mask is the last id of RoBERTa's vocabulary
            random_low=int(low),
            random_high=int(high),
        )

    @cached_property
    def _feature_folder(self) -> str:
        return self.features if files.exists(files.join(self.features, "data.mdb")) else self._find_features()

    @property
    def named_version(self) -> str:
        """The version of the features that the folder's name says; empty where it has another form of name."""
        return "" if math.isnan(self._named[1]) else self._named[0]

    @cached_property
    def _named(self) -> tuple[str, float]:
        """Version and seconds of `<version>_<interval>`; NaN where the folder is not named so."""
        version, _, interval = files.name_of(self._feature_folder).removesuffix(_COMPRESSED).rpartition("_")
        try:
            return version, float(interval)
        except ValueError:
            return "", math.nan

    @property
    def _where(self) -> str:
        return files.name_of(self._feature_folder)

    def _find_features(self) -> str:
        """Find `<version>_<interval>[_compressed]`; the interval is written 2, 2.0 or 1.5 (hero.md 5.4)."""
        intervals = dict.fromkeys([f"{self.interval_s:g}", str(float(self.interval_s))])
        suffixes = ["", _COMPRESSED] if self.compressed is None else [_COMPRESSED if self.compressed else ""]
        names = [f"{self.version}_{interval}{suffix}" for suffix in suffixes for interval in intervals]
        for name in names:
            folder = files.join(self.features, name)
            if files.exists(files.join(folder, "data.mdb")):
                return folder
        present = ", ".join(files.listdir(self.features)[:8]) or "nothing"
        raise ValueError(f"{self.features}: no LMDB there named {' or '.join(names)}; the folder holds {present}")

    def _check_settings(self) -> None:
        """Raise ValueError for split files or query databases that cannot be used, and for another interval."""
        self._split("")
        for query in self.queries:
            QueryDb.parse(query).check()
        aligned_s = _optional_json(self.subtitles, "meta.json").get("frame_length")
        if aligned_s is not None and float(aligned_s) != self.interval_s:
            raise ValueError(
                f"{self.subtitles}: aligned at {aligned_s} s a frame, but features are read at {self.interval_s:g} s"
            )
        named_s = self._named[1]
        if not math.isnan(named_s) and named_s != self.interval_s:
            raise ValueError(f"{self._feature_folder}: named for {named_s:g} s a frame, not {self.interval_s:g} s")

    @cached_property
    def _count_file(self) -> str:
        """The file beside the features that says how many frames each video has; empty where there is none."""
        folder = files.parent_of(self._feature_folder)
        names = (f"id2nframe_{self.interval_s:g}.json", "id2nframe.json")
        return next((name for name in names if files.exists(files.join(folder, name))), "")

    @cached_property
    def _num_frames(self) -> dict[str, int]:
        """Frames per video from that file; empty where there is none, or it holds null (hero.md 5.4)."""
        path = files.join(files.parent_of(self._feature_folder), self._count_file)
        counts = read_json(path) if self._count_file else None
        if not isinstance(counts, dict | None):
            raise ValueError(f"{path}: not a JSON object of video -> number of frames")
        return {video: count for video, count in (counts or {}).items() if isinstance(count, int) and count >= 0}

    @cached_property
    def _corrupted(self) -> set[str]:
        path = files.join(files.parent_of(self._feature_folder), "corrupted.json")
        listed = read_json(path) if files.exists(path) else []
        return set(listed) if isinstance(listed, list) else set()

    @cached_property
    def _durations(self) -> dict[str, tuple[str, float]]:
        """Video -> (split, seconds) of vid2dur_idx.json."""
        splits = _optional_json(self.subtitles, "vid2dur_idx.json")
        try:
            return {
                video: (split, float(entry[0])) for split, listed in splits.items() for video, entry in listed.items()
            }
        except (AttributeError, TypeError, ValueError, IndexError, KeyError) as error:
            raise ValueError(f"{self.subtitles}/vid2dur_idx.json: not split -> video -> [seconds, index]") from error

    @cached_property
    def _subtitle_content(self) -> str | None:
        return None if self.subtitles is None else content_of(self.subtitles)

    @cached_property
    def _listed(self) -> dict[str, str]:
        """Video -> split, of `splits`, else of the retrieval databases."""
        if self.splits:
            return read_splits(self.splits)
        searched = [query for query in self.queries if QueryDb.parse(query).has_corpus]
        try:
            return read_splits(searched)
        except ValueError as error:
            raise ValueError(f"{error}: say which with --splits") from error

    def _subtitled(self) -> set[str]:
        if self.subtitles is None:
            return set()
        with open_lmdb(self.subtitles) as transaction:
            return set(sizes_of(transaction))

    def _split(self, video: str) -> str:
        if self._listed or self.splits or self._durations:
            known = None if self.splits else self._durations.get(video)
            return self._listed.get(video) or (known[0] if known else UNLISTED)
        return "train"

    def _bytes_per_frame(self, transaction: Any, sizes: Mapping[str, int]) -> int:
        """Bytes of one frame in memory, from the first video that can be read; 0 if none can.

        Raises:
            ValueError: the first few that can be read are not as wide as the version says.
        """
        problems: list[str] = []
        for video in sorted(sizes):
            try:
                frames = self._frames(transaction, video)
            except _WidthError as error:
                problems.append(str(error))
                if len(problems) == _PROBES:
                    break
            except ValueError:
                continue
            else:
                return frames.nbytes // max(len(frames), 1)
        if problems:
            raise ValueError(f"{self._feature_folder}: {problems[0]}")
        return 0

    def _frames(self, transaction: Any, video: str) -> np.ndarray:
        value = value_of(transaction, video)
        if bytes(value[:2]) == b"PK":
            frames = read_npz(value, ["features"])["features"]
        else:
            frames = unpack_array(value, "features")
        if frames.ndim != 2:
            raise ValueError(f"features have shape {list(frames.shape)}, not [frames, width]")
        if problem := width_problem(self.named_version, frames.shape[1]):
            raise _WidthError(problem)
        expected = self._num_frames.get(video, len(frames))
        if expected > len(frames):
            raise ValueError(
                f"length mismatch: {self._count_file} says {expected} frames, the features have {len(frames)}"
            )
        return frames[:expected]

    def _video(self, video: str, frames: np.ndarray, value: memoryview | None) -> RawVideo:
        seconds = self._durations.get(video, ("", math.nan))[1]
        raw = RawVideo(video, self._split(video), seconds, self.interval_s, frames)
        if value is None:
            return raw
        subtitles, tokens, owned = _parse_record(unpack_text(value), self.interval_s)
        return RawVideo(video, raw.split, seconds, self.interval_s, frames, subtitles, tokens, owned)


def _parse_record(record: Any, interval_s: float) -> tuple[list[Subtitle], list[list[int]], list[list[int]]]:
    """Segments of a subtitle record: texts and times, tokens, frames (hero.md 5.2).

    Raises:
        ValueError: a field is missing or has another form.
    """
    try:
        subtitles = [Subtitle(float(sub["start"]), float(sub["end"]), str(sub["text"])) for sub in record["sub"]]
        tokens = [[int(token) for token in ids] for ids in record["input_ids"]]
        numbers = [int(number) for number, _ in record["unique_sub2frames"]]
        owned = [[int(frame) for frame in frames] for _, frames in record["unique_sub2frames"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"damaged subtitle record: {error!r}") from error
    if numbers != list(range(len(tokens))):
        raise ValueError(f"damaged subtitle record: {len(tokens)} token lists, frames for {len(numbers)} subtitles")
    if not subtitles:  # pseudo-segments have frames and no text; their times follow from the frames
        flat = [frame for frames in owned for frame in frames]
        offsets = np.cumsum([0, *map(len, owned)])
        if not all(owned) or not 0 <= min(flat, default=0) <= max(flat, default=0) < _MAX_FRAMES:
            raise ValueError("damaged subtitle record: a segment without subtitle and without frames of a video")
        alignment = Alignment(frames=np.array(flat, dtype=np.int64), offsets=offsets)
        subtitles = [Subtitle(start_s, end_s, "") for start_s, end_s in segment_times(alignment, interval_s)]
    return subtitles, tokens, owned


def _optional_json(folder: str | None, name: str) -> dict[str, Any]:
    """A JSON object beside a database; empty where it is not there."""
    if folder is None or not files.exists(files.join(folder, name)):
        return {}
    value = read_json(files.join(folder, name))
    if not isinstance(value, dict):
        raise ValueError(f"{folder}/{name}: not a JSON object")
    return value
