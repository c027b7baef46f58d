"""Frames to subtitles: the documented examples, a slow restatement of the rule as oracle, and the real sample."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hero_platform.store.align import align, check_times, pseudo_segments, segment_times

REAL = Path(__file__).parents[4] / "shared" / "real"


def slow(times, num_frames, interval_s):
    """The rule of hero.md 5.2, frame by frame."""
    owned = [[] for _ in times]
    ranges = []
    for number, (start, end) in enumerate(times):
        start, end = float(np.float32(start)), float(np.float32(end))
        first, last = math.floor(start / interval_s), math.ceil(end / interval_s)
        video_end = num_frames * interval_s
        if number == len(times) - 1 and min(end, video_end) - start > 16:
            last = first + 11
        if start >= video_end:
            last = first
        ranges.append((first, last, start / interval_s, end / interval_s))
    for frame in range(num_frames):
        best, best_overlap = None, -1.0
        for number, (first, last, a, b) in enumerate(ranges):
            overlap = max(0.0, min(b, frame + 1) - max(a, frame)) / (max(b, frame + 1) - min(a, frame))
            if first <= frame < last and overlap > best_overlap:
                best, best_overlap = number, overlap
        if best is not None:
            owned[best].append(frame)
    return owned


def test_reference_example():
    times = [(0.862, 1.862), (1.9, 4.0), (4.1, 4.4), (9.1, 30.4)]
    assert align(times, 14, 1.5).lists() == [[0], [1, 2], [], [6, 7, 8, 9, 10, 11, 12, 13]]


def test_long_last_subtitle_competes_for_eleven_frames_only():
    assert align([(0.0, 40.0)], 30, 1.5).lists() == [list(range(11))]
    assert align([(0.0, 40.0)], 10, 1.5).lists() == [list(range(10))]  # cut to the video it is 15 s
    assert align([(0.0, 40.0), (41.0, 42.0)], 30, 1.5).lists()[0] == list(range(27))  # not the last


def test_subtitle_after_the_end_owns_nothing():
    assert align([(1.0, 2.0), (15.0, 16.0)], 10, 1.5).lists() == [[0, 1], []]


def test_equal_overlap_goes_to_the_first():
    assert align([(0.0, 1.0), (0.0, 1.0)], 1, 1.0).lists() == [[0], []]


def test_no_subtitles():
    assert align([], 7, 1.5).lists() == []
    assert pseudo_segments(8).lists() == [[0, 1, 2, 3, 4], [5, 6, 7]]
    assert pseudo_segments(5).lists() == [[0, 1, 2, 3, 4]]
    assert segment_times(pseudo_segments(8), 1.5) == [(0.0, 7.5), (7.5, 12.0)]


@st.composite
def tracks(draw):
    """Subtitle times in hundredths: overlaps, gaps, ties, empty ones, some after the end."""
    starts = sorted(draw(st.lists(st.integers(0, 4000), max_size=12)))
    return [(start / 100, (start + draw(st.integers(0, 2500))) / 100) for start in starts]


@settings(max_examples=300, deadline=None)
@given(times=tracks(), num_frames=st.integers(1, 30), interval_s=st.sampled_from([1.0, 1.5, 2.0, 0.64]))
def test_equals_the_rule_stated_slowly(times, num_frames, interval_s):
    found = align(times, num_frames, interval_s)
    assert found.lists() == slow(times, num_frames, interval_s)
    assert len(found.offsets) == len(times) + 1
    assert len(set(found.frames.tolist())) == len(found.frames)


@pytest.mark.parametrize(
    ("times", "reason"),
    [
        ([(-0.5, 1.0)], "subtitle 1: negative start -0.5 s"),
        ([(0.0, 1.0), (3.0, 2.0)], "subtitle 2: ends at 2 s, before its start at 3 s"),
        ([(2.0, 3.0), (1.0, 4.0)], "subtitle 2: starts at 1 s, before the one above it at 2 s"),
        ([(0.0, math.nan)], "not a time in a video"),
        ([(0.0, 1e300)], "not a time in a video"),
    ],
)
def test_impossible_times_are_refused(times, reason):
    with pytest.raises(ValueError, match=reason):
        align(times, 10, 1.5)


def test_overlapping_subtitles_are_fine():
    check_times([(0.0, 9.0), (3.0, 4.0), (3.0, 12.0)])


@pytest.mark.skipif(not REAL.exists(), reason="no ../shared/real")
@pytest.mark.parametrize("interval", ["1.5", "2.0"])
def test_real_videos(interval):
    expected = json.loads((REAL / "subtitles/hero_alignment_example.json").read_text())
    records = [json.loads(line) for line in (REAL / "subtitles/subs.jsonl").read_text().splitlines()]
    for record in records:
        case = expected[record["vid_name"]][interval]
        times = [(sub["start"], sub["end"]) for sub in record["sub"]]
        found = align(times, case["num_of_frames"], float(interval))
        assert found.lists() == list(case["unique_sub2frames"].values())
        assert sorted(set(range(case["num_of_frames"])) - set(found.frames.tolist())) == case["unmatched_frames"]
    assert len(records) == 3
