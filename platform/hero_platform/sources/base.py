"""What a source of videos is: the values it hands to the store builder, and the `Source` contract.

A source never raises for one bad video: it yields a `Reject` with the reason, which ends in the store's rejects file.
It raises `ValueError` with one clear sentence when the whole source is not what it claims to be (wrong folder, no
database there). Sources are picklable, cheap values: they hold paths and settings, and open files only inside `plan`,
`read` and `annotations`, so that Ray tasks can each have a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, Protocol, runtime_checkable

import numpy as np

from hero_platform.store.media import Clip

AnnotationKind = Literal["moments", "questions", "statements", "captions"]
"""moments: a text and its time span; questions: a text and answers; statements: a text, true or false; captions."""


class Subtitle(NamedTuple):
    """One subtitle: seconds from the video's start, and its text as written."""

    start_s: float
    end_s: float
    text: str


@dataclass(frozen=True)
class RawVideo:
    """One video as read, in one of two forms.

    Subtitles only: `token_ids` and `segment_frames` are None, and the builder aligns and tokenises. Already prepared (a
    released database): both are given and `subtitles`, `token_ids`, `segment_frames` have one entry per segment.
    Values are as found: the builder validates them (NaN, widths, times, ranges).
    """

    id: str
    split: str
    duration_s: float  # NaN where the source does not say; the builder then takes num_frames * interval_s
    interval_s: float  # seconds between frames
    frames: np.ndarray  # [F, V] float16 or float32
    subtitles: list[Subtitle] = field(default_factory=list)
    token_ids: list[list[int]] | None = None  # per segment, without special ids
    segment_frames: list[list[int]] | None = None  # per segment, frame indices inside this video, ascending


@dataclass(frozen=True)
class Reject:
    """A row left out of the store, and why."""

    id: str
    where: str  # file or database it came from
    reason: str  # one sentence


@dataclass(frozen=True)
class Planned:
    """A video that `read` is expected to give, with what is known about its size without reading its features."""

    id: str
    num_frames: int | None  # None where the source cannot tell cheaply
    bytes_hint: int  # size of its features in the source, for cutting shards


@dataclass(frozen=True)
class Annotation:
    """One example of a downstream task, tied to a video by its id.

    `tokens` and `answers_tokens` are None where the builder has to tokenise `text` and `answers`.
    """

    kind: AnnotationKind
    split: str
    id: str
    video: str  # empty where the split hides it
    text: str  # the query, question, statement or caption
    tokens: list[int] | None = None
    start_s: float = float("nan")  # NaN: the corpus has no time span or hides it
    end_s: float = float("nan")
    answers: tuple[str, ...] = ()
    answers_tokens: list[list[int]] | None = None
    label: int | None = None  # right answer, or 1 true / 0 false; None where hidden or meaningless
    spans: tuple[tuple[float, float], ...] = ()  # every annotator's span, where there are several (DiDeMo)
    tag: str = ""  # group by which results are reported (TVR: v, t or vt)
    group: str = ""  # what several annotations share (TVC: the id of the clip that captions describe)
    where: str = field(default="", compare=False)  # file and line it was read from, for rejects; not stored


@runtime_checkable
class Source(Protocol):
    """Where videos come from: databases, folders, generators."""

    def plan(self) -> tuple[list[Planned], list[Reject]]:
        """List every video in a stable order, without reading features, and those already known to be bad.

        Raises:
            ValueError: the source as a whole is unusable; one sentence.
        """

    def read(self, ids: Sequence[str]) -> Iterator[RawVideo | Reject]:
        """Give each of `ids`, in order, as a video or a reject. Called in parallel on copies of the source."""

    def provenance(self) -> dict[str, Any]:
        """JSON-ready facts for the manifest: what was read, from where, with which settings. Same input, same value."""

    def annotations(self) -> Iterator[Annotation | Reject]:
        """Downstream examples the source carries; nothing if it has none."""


@runtime_checkable
class FilmSource(Source, Protocol):
    """A source whose videos are seconds of video files."""

    def clips(self) -> Iterator[Clip]:
        """Where each video comes from; `provenance` names the media root."""
