"""MSR-VTT: sentences about web clips. `videodatainfo.json`, the CSV list of the 1k-A test, or one JSON object a line.

`videodatainfo.json` is one object: "sentences", a list of `{sen_id, video_id, caption}`, and "videos", whose `split` is
train, validate or test. A CSV line: `key,vid_key,video_id,sentence`, after a header with these names. An object:
`sen_id` or `retrieval_key`, `video_id` or `clip_name`, `caption` or `sentence`. Sentences have no time span.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from hero_platform.corpora.base import Corpus, Row, cells, number, words
from hero_platform.sources.base import Annotation

_HEADER = ["key", "vid_key", "video_id", "sentence"]
_SPLITS = {"validate": "val"}


def _sentences(value: dict[str, Any]) -> list[Any] | None:
    """The sentences of `videodatainfo.json`, each with its video's split; None: it is no such file."""
    sentences = value.get("sentences")
    if not isinstance(sentences, list):
        return None
    listed = value.get("videos")
    if not isinstance(listed, list):
        return sentences
    split_of = {str(video.get("video_id")): video.get("split") for video in listed if isinstance(video, dict)}
    return [
        {**row, "split": split_of.get(str(row.get("video_id")), "")} if isinstance(row, dict) else row
        for row in sentences
    ]


def _convert(row: Row, split: str) -> Iterator[Annotation]:
    if isinstance(row.value, dict):
        name = number(row.value, "sen_id", "retrieval_key")
        video, text = words(row.value, "video_id", "clip_name"), words(row.value, "caption", "sentence")
        if "split" in row.value:  # videodatainfo.json holds all of them
            if not (own := row.value["split"]):
                raise ValueError(f"{video} is not among the file's videos")
            if _SPLITS.get(own, own) != split:
                return
    else:
        name, _, video, text = cells(row, 4)
        if [name, _, video, text] == _HEADER:
            return
    yield Annotation(kind="moments", split=split, id=name, video=video, text=text)


MSRVTT = Corpus(
    "msrvtt",
    "moments",
    _convert,
    licence="Apache-2.0 (the list of the 1k-A split)",
    interval_s=2.0,
    row_types=(list, dict),
    whole=_sentences,
)
