"""Which seconds of a film are frames, chunks and clips."""

from __future__ import annotations

import pytest

from hero_platform.video.views import View, chunk_intervals, cut_clips, num_intervals


@pytest.mark.parametrize(
    ("duration_s", "interval_s", "num"),
    [(60.06, 1.5, 41), (60.0, 1.5, 40), (60.0000001, 1.5, 40), (0.01, 1.5, 1), (0.0, 1.5, 1), (13.013, 2.0, 7)],
)
def test_intervals_cover_the_film(duration_s: float, interval_s: float, num: int):
    assert num_intervals(duration_s, interval_s) == num


@pytest.mark.parametrize(
    ("num", "clip", "clips"),
    [
        (41, 0, [(0, 41)]),
        (41, 40, [(0, 41)]),  # a rest of a tenth stays with the clip before it
        (44, 40, [(0, 44)]),
        (45, 40, [(0, 40), (40, 45)]),
        (120, 40, [(0, 40), (40, 80), (80, 120)]),
        (5, 2, [(0, 2), (2, 4), (4, 5)]),
        (1, 40, [(0, 1)]),
    ],
)
def test_clips_cover_the_film_once(num: int, clip: int, clips: list[tuple[int, int]]):
    assert cut_clips(num, clip) == clips


def test_pictures_stand_in_the_middle_of_equal_parts():
    assert View(1, 8, 8).offsets_s(1.5) == [0.75]
    assert View(3, 8, 8).offsets_s(1.5) == [0.25, 0.75, 1.25]


def test_chunks_are_bounded_by_number_and_bytes():
    assert chunk_intervals((View(1, 8, 8),)) == 64
    assert chunk_intervals((View(16, 224, 224),)) == 6
    assert chunk_intervals((View(64, 1024, 1024),)) == 1
