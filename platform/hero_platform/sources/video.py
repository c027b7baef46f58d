"""Films whose features were extracted, as a source: clips with their subtitles (the rest is in `video/`)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

from hero_platform import files
from hero_platform.sources.base import Annotation, Planned, RawVideo, Reject, Subtitle
from hero_platform.sources.splits import UNLISTED, read_splits
from hero_platform.sources.subtitle_files import decode_text, parse_cues
from hero_platform.store.media import Clip
from hero_platform.video.views import cut_clips
from hero_platform.video.work import Cue, FilmRecord, Work

_MAX_SUBTITLE_BYTES = 16 << 20


class _Place(NamedTuple):
    record: FilmRecord
    first: int  # interval
    last: int  # interval, exclusive


@dataclass(frozen=True)
class VideoSource:
    """Clips `<film>.<k>` of `clip_intervals` intervals (0: films are never cut); one that is one clip keeps its id."""

    root: str  # of the films
    work: Work
    records: tuple[FilmRecord, ...]
    rejects: tuple[Reject, ...]
    described: dict[str, Any]  # for the manifest
    width: int  # V
    chunk_intervals: int
    interval_s: float
    clip_intervals: int
    with_text: bool = True  # False: subtitles are left out
    splits: tuple[str, ...] = ()
    split: str = "train"  # of every video, where `splits` is empty

    def plan(self) -> tuple[list[Planned], list[Reject]]:
        """All clips, the films that are none, and the clips whose id is taken: `a.0` may be a film as well."""
        planned = [
            Planned(video, last - first, (last - first) * self.width * 4)
            for video, (_, first, last) in self._places.items()
        ]
        taken = [
            Reject(video, place.record.film.file, self._taken(place, self._places[video]))
            for video, place in self._all_places()
            if place != self._places[video]
        ]
        return planned, [*self.rejects, *taken]

    def read(self, ids: Sequence[str]) -> Iterator[RawVideo | Reject]:
        """Each clip with the subtitles that fall into it."""
        subtitles: dict[str, list[Subtitle]] = {}  # of the film that was read last: clips of a film stand together
        for video in ids:
            record, first, last = self._places[video]
            film = record.film
            try:
                if film.key not in subtitles:
                    subtitles = {film.key: self._subtitles(record) if self.with_text else []}
                frames = self.work.features(film, first, last, self.chunk_intervals)
            except (ValueError, OSError) as error:
                yield Reject(video, film.file, str(error))
                continue
            start_s, end_s = self._seconds(record, first, last)
            own = cut_subtitles(subtitles[film.key], start_s, end_s)
            yield RawVideo(video, self._split(video, film.id), end_s - start_s, self.interval_s, frames, own)

    def provenance(self) -> dict[str, Any]:
        """What was read, from where, and how it was encoded."""
        return self.described

    def annotations(self) -> Iterator[Annotation | Reject]:
        """None."""
        return iter(())

    def clips(self) -> Iterator[Clip]:
        """Which file, and which seconds of it, each clip is."""
        for video, (record, first, last) in self._places.items():
            yield Clip(video, record.film.file, *self._seconds(record, first, last))

    def _all_places(self) -> Iterator[tuple[str, _Place]]:
        for record in self.records:
            clips = cut_clips(record.intervals, self.clip_intervals)
            for number, (first, last) in enumerate(clips):
                video = record.film.id if len(clips) == 1 else f"{record.film.id}.{number}"
                yield video, _Place(record, first, last)

    @cached_property
    def _places(self) -> dict[str, _Place]:
        places: dict[str, _Place] = {}
        for video, place in self._all_places():
            places.setdefault(video, place)  # of two with one id the first
        return places

    def _taken(self, place: _Place, other: _Place) -> str:
        start_s, end_s = self._seconds(*place)
        return (
            f"duplicate id: its seconds {start_s:g} to {end_s:g} would be called as {other.record.film.file}, or a "
            "clip of that, already is: rename one of them"
        )

    def _seconds(self, record: FilmRecord, first: int, last: int) -> tuple[float, float]:
        end_s = record.duration_s if last == record.intervals else last * self.interval_s
        return round(first * self.interval_s, 6), round(end_s, 6)

    def _subtitles(self, record: FilmRecord) -> list[Subtitle]:
        """Those of the file beside a film, else those inside it, else what was heard."""
        film = record.film
        cues: Sequence[Cue | Subtitle]
        if film.sidecar:
            cues = read_sidecar(files.join(self.root, film.sidecar))
        else:
            cues = self.work.embedded(film) or self.work.heard(film) or []
        shown = [(start_s, min(end_s, record.duration_s), text) for start_s, end_s, text in cues]
        return in_order(cue for cue in shown if cue[0] < record.duration_s)

    def _split(self, video: str, film: str) -> str:
        return self._listed.get(video, self._listed.get(film, UNLISTED)) if self.splits else self.split

    @cached_property
    def _listed(self) -> dict[str, str]:
        return read_splits(self.splits)


def read_sidecar(path: str) -> list[Subtitle]:
    """The subtitles of an SRT or WebVTT file.

    Raises:
        ValueError: it cannot be read; the reason fits a reject.
    """
    try:
        if files.size_of(path) > _MAX_SUBTITLE_BYTES:
            raise ValueError(f"more than {_MAX_SUBTITLE_BYTES} bytes")
        return parse_cues(decode_text(files.read_bytes(path)))
    except ValueError as error:
        raise ValueError(f"its subtitles {files.name_of(path)}: {error}") from error


def in_order(cues: Iterable[Cue | Subtitle]) -> list[Subtitle]:
    """Subtitles by their start; several at the very same seconds (two people speak) become one."""
    merged: dict[tuple[float, float], list[str]] = {}
    for start_s, end_s, text in cues:
        merged.setdefault((start_s, end_s), []).append(text)
    return [Subtitle(*times, " ".join(texts)) for times, texts in sorted(merged.items(), key=lambda item: item[0])]


def cut_subtitles(subtitles: Sequence[Subtitle], start_s: float, end_s: float) -> list[Subtitle]:
    """Subtitles of a clip, in its own seconds: those whose middle lies in it, cut at its ends."""
    return [
        Subtitle(max(sub.start_s - start_s, 0.0), min(sub.end_s, end_s) - start_s, sub.text)
        for sub in subtitles
        if start_s <= (sub.start_s + sub.end_s) / 2 < end_s
    ]
