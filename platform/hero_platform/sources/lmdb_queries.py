"""Query and caption databases as annotations (hero.md 4.8, 5.3, 5.5), those of HERO and of VALUE.

The kind follows from the record: retrieval (TVR, How2R; YC2R and VATEX_EN_R without times), questions (TVQA, How2QA,
VLEP without a question), statements (VIOLIN), captions (TVC, YC2C, VATEX_EN_C). What a hidden split leaves out stays
unknown: the label, the times, the video of a query, the captions of a clip.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from hero_platform import files
from hero_platform.sources.base import Annotation, AnnotationKind, Reject
from hero_platform.sources.decode import unpack_text
from hero_platform.sources.lmdb_file import open_lmdb, sizes_of, value_of
from hero_platform.sources.splits import VIDEO_LISTS, named_path, read_json

_CAPTIONS, _CLIPS = "cap.db", "clip.db"  # inside a TVC folder
_ID_FILES = ("id2len.json", "cap2vid.json", "query2video.json", "clip2vid.json")  # the first that names ids gives them
_TEXTS = ("desc", "caption", "query", "sentence")  # where the query's text stands, by corpus


@dataclass(frozen=True)
class QueryDb:
    """One database and the split it holds."""

    split: str
    folder: str

    @classmethod
    def parse(cls, text: str) -> QueryDb:
        """From SPLIT=PATH, or PATH whose name ends in the split.

        A TVC folder stands for its captions, or for its clips where its split hides the captions.
        """
        split, path = named_path(text)
        captions, clips = files.join(path, _CAPTIONS), files.join(path, _CLIPS)
        if files.exists(captions) and (_ids(captions) or not files.exists(clips)):
            return cls(split, captions)
        return cls(split, clips if files.exists(clips) else path)

    @property
    def has_corpus(self) -> bool:
        """Whether its queries search the videos that it lists; False too where no record can be read."""
        if not any(files.exists(files.join(self.folder, name)) for name in VIDEO_LISTS):
            return False
        first = next((note for note in read_annotations(self) if isinstance(note, Annotation)), None)
        return first is not None and first.kind == "moments"

    def check(self) -> None:
        """Raise ValueError if no database is there."""
        with open_lmdb(self.folder):
            pass


def read_annotations(database: QueryDb) -> Iterator[Annotation | Reject]:
    """Every row of a database in the official order; a damaged one is a reject.

    Raises:
        ValueError: no database there.
    """
    where = f"{files.name_of(files.parent_of(database.folder))}/{files.name_of(database.folder)}"
    with open_lmdb(database.folder) as transaction:
        for key in _ids(database.folder) or list(sizes_of(transaction)):
            try:
                yield from _annotations(key, database, unpack_text(value_of(transaction, key)))
            except ValueError as error:
                yield Reject(key, where, str(error))


def _ids(folder: str) -> list[str]:
    """Ids in the order of the side file that lists them (for TVC id2len.json is empty and cap2vid.json does)."""
    for name in _ID_FILES:
        path = files.join(folder, name)
        listed = read_json(path) if files.exists(path) else {}
        if isinstance(listed, dict) and listed:
            return list(listed)
    return []


def _annotations(key: str, database: QueryDb, record: Any) -> list[Annotation]:
    """Tell the kind by the record's fields, or the database's name where a hidden split leaves them out."""
    split, folder = database.split, files.name_of(database.folder)
    try:
        if folder == _CLIPS:
            return _clip(key, split, record)
        if "q" in record or "events" in record or "a0" in record:
            return [_question(key, split, record)]
        if "label" in record or folder.startswith("violin"):
            return [Annotation("statements", split, key, label=_label(record.get("label")), **_text(record))]
        kind: AnnotationKind = "captions" if "clip_id" in record or folder == _CAPTIONS else "moments"
        start_s, end_s = _span(record.get("ts"), record.get("target"))
        return [
            Annotation(
                kind,
                split,
                key,
                start_s=start_s,
                end_s=end_s,
                spans=_spans(record.get("ts")),
                tag=str(record.get("type") or ""),
                group=str(record.get("clip_id", "")),
                **_text(record),
            )
        ]
    except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
        raise ValueError(f"damaged query record: {error!r}") from error


def _clip(key: str, split: str, record: dict[str, Any]) -> list[Annotation]:
    """The captions of a clip; one without a text, named by the clip, where the split hides them."""
    start_s, end_s = _span(record.get("ts"), None)
    captions = [
        (str(caption["id"]), str(caption["text"]), _token_ids(caption["input_ids"]))
        for caption in record.get("captions") or ()
    ]
    return [
        Annotation("captions", split, name, _video(record), text, tokens, start_s=start_s, end_s=end_s, group=key)
        for name, text, tokens in captions or [(key, "", [])]
    ]


def _text(record: dict[str, Any]) -> dict[str, Any]:
    text = next((record[name] for name in _TEXTS if name in record), None)
    if text is None:
        raise KeyError(f"none of {', '.join(_TEXTS)}")
    return {"video": _video(record), "text": str(text), "tokens": _token_ids(record["input_ids"])}


def _question(key: str, split: str, record: dict[str, Any]) -> Annotation:
    """TVQA and How2QA: a0, a1, ... behind q. VLEP: `events`, either of which may come next, and no question."""
    texts = record.get("events") or [record[f"a{k}"] for k in range(len(record)) if f"a{k}" in record]
    question, *answers = record["input_ids"] if "q" in record else [[], *record["input_ids"][-len(texts) :]]
    if len(answers) != len(texts):
        raise ValueError(f"{len(texts)} answers, but tokens of {len(answers)}")
    start_s, end_s = _question_span(record.get("ts"))
    return Annotation(
        kind="questions",
        split=split,
        id=key,
        video=_video(record),
        text=str(record.get("q", "")),
        tokens=_token_ids(question),
        start_s=start_s,
        end_s=end_s,
        answers=tuple(map(str, texts)),
        answers_tokens=[_token_ids(ids) for ids in answers],
        label=_label(record.get("target")),
    )


def _video(record: dict[str, Any]) -> str:
    video = next((record[name] for name in ("vid", "vid_name", "clip_name") if record.get(name) is not None), "")
    return str(video)


def _token_ids(ids: Any) -> list[int]:
    return [int(token) for token in ids]


def _label(value: Any) -> int | None:
    return None if value is None else int(value)


def _span(span: Any, target: Any) -> tuple[float, float]:
    """Seconds of a moment; NaN where hidden. Of several annotators' spans (DiDeMo) the target, else the commonest."""
    if spans := _spans(span):
        span = target if target and not isinstance(target[0], list) else Counter(spans).most_common(1)[0][0]
    if span is None:
        return math.nan, math.nan
    start_s, end_s = span
    return float(start_s), float(end_s)


def _spans(span: Any) -> tuple[tuple[float, float], ...]:
    """Seconds of several annotators' spans; empty where there is one or none."""
    if not span or not isinstance(span[0], list):
        return ()
    return tuple((float(start_s), float(end_s)) for start_s, end_s in span)


def _question_span(span: Any) -> tuple[float, float]:
    """Seconds of "start-end" or [start, end]; what does not parse has no span, as officially (hero.md 4.4)."""
    try:
        start_s, end_s = (float(part) for part in (span.split("-") if isinstance(span, str) else span))
    except (TypeError, ValueError):
        return math.nan, math.nan
    return start_s, end_s
