"""Packing against a slow reading of hero.md 1.6 and 5.2, one segment at a time."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from hero_model.packed.batch import VideoRows
from hero_model.packed.pack import (
    LAST_TOKEN_POSITION,
    Texts,
    as_video_only,
    cut,
    offsets_of,
    pack_texts,
    pack_videos,
    segment_text,
    spans,
)

SEP = 2


def _segments(rows: VideoRows) -> list[list[tuple[list[int], list[int]]]]:
    """Per video its segments as (tokens, frames)."""
    videos = []
    for b in range(rows.num_videos):
        owned = []
        for s in range(rows.segment_offsets[b], rows.segment_offsets[b + 1]):
            tokens = rows.tokens[rows.token_offsets[s] : rows.token_offsets[s + 1]]
            frames = rows.segment_frames[rows.segment_frame_offsets[s] : rows.segment_frame_offsets[s + 1]]
            owned.append((tokens.tolist(), frames.tolist()))
        videos.append(owned)
    return videos


def _slow_cut(segments: list[tuple[list[int], list[int]]], limit: int) -> list[tuple[list[int], list[int]]]:
    kept = []
    for tokens, frames in segments:
        left = [f for f in frames if f < limit]
        if len(left) == len(frames):
            kept.append((tokens, frames))
            continue
        if left:
            kept.append((tokens, left))
        break
    return kept


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("limit", [1, 4, 9])
def test_cut_follows_the_official_rule(random_rows, seed: int, limit: int):
    rows = random_rows(seed)
    got = cut(rows, limit)
    assert _segments(got) == [_slow_cut(owned, limit) for owned in _segments(rows)]
    for b in range(rows.num_videos):
        whole = rows.frames[rows.frame_offsets[b] : rows.frame_offsets[b + 1]]
        np.testing.assert_array_equal(got.frames[got.frame_offsets[b] : got.frame_offsets[b + 1]], whole[:limit])
    assert cut(got, limit) is got


def test_cut_leaves_short_videos_alone_and_refuses_nothing_at_all(random_rows):
    rows = random_rows(0)
    assert cut(rows, 14) is rows
    with pytest.raises(ValueError, match="max_frames is 0"):
        cut(rows, 0)


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("context", [0, 1, 3])
@pytest.mark.parametrize("max_tokens", [None, 3])
def test_segment_text_is_previous_subtitles_then_its_own(random_rows, seed: int, context: int, max_tokens: int | None):
    rows = random_rows(seed)
    drop = np.random.default_rng(seed).random(rows.segment_offsets[-1]) < 0.3
    expected, segment = [], 0
    for owned in _segments(rows):
        cleaned = [[] if drop[segment + i] else tokens[:max_tokens] for i, (tokens, _) in enumerate(owned)]
        expected += [list(itertools.chain(*cleaned[max(0, i - context) : i + 1])) for i in range(len(owned))]
        segment += len(owned)
    texts = segment_text(rows, context=context, max_tokens=max_tokens, drop=drop)
    got = [texts.tokens[a:b].tolist() for a, b in zip(texts.offsets[:-1], texts.offsets[1:], strict=True)]
    assert got == expected


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("only_with_frames", [False, True])
def test_every_segment_is_its_frames_then_lead_then_text(random_rows, seed: int, only_with_frames: bool):
    rows = random_rows(seed)
    texts = segment_text(rows)
    keep = np.diff(rows.segment_frame_offsets) > 0 if only_with_frames else None
    videos, text_rows = pack_videos(rows, texts, lead=SEP, keep=keep)
    batch = videos.segments

    source = torch.cat([batch.frame_index, batch.tokens])[batch.order].tolist()
    positions = torch.cat([batch.frame_positions, batch.token_positions])[batch.order].tolist()
    is_frame = (batch.order < len(batch.frame_index)).tolist()
    bounds = batch.layout.offsets.tolist()
    got = [list(zip(source[a:b], positions[a:b], is_frame[a:b], strict=True)) for a, b in itertools.pairwise(bounds)]
    expected = []
    for b, owned in enumerate(_segments(rows)):
        for tokens, frames in owned:
            if frames or not only_with_frames:
                text = [(t, i, False) for i, t in enumerate([SEP, *tokens])]
                expected.append([(rows.frame_offsets[b] + f, i, True) for i, f in enumerate(frames)] + text)
    assert sorted(map(str, got)) == sorted(str([(int(x), y, z) for x, y, z in e]) for e in expected)
    assert [len(e) for e in got] == sorted(len(e) for e in expected)

    torch.testing.assert_close(
        batch.frame_reads.rows[batch.frame_reads.places], torch.tensor(is_frame).nonzero().squeeze(1), check_dtype=False
    )
    packed = text_rows >= 0
    assert [source[r] for r in text_rows[packed]] == texts.tokens[packed].tolist()
    if not only_with_frames:
        assert packed.all()
    assert videos.clips.offsets.tolist() == rows.frame_offsets.tolist()


def test_runs_describe_the_layout(random_rows):
    batch = pack_videos(random_rows(3, 40), segment_text(random_rows(3, 40)), lead=SEP).videos.segments
    lengths = [length for length, count in batch.layout.runs for _ in range(count)]
    assert lengths == batch.layout.offsets.diff().tolist()
    assert len(batch.layout.runs) == len(set(lengths))


def test_masked_frames_are_zero_and_the_rows_are_not_touched(random_rows):
    rows = random_rows(1)
    before = rows.frames.copy()
    mask = np.arange(len(rows.frames)) % 3 == 0
    videos = pack_videos(rows, segment_text(rows), lead=SEP, frame_mask=mask).videos
    assert (videos.frames[torch.from_numpy(mask)] == 0).all()
    np.testing.assert_array_equal(videos.frames.numpy()[~mask], before[~mask])
    np.testing.assert_array_equal(rows.frames, before)


def test_frames_keep_the_stored_type_without_a_copy(random_rows):
    rows = random_rows(1)
    assert pack_videos(rows, segment_text(rows), lead=SEP).videos.frames.data_ptr() == rows.frames.ctypes.data
    rows.frames.flags.writeable = False  # as a view of a mapped shard is
    assert pack_videos(rows, segment_text(rows), lead=SEP).videos.frames.data_ptr() != rows.frames.ctypes.data


def test_positions_of_long_texts_stop_where_the_table_does(random_rows):
    rows = random_rows(1, 1)
    count = rows.segment_offsets[-1]
    lengths = np.full(count, 600)
    texts = Texts(np.full(600 * count, 7), offsets_of(lengths))
    assert pack_videos(rows, texts, lead=SEP).videos.segments.token_positions.max() == LAST_TOKEN_POSITION


def test_video_only_is_one_wordless_segment_with_all_frames(random_rows):
    rows = as_video_only(random_rows(2))
    sizes = np.diff(rows.frame_offsets)
    assert _segments(rows) == [[([], list(range(n)))] for n in sizes]
    batch = pack_videos(rows, segment_text(rows), lead=0).videos.segments
    assert sorted(batch.layout.offsets.diff().tolist()) == sorted((sizes + 1).tolist())


def test_texts_are_sorted_by_length_and_can_be_found_again():
    texts = [[5, 6, 7], [], [8], [9, 10]]
    flat = Texts(np.array(list(itertools.chain(*texts))), offsets_of(np.array([len(t) for t in texts])))
    packed, places = pack_texts(flat, lead=0)
    bounds = packed.layout.offsets.tolist()
    for text, place in zip(texts, places, strict=True):
        assert packed.tokens[bounds[place] : bounds[place + 1]].tolist() == [0, *text]
    assert [length for length, _ in packed.layout.runs] == [1, 2, 3, 4]


def test_nothing_packs_to_nothing(random_rows):
    rows = random_rows(1)
    none = np.zeros(rows.segment_offsets[-1], dtype=bool)
    videos, text_rows = pack_videos(rows, segment_text(rows), lead=SEP, keep=none)
    assert videos.segments.layout.num_sequences == 0 and len(videos.segments.order) == 0
    assert (text_rows == -1).all()


def test_spans_concatenates_ranges():
    np.testing.assert_array_equal(spans(np.array([5, 9, 2]), np.array([2, 0, 3])), [5, 6, 2, 3, 4])
