"""TVC: captions of moments of TV clips (github.com/jayleicn/TVCaption). `tvc_<split>_release.jsonl`.

The file is also the metrics' reference. A row is a moment: `clip_id`, `vid_name`, `ts` [start, end] in seconds and
`descs`, a list of `{desc, desc_id, type}`. Each caption is an annotation; `group` is the moment they describe. A moment
of a hidden split has no caption: it becomes one annotation without a text, named by its clip.
"""

from __future__ import annotations

from collections.abc import Iterator

from hero_platform.corpora.base import Corpus, Row, number, seconds, words
from hero_platform.sources.base import Annotation


def _convert(row: Row, split: str) -> Iterator[Annotation]:
    value = row.value
    group, video = number(value, "clip_id"), words(value, "vid_name")
    start_s, end_s = seconds(value["ts"])
    captions = [
        (number(caption, "desc_id"), words(caption, "desc"), str(caption.get("type") or ""))
        for caption in value.get("descs") or ()
    ]
    for name, text, tag in captions or [(group, "", "")]:
        yield Annotation("captions", split, name, video, text, start_s=start_s, end_s=end_s, tag=tag, group=group)


TVC = Corpus("tvc", "captions", _convert, licence="MIT")
