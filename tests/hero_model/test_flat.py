"""The flat encoder: one sequence a video, with every frame and every subtitle, whatever owns what."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hero_model.config import TextIds, debug
from hero_model.hero import Hero
from hero_model.multitask import MultiTaskHero
from hero_model.official import config_from_official, from_official, load_official
from hero_model.packed.batch import Examples
from hero_model.packed.draw import add_folds
from hero_model.packed.pack import LAST_TOKEN_POSITION, Texts, flatten, pack_videos, segment_text
from hero_model.packed.readings import pack_readings
from hero_model.roberta import load_roberta
from hero_model.tasks import Fom, Mfm, Mlm, Vsm
from hero_model.tasks.base import At

CLS, SEP = 0, 2
TEXT = TextIds(cls=CLS, pad=1, sep=SEP, mask=99, vocab_size=100, random_low=4, random_high=90)
CFG = replace(debug(), frame_dim=8, vocab_size=104, dropout=0.0, attention_dropout=0.0, flat=True)
AT = At(seed=5, step=3)


@pytest.fixture
def hero() -> Hero:
    torch.manual_seed(0)
    return Hero(CFG).eval()


def sequences(videos):
    """Each packed sequence as (frame rows, tokens)."""
    segments = videos.segments
    num_frames = len(segments.frame_index)
    found = []
    for start, stop in zip(segments.layout.offsets[:-1].tolist(), segments.layout.offsets[1:].tolist(), strict=True):
        sources = segments.order[start:stop]
        frames, tokens = sources[sources < num_frames], sources[sources >= num_frames] - num_frames
        assert sources.tolist() == [*frames.tolist(), *(tokens + num_frames).tolist()], "frames stand in front"
        found.append((segments.frame_index[frames].tolist(), segments.tokens[tokens].tolist()))
    return found


def test_a_video_is_one_sequence_of_all_its_frames_and_all_its_words(random_rows, take_videos):
    rows = replace(
        take_videos(random_rows(1), [0, 1]),
        frames=np.zeros((5, 8), np.float32),
        frame_offsets=np.array([0, 3, 5]),
        segment_offsets=np.array([0, 4, 6]),
        tokens=np.array([10, 11, 12, 13, 20], np.int32),
        token_offsets=np.array([0, 0, 2, 3, 4, 4, 5]),  # the first subtitle of each video has no words
        segment_frames=np.array([2]),  # of the second subtitle; no other owns a frame
        segment_frame_offsets=np.array([0, 0, 1, 1, 1, 1, 1]),
    )
    texts = segment_text(rows, context=2, flat=True)
    keep = np.zeros(6, dtype=bool)
    videos, text_rows = pack_videos(rows, texts, lead=SEP, keep=keep, flat=True)
    assert sequences(videos) == [([3, 4], [SEP, 20]), ([0, 1, 2], [SEP, 10, 11, SEP, 12, SEP, 13])]
    tokens = torch.cat([torch.full((5,), -1), videos.segments.tokens])[videos.segments.order]
    assert tokens[text_rows].tolist() == rows.tokens.tolist()
    assert videos.segments.token_positions.tolist() == [0, 1, *range(7)]
    assert videos.segments.frame_positions.tolist() == [0, 1, 0, 1, 2]


def test_wordless_texts_leave_no_trace_anywhere(random_rows):
    for seed in range(20):
        rows = random_rows(seed, 8)
        texts = segment_text(rows)
        flat_rows, flat_texts, places = flatten(rows, texts, SEP)
        assert flat_rows.segment_offsets.tolist() == list(range(9))
        np.testing.assert_array_equal(flat_texts.tokens[places], texts.tokens)
        worded = np.diff(texts.offsets) > 0
        for video in range(8):
            first, last = rows.segment_offsets[video : video + 2]
            parts = [texts.tokens[texts.offsets[s] : texts.offsets[s + 1]] for s in range(first, last) if worded[s]]
            expected = [word for part in parts for word in (SEP, *part.tolist())][1:]
            assert flat_texts.tokens[slice(*flat_texts.offsets[video : video + 2])].tolist() == expected


def test_a_reading_has_its_text_once_behind_the_subtitles(random_rows):
    rows = random_rows(4, 3)
    videos, behind = pack_readings(
        rows,
        segment_text(rows, flat=True),
        np.array([0, 0, 2]),
        Texts(np.array([SEP, 91, SEP, 92, SEP, 93]), np.array([0, 2, 4, 6])),
        lead=SEP,
        flat=True,
    )
    assert behind is None
    read = sequences(videos)
    assert sorted(tokens[-2:] for _, tokens in read) == [[SEP, 91], [SEP, 92], [SEP, 93]]
    lengths = np.diff(rows.frame_offsets)
    assert sorted(len(frames) for frames, _ in read) == sorted(lengths[[0, 0, 2]])
    assert all(sum(word > 90 for word in tokens) == 1 for _, tokens in read)


def test_frames_read_every_subtitle_and_not_which_of_them_they_belong_to(hero, random_rows, take_videos):
    rows = take_videos(random_rows(6, 12), range(12))
    states = hero.encode_video(pack_videos(rows, segment_text(rows), lead=SEP, flat=True).videos)
    assert states.shape == (rows.frame_offsets[-1], CFG.hidden_size)
    nobody = replace(
        rows,
        segment_frames=rows.segment_frames[:0],
        segment_frame_offsets=np.zeros_like(rows.segment_frame_offsets),
    )
    torch.testing.assert_close(
        hero.encode_video(pack_videos(nobody, segment_text(nobody), lead=SEP, flat=True).videos), states
    )
    changed = rows.tokens.copy()
    changed[-1] = 4 + (changed[-1] - 3) % 80  # a word of the last video that has words
    other = replace(rows, tokens=changed)
    moved = hero.encode_video(pack_videos(other, segment_text(other), lead=SEP, flat=True).videos)
    owner = np.repeat(np.arange(12), np.diff(rows.frame_offsets))
    last = np.searchsorted(rows.segment_offsets, np.flatnonzero(np.diff(rows.token_offsets))[-1], side="right") - 1
    differs = (moved - states).abs().amax(-1) > 1e-6
    assert differs.tolist() == (owner == last).tolist()


@pytest.mark.parametrize("task", [Mlm(flat=True), Mfm(flat=True, loss="regression"), Fom(flat=True)], ids=str)
def test_losses_do_not_depend_on_the_batch_around_a_video(task, random_rows, take_videos):
    torch.manual_seed(1)
    model = MultiTaskHero(CFG, (task,)).eval()
    rows = random_rows(9, 6)

    def run(videos):
        batch = task.prepare(Examples(take_videos(rows, videos)), AT, TEXT)
        out = model(task.kind, batch, AT)
        return out.sums[task.kind].item(), batch.counts[task.kind], batch.fingerprint

    whole = run(range(6))
    alone = [run([video]) for video in range(6)]
    assert whole[0] == pytest.approx(sum(loss for loss, _, _ in alone), rel=1e-5)
    assert whole[1] == sum(count for _, count, _ in alone) > 0
    assert whole[2] == add_folds(*(int(folds) for _, _, folds in alone))


def test_masked_words_are_those_of_the_hierarchical_model(random_rows):
    examples = Examples(random_rows(2, 8))
    flat, tree = (Mlm(flat=flag, context=0).prepare(examples, AT, TEXT) for flag in (True, False))
    assert flat.targets.tolist() == tree.targets.tolist() and flat.counts == tree.counts
    tokens = torch.cat([torch.full((len(flat.videos.segments.frame_index),), -1), flat.videos.segments.tokens])
    read = tokens[flat.videos.segments.order][flat.reads.rows[flat.reads.places]]
    assert (read == TEXT.mask).float().mean() > 0.5


def test_order_is_asked_of_frames_that_were_moved_before_they_are_read(random_rows):
    rows = random_rows(3, 6)
    rows = replace(rows, frames=np.repeat(np.arange(len(rows.frames), dtype=np.float32)[:, None], 8, axis=1))
    batch = Fom(flat=True, shuffle_prob=0.6).prepare(Examples(rows), AT, TEXT)
    start = np.repeat(rows.frame_offsets[:-1], np.diff(rows.frame_offsets))[batch.slots.numpy()]
    shown = batch.videos.frames[batch.slots][:, 0].numpy()
    np.testing.assert_array_equal(shown - start, batch.targets.numpy())
    assert (batch.targets.numpy() != batch.slots.numpy() - start).any()
    assert batch.sources.tolist() == list(range(len(rows.frames)))


def test_a_subtitle_that_is_asked_about_is_not_read(random_rows):
    rows = random_rows(5, 5)
    task = Vsm(flat=True, queries_per_video=1)
    drawn = task.draw(Examples(rows), AT, TEXT)
    batch = task.assemble(Examples(rows), drawn, TEXT)
    hidden = {tuple(rows.tokens[slice(*rows.token_offsets[s : s + 2])].tolist()) for s in drawn if s >= 0}
    read = [tuple(tokens) for _, tokens in sequences(batch.videos)]
    total = sum(word != SEP for tokens in read for word in tokens)
    assert total == len(rows.tokens) - sum(len(words) for words in hidden)


def test_long_videos_share_the_last_position(random_rows, take_videos):
    rows = take_videos(random_rows(1), [0])
    words = 600
    long = replace(
        rows,
        segment_offsets=np.array([0, 1]),
        tokens=np.full(words, 7, np.int32),
        token_offsets=np.array([0, words]),
        segment_frames=rows.segment_frames[:0],
        segment_frame_offsets=np.zeros(2, np.int64),
    )
    batch = Mlm(flat=True, max_tokens=words).prepare(Examples(long), AT, TEXT)
    assert batch.videos.segments.token_positions.max() == LAST_TOKEN_POSITION < CFG.cross.max_positions


def test_as_many_layers_and_nothing_else():
    flat, tree = Hero(CFG), Hero(replace(CFG, flat=False))
    assert len(flat.cross.layers) == len(tree.cross.layers) + len(tree.temporal.layers) == 3
    names = {name.split(".")[0] for name, _ in flat.named_parameters()}
    assert names == {"cross"}
    with pytest.raises(ValueError, match=r"mlm: `flat` of the task must be that of the model, True"):
        MultiTaskHero(CFG, (Mlm(),))


def test_official_weights_are_refused():
    model = MultiTaskHero(CFG, (Mlm(flat=True),))
    part = dict(
        hidden_size=64, hidden_dropout_prob=0.1, attention_probs_dropout_prob=0.1, hidden_act="gelu", vocab_size=104
    ) | dict(num_hidden_layers=2, num_attention_heads=4, intermediate_size=128, max_position_embeddings=514)
    part |= dict(initializer_range=0.02, type_vocab_size=2)
    assert not config_from_official({"f_config": part, "c_config": part}).flat
    for call in (lambda: load_official({}, model), lambda: from_official({}, CFG), lambda: load_roberta(model, {})):
        with pytest.raises(ValueError, match=r"official weights fit the hierarchical model only"):
            call()
