"""What the API takes and gives, as its OpenAPI document describes it. Times are seconds from a video's start."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

MOST_CHARACTERS = 1000  # of a question
MOST_MOMENTS = 50


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


def _whole(value: Any) -> Any:
    """JSON has one kind of number: 3.0 is a whole one."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _readable(value: Any) -> Any:
    """Halves of UTF-16 pairs, which JSON can hold and no tokenizer reads, become the sign for what is unreadable."""
    return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace") if isinstance(value, str) else value


class Question(_Strict):
    """What is looked for."""

    question: Annotated[
        str, Field(min_length=1, max_length=MOST_CHARACTERS, description="a sentence"), BeforeValidator(_readable)
    ]
    top: Annotated[
        int, Field(strict=True, ge=1, le=MOST_MOMENTS, description="how many moments at most"), BeforeValidator(_whole)
    ] = 10


class Said(_Strict):
    """A subtitle."""

    start_s: float
    end_s: float
    text: str


class Film(_Strict):
    """Where a video can be played."""

    url: str
    start_s: float  # where the video starts in its film; 0 where a film is one video


class Found(_Strict):
    """A moment."""

    video: str
    start_s: float
    end_s: float
    score: float
    subtitles: list[Said]
    film: Film | None  # null: it is not known, or gone from this machine; S3 is not asked


class Probabilities(_Strict):
    """Where in a video a moment about the question starts and ends."""

    interval_s: float  # between frames
    start: list[float]  # probability of each frame
    end: list[float]


class Answers(_Strict):
    """The best moments of a question, best first."""

    question: str
    moments: list[Found]
    timelines: dict[str, Probabilities]  # by video
    checkpoint: str  # that answered
    search_ms: float


class Status(_Strict):
    """What is searched by what."""

    checkpoint: str
    store: str  # digest
    videos: int
    frames: int
    films: int  # videos whose films are known


class Token(_Strict):
    """What opens a session."""

    token: Annotated[str, Field(min_length=1, max_length=500)]


class Problem(_Strict):
    """Why there is no answer."""

    detail: str
