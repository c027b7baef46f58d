import math
from dataclasses import replace

import numpy as np
import pytest

from hero_platform.sources.base import RawVideo, Reject, Subtitle
from hero_platform.store.rows import RowRules, VideoRow, make_row
from hero_platform.store.tokens import TokenizerSpec

RULES = RowRules(4, "float16", TokenizerSpec.of_words(["a", "b"]))
GOOD = RawVideo(
    "v", "train", float("nan"), 1.5, np.ones((6, 4), np.float32), [Subtitle(0, 2, "a"), Subtitle(2, 5, "b a")]
)
PREPARED = replace(GOOD, token_ids=[[4], [5, 4]], segment_frames=[[0], [1, 2, 3]])


def bad(value):
    frames = np.ones((6, 4), np.float32)
    frames[2, 1] = value
    return frames


def row_of(raw, rules=RULES):
    row = make_row(raw, rules, "here")
    assert isinstance(row, VideoRow), row
    return row


def test_good_row_is_aligned_and_tokenised():
    row = row_of(GOOD)
    assert row.frames.dtype == np.float16
    assert row.tokens == [[4], [5, 4]]
    assert row.segment_frames == [[0], [1, 2, 3]]
    assert row.duration_s == 9.0
    assert row_of(PREPARED).segment_frames == [[0], [1, 2, 3]]


def test_video_without_subtitles_gets_pseudo_segments_of_five_frames():
    row = row_of(replace(GOOD, subtitles=[]))
    assert row.segment_frames == [[0, 1, 2, 3, 4], [5]]
    assert row.tokens == [[], []]
    assert list(row.segments) == [Subtitle(0, 7.5, ""), Subtitle(7.5, 9, "")]


def test_ordinary_overlap_is_no_fault():
    """Television subtitles overlap: the golden data holds chains of three and one inside another."""
    times = [(0.2, 5.0), (1.0, 6.0), (3.0, 8.0), (3.0, 3.5)]
    row = row_of(replace(GOOD, subtitles=[Subtitle(start, end, "a") for start, end in times]))
    assert sorted(frame for owned in row.segment_frames for frame in owned) == list(range(6))


def test_float32_is_kept_on_request():
    rules = replace(RULES, dtype="float32")
    assert row_of(replace(GOOD, frames=bad(1e6)), rules).frames[2, 1] == 1e6


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"frames": np.ones((0, 4), np.float32)}, "empty video"),
        ({"frames": np.ones((6, 5), np.float32)}, "5 wide, the store is 4"),
        ({"frames": np.ones(6, np.float32)}, "shape"),
        ({"frames": np.ones((6, 4), np.int64)}, "int64"),
        ({"frames": bad(np.nan)}, "NaN or Inf in the features of frame 2"),
        ({"frames": bad(-np.inf)}, "NaN or Inf in the features of frame 2"),
        ({"frames": bad(1e6)}, "outside the range of float16"),
        ({"interval_s": 0.0}, "interval"),
        ({"interval_s": math.nan}, "interval"),
        ({"duration_s": -1.0}, "duration"),
        ({"duration_s": math.inf}, "duration"),
        ({"duration_s": 20.0}, "length mismatch"),
        ({"id": "v\udc80"}, "undecodable"),
        ({"subtitles": [Subtitle(20, 22, "a")]}, "length mismatch"),
        ({"subtitles": [Subtitle(-1, 2, "a")]}, "negative"),
        ({"subtitles": [Subtitle(3, 2, "a")]}, "before its start"),
        ({"subtitles": [Subtitle(math.nan, 2, "a")]}, "not a time"),
        ({"subtitles": [Subtitle(2, 4, "a"), Subtitle(1, 2, "b")]}, "before the one above"),
        ({"subtitles": [Subtitle(2, 4, "a"), Subtitle(2, 4, "b")]}, "overlapping times"),
        ({"subtitles": [Subtitle(0, 2, "a\udcff")]}, "undecodable text in subtitle 1"),
        ({"subtitles": [Subtitle(0, 2, "a " * 600)]}, "600 tokens"),
    ],
)
def test_bad_row_is_rejected_with_its_reason(change, reason):
    row = make_row(replace(GOOD, **change), RULES, "here")
    assert isinstance(row, Reject)
    assert row.where == "here"
    assert reason in row.reason


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"segment_frames": [[0], [1, 6]]}, "length mismatch: segment 1 refers to frame 6 of 6"),
        ({"segment_frames": [[0, 1], [1, 2]]}, "overlapping times: frame 1"),
        ({"segment_frames": [[1, 0], [2]]}, "ascending"),
        ({"segment_frames": [[-1], [2]]}, "length mismatch"),
        ({"segment_frames": [[0]]}, "differ in number"),
        ({"segment_frames": None}, "differ in number"),
        ({"token_ids": [[4], [99]]}, "outside"),
        ({"token_ids": [[4], [-1]]}, "outside"),
    ],
)
def test_bad_prepared_row_is_rejected(change, reason):
    row = make_row(replace(PREPARED, **change), RULES, "here")
    assert isinstance(row, Reject)
    assert reason in row.reason
