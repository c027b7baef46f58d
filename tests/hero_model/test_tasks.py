"""What each task draws and packs, and that neither order, split nor unread segments change a result."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from hero_model.config import EncoderConfig, HeroConfig, TextIds
from hero_model.multitask import MultiTaskHero
from hero_model.packed.batch import Examples, Notes, VideoRows
from hero_model.packed.draw import add_folds
from hero_model.packed.masking import draw_queries, mask_frames, mask_tokens, shuffle_frames
from hero_model.packed.pack import cut, owners, pack_videos, segment_text
from hero_model.tasks import Fom, Mfm, Mlm, MomentRetrieval, Vsm
from hero_model.tasks.base import At
from hero_model.tasks.moment_retrieval import span_frames

AT = At(seed=5, step=3)
TEXT = TextIds(mask=99, vocab_size=100, random_low=4, random_high=90)
WIDTH = 8


def _model(*tasks, seed: int = 0) -> MultiTaskHero:
    torch.manual_seed(seed)
    stack = EncoderConfig(num_layers=1, num_heads=2, intermediate_size=16, max_positions=600)
    cfg = HeroConfig(
        hidden_size=16, frame_dim=WIDTH, vocab_size=104, cross=stack, temporal=stack, query=stack, dropout=0.0,
        attention_dropout=0.0,
    )  # fmt: skip
    return MultiTaskHero(cfg, tasks).double()


def _notes(rows: VideoRows) -> Notes:
    count = rows.num_videos
    lengths = np.arange(count) % 4 + 1
    return Notes(
        ids=tuple(f"q{i}" for i in rows.ids),
        keys=rows.keys + np.uint64(1),
        tokens=np.arange(lengths.sum(), dtype=np.int32) % 80 + 5,
        token_offsets=np.concatenate([[0], np.cumsum(lengths)]),
        spans_s=np.stack([np.full(count, 0.4), np.full(count, 4.0)], axis=1),
    )


def _examples(rows: VideoRows, task) -> Examples:
    return Examples(rows, notes=_notes(rows) if task.annotations else None)


def _loss(model: MultiTaskHero, task, batch, at: At = AT) -> float:
    out = model(task.kind, batch, at)
    terms = {**out.sums}
    if out.pooled is not None:
        terms |= {k: v for k, (v, _) in task.pool_terms(out.pooled, batch.videos.clips, at).items()}
    return sum(task.weights(at)[name] * float(value.detach()) for name, value in terms.items())


# -- draws


def test_mlm_masks_as_often_and_as_it_should(random_rows):
    rows = random_rows(0, 2000)
    texts = segment_text(rows)
    chosen, inputs = mask_tokens(rows, texts, TEXT, 0.3, 1, 2)
    lengths = np.diff(texts.offsets)
    picks = np.add.reduceat(np.append(chosen, 0), texts.offsets[:-1])[lengths > 0]
    assert picks.min() >= 1, "a text with words always predicts one"
    np.testing.assert_array_equal(inputs[~chosen], texts.tokens[~chosen])
    sure = owners(texts.offsets)[chosen]
    many = np.isin(sure, np.flatnonzero(lengths >= 7))  # long texts rarely need the fallback to the first token
    became_mask = inputs[chosen][many] == TEXT.mask
    same = inputs[chosen][many] == texts.tokens[chosen][many]
    assert abs(chosen[np.isin(owners(texts.offsets), np.flatnonzero(lengths >= 7))].mean() - 0.3) < 0.03
    assert abs(became_mask.mean() - 0.8) < 0.04
    assert abs(same.mean() - 0.1) < 0.03
    random = inputs[chosen][many][~became_mask & ~same]
    assert random.min() == TEXT.random_low and random.max() == TEXT.random_high - 1


def test_mlm_without_chance_masks_the_first_token(random_rows):
    rows = random_rows(0)
    texts = segment_text(rows)
    chosen, inputs = mask_tokens(rows, texts, TEXT, 0.0, 1, 2)
    firsts = texts.offsets[:-1][np.diff(texts.offsets) > 0]
    np.testing.assert_array_equal(np.flatnonzero(chosen), firsts)
    assert (inputs[firsts] == TEXT.mask).all()


def test_mfm_masks_at_least_one_frame_a_video_and_any_of_them(random_rows):
    rows = random_rows(0, 500)
    none = mask_frames(rows, 0.0, 1, 2)
    per_video = np.add.reduceat(none, rows.frame_offsets[:-1])
    assert (per_video == 1).all()
    places = (np.flatnonzero(none) - rows.frame_offsets[:-1]) / np.diff(rows.frame_offsets)
    assert 0.35 < places.mean() < 0.5  # the mean place of a uniform pick, from 0, of up to 14 frames
    assert abs(mask_frames(rows, 0.3, 1, 2).mean() - 0.33) < 0.05


def test_fom_permutes_the_selected_frames_among_themselves(random_rows):
    rows = random_rows(0, 300)
    selected, order = shuffle_frames(rows, 0.4, 1, 2)
    inside = np.arange(len(order)) - rows.frame_offsets[:-1][owners(rows.frame_offsets)]
    np.testing.assert_array_equal(order[~selected], inside[~selected])
    for a, b in zip(rows.frame_offsets[:-1], rows.frame_offsets[1:], strict=True):
        assert sorted(order[a:b][selected[a:b]]) == inside[a:b][selected[a:b]].tolist()
    assert (order[selected] != inside[selected]).mean() > 0.5


def test_vsm_draws_subtitles_with_frames_and_repeats_the_last(random_rows):
    rows = random_rows(0, 300)
    drawn = draw_queries(rows, 3, 1, 2)
    video = owners(rows.segment_offsets)
    usable = np.diff(rows.segment_frame_offsets) > 0
    assert usable[drawn].all()
    seen = {"none": 0, "few": 0, "many": 0}
    for b in range(rows.num_videos):
        candidates = np.flatnonzero(usable & (video == b)).tolist()
        mine = drawn[video[drawn] == b].tolist()
        if not candidates:
            assert mine == []
        elif len(candidates) < 3:
            assert mine == candidates + [candidates[-1]] * (3 - len(candidates))
        else:
            assert len(set(mine)) == 3 and mine == sorted(mine)
        seen["none" if not candidates else "few" if len(candidates) < 3 else "many"] += 1
    assert min(seen.values()) > 0


TASKS = [Mlm(mask_prob=0.3), Mfm(), Fom(shuffle_prob=0.5), Vsm(queries_per_video=2, context=1), MomentRetrieval()]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_stream_is_the_same_for_any_order_and_split(random_rows, take_videos, task):
    rows = random_rows(4, 8)

    def prepare(videos: list[int], at: At = AT):
        examples = _examples(rows, task)
        notes = examples.notes
        if notes is not None:
            spans = [notes.tokens[notes.token_offsets[i] : notes.token_offsets[i + 1]] for i in videos]
            offsets = np.concatenate([[0], np.cumsum([len(s) for s in spans])])
            notes = Notes(
                tuple(notes.ids[i] for i in videos), notes.keys[videos], np.concatenate(spans), offsets,
                notes.spans_s[videos],
            )  # fmt: skip
        return task.prepare(Examples(take_videos(rows, videos), notes), at, TEXT)

    whole = prepare(list(range(8)))
    moved = prepare([6, 2, 0, 7, 5, 4, 1, 3])
    parts = [prepare([3, 0, 7]), prepare([6]), prepare([1, 2, 4, 5])]
    assert moved.fingerprint == whole.fingerprint == add_folds(*(part.fingerprint for part in parts))
    for name, count in whole.counts.items():
        assert count == moved.counts[name] == sum(part.counts[name] for part in parts)
    assert whole.num_tokens == moved.num_tokens == sum(part.num_tokens for part in parts)
    if task.kind != "moment_retrieval":  # which draws nothing
        assert prepare(list(range(8)), At(AT.seed, AT.step + 1)).fingerprint != whole.fingerprint
        assert prepare(list(range(8)), At(AT.seed + 1, AT.step)).fingerprint != whole.fingerprint


@pytest.mark.parametrize("task", TASKS[:4], ids=lambda task: task.kind)
def test_losses_do_not_depend_on_order_or_split(random_rows, take_videos, task):
    task = replace(task, ctx_weight=0.0, query_weight=0.0) if task.kind == "vsm" else task
    model, rows = _model(task), random_rows(4, 8)
    splits = [[list(range(8))], [[6, 2, 0], [7, 5, 4, 1, 3]], [[i] for i in range(8)]]
    totals = []
    for split in splits:
        if task.kind == "mfm":  # groups stand for the split: one group per video
            groups = np.concatenate(split)
            examples = [Examples(take_videos(rows, groups), groups=groups)] if len(split) == 1 else [
                Examples(take_videos(rows, part), groups=np.array(part)) for part in split
            ]  # fmt: skip
        else:
            examples = [Examples(take_videos(rows, part)) for part in split]
        totals.append(sum(_loss(model, task, task.prepare(e, AT, TEXT, training=False)) for e in examples))
    np.testing.assert_allclose(totals[1:], totals[0], rtol=1e-11)


# -- packing


def test_mlm_reads_replaced_tokens_and_predicts_true_ones(random_rows):
    rows = random_rows(2)
    task = Mlm(mask_prob=0.4, context=1)
    examples = Examples(rows)
    drawn = task.draw(examples, AT, TEXT)
    batch = task.assemble(examples, drawn, TEXT)
    texts = task.texts(examples)
    segments = batch.videos.segments
    read = torch.cat([segments.frame_index, segments.tokens])[segments.order][batch.reads.rows[batch.reads.places]]
    assert read.tolist() == drawn.inputs[drawn.chosen].tolist()
    assert batch.targets.tolist() == texts.tokens[drawn.chosen].tolist()
    assert segments.layout.num_sequences == (np.diff(texts.offsets) > 0).sum()
    assert TEXT.cls in segments.tokens


def test_fom_says_which_frame_each_slot_shows(random_rows):
    rows = random_rows(3)
    task = Fom(shuffle_prob=0.6)
    drawn = task.draw(Examples(rows), AT, TEXT)
    batch = task.assemble(Examples(rows), drawn, TEXT)
    starts = rows.frame_offsets[:-1][owners(rows.frame_offsets)]
    shown = batch.sources.numpy()
    for frame in range(len(shown)):
        assert shown[starts[frame] + drawn.order[frame]] == frame
    slots = batch.slots.numpy()
    np.testing.assert_array_equal(starts[slots] + batch.targets.numpy(), shown[slots])
    assert drawn.selected[shown[slots]].all() and len(slots) == drawn.selected.sum()


def test_fom_refuses_clips_longer_than_its_classes():
    with pytest.raises(ValueError, match="at most 100 frames"):
        Fom(max_frames=120).head(HeroConfig())


def test_vsm_hides_its_queries_and_targets_their_frames(random_rows):
    rows = random_rows(0, 8)
    task = Vsm(queries_per_video=2, context=2, max_tokens=4)
    drawn = task.draw(Examples(rows), AT, TEXT)
    batch = task.assemble(Examples(rows), drawn, TEXT)
    bounds = batch.queries.layout.offsets.tolist()
    for q, segment in enumerate(drawn):
        own = rows.tokens[rows.token_offsets[segment] : rows.token_offsets[segment + 1]][:4].tolist()
        place = int(batch.places[q])
        assert batch.queries.tokens[bounds[place] : bounds[place + 1]].tolist() == [TEXT.cls, *own]
        frames = rows.segment_frames[rows.segment_frame_offsets[segment] : rows.segment_frame_offsets[segment + 1]]
        last = np.diff(rows.frame_offsets)[batch.video_Q[q]] - 1
        expected = [frames[0], min(max(frames[0] + 1, frames[-1]), last)]
        assert batch.targets[q].tolist() == expected
    removed = np.isin(np.arange(rows.segment_offsets[-1]), drawn)
    with_frames = np.diff(rows.segment_frame_offsets) > 0
    texts = segment_text(rows, context=2, max_tokens=4, drop=removed)
    assert len(batch.videos.segments.tokens) == (np.diff(texts.offsets) + 1)[with_frames].sum()
    assert len(np.unique(batch.keys_Q)) == len(drawn)


def test_moment_labels_follow_the_official_rule(random_rows):
    rows = replace(random_rows(0, 5), frame_offsets=np.array([0, 10, 20, 30, 40, 41]))
    seconds = np.array([[0.0, 1.0], [2.9, 7.6], [14.0, 99.0], [np.nan, np.nan], [0.0, 9.0]])
    expected = [[0, 1], [1, 5], [9, 9], [-1, -1], [0, 0]]
    assert span_frames(rows, seconds, np.arange(5)).tolist() == expected


def test_video_only_reads_no_subtitle(random_rows):
    rows = random_rows(0)
    task = MomentRetrieval(video_only=True)
    batch = task.prepare(_examples(rows, task), AT, TEXT)
    assert set(batch.videos.segments.tokens.tolist()) == {TEXT.cls}
    assert sorted(batch.videos.segments.frame_index.tolist()) == list(range(len(rows.frames)))


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_clips_are_cut(random_rows, task):
    rows = random_rows(0)
    batch = replace(task, max_frames=5).prepare(_examples(rows, task), AT, TEXT)
    assert batch.videos.clips.max_length == 5
    assert len(batch.videos.frames) == np.minimum(np.diff(rows.frame_offsets), 5).sum()


def test_leaving_out_unread_segments_changes_nothing(random_rows):
    rows = random_rows(1, 8)
    with_frames = np.diff(rows.segment_frame_offsets) > 0
    assert not with_frames.all()
    hero = _model(Mfm()).hero
    every, some = (
        hero.encode_video(pack_videos(rows, segment_text(rows), lead=2, keep=keep).videos)
        for keep in (None, with_frames)
    )
    torch.testing.assert_close(every, some, rtol=1e-12, atol=1e-12)


# -- curricula and pools


def test_span_term_is_kept_on_a_fifth_of_training_steps_and_always_in_evaluation():
    task = Vsm()
    kept = [task.computes_span(At(1, step), training=True) for step in range(2000)]
    assert abs(np.mean(kept) - 0.2) < 0.04
    assert all(task.computes_span(At(1, step), training=False) for step in range(10))
    assert all(Vsm(span_drop=0.0).computes_span(At(1, step), training=True) for step in range(50))
    assert not any(Vsm(span_drop=1.0).computes_span(At(1, step), training=True) for step in range(50))
    late = Vsm(span_start=7)
    assert late.weights(At(1, 6))["span"] == 0 and late.weights(At(1, 7))["span"] == 0.01
    assert not Vsm(span_start=-1).computes_span(At(1, 10**9), training=False)


def test_span_term_is_missing_from_sums_and_counts_when_dropped(random_rows):
    rows, model = random_rows(0), _model(Vsm())
    for drop, has_span in ((1.0, False), (0.0, True)):
        task = Vsm(span_drop=drop)
        batch = task.prepare(Examples(rows), AT, TEXT)
        assert ("span" in batch.counts) == has_span == ("span" in model("vsm", batch, AT).sums)


def test_hard_negatives_begin_at_their_step(random_rows):
    task = Vsm(hard_start=10, hard_pool=2, queries_per_video=2)
    model, rows = _model(task), random_rows(0)
    batch = task.prepare(Examples(rows), AT, TEXT, training=False)
    pooled = model("vsm", batch, AT).pooled
    before, after = (task.pool_terms(pooled, batch.videos.clips, At(1, step)) for step in (9, 10))
    assert not torch.isclose(before["ctx"][0], after["ctx"][0])
    never = replace(task, hard_start=-1).pool_terms(pooled, batch.videos.clips, At(1, 10**6))
    torch.testing.assert_close(never["query"][0], before["query"][0])


def test_a_term_without_weight_is_not_computed_and_one_video_ranks_to_zero(random_rows):
    rows = random_rows(0)
    task = Vsm(ctx_weight=0.0)
    model = _model(task)
    batch = task.prepare(Examples(rows), AT, TEXT)
    pooled = model("vsm", batch, AT).pooled
    assert set(task.pool_terms(pooled, batch.videos.clips, AT)) == {"query"}
    assert not Vsm(ctx_weight=0.0, query_weight=0.0).pools
    alone = Vsm().prepare(Examples(random_rows(5, 1)), AT, TEXT)
    out = model("vsm", alone, AT).pooled
    terms = Vsm().pool_terms(out, alone.videos.clips, AT)
    assert {name: (value.item(), count) for name, (value, count) in terms.items()} == {
        "ctx": (0.0, len(alone.video_Q)),
        "query": (0.0, len(alone.video_Q)),
    }


def test_sampled_negatives_do_not_depend_on_the_order_of_the_pool(random_rows, take_videos):
    rows, task = random_rows(0, 7), Vsm(use_all_negatives=False, ranking="lse", queries_per_video=2)
    model, totals = _model(task), []
    for order in ([0, 1, 2, 3, 4, 5, 6], [3, 6, 0, 5, 1, 2, 4]):
        batch = task.prepare(Examples(take_videos(rows, order)), AT, TEXT, training=False)
        terms = task.pool_terms(model("vsm", batch, AT).pooled, batch.videos.clips, AT)
        totals.append([float(terms[name][0]) for name in ("ctx", "query")])
    np.testing.assert_allclose(totals[0], totals[1], rtol=1e-11)
    other = task.pool_terms(model("vsm", batch, AT).pooled, batch.videos.clips, At(AT.seed, AT.step + 1))
    assert not np.isclose(float(other["ctx"][0]), totals[1][0])


def test_nce_groups_replace_separate_batches(random_rows, take_videos):
    rows, task = random_rows(6, 6), Mfm(mask_prob=0.3)
    model = _model(task)
    grouped = task.prepare(Examples(rows, groups=np.array([4, 1, 4, 1, 4, 1])), AT, TEXT)
    apart = [task.prepare(Examples(take_videos(rows, part)), AT, TEXT) for part in ([0, 2, 4], [1, 3, 5])]
    np.testing.assert_allclose(_loss(model, task, grouped), sum(_loss(model, task, b) for b in apart), rtol=1e-11)
    together = task.prepare(Examples(rows), AT, TEXT)
    assert not np.isclose(_loss(model, task, grouped), _loss(model, task, together))


# -- edges


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_float64_stays_float64_from_float16_frames(random_rows, task):
    rows = random_rows(0)
    rows = replace(rows, frames=rows.frames.astype(np.float16))
    batch = task.prepare(_examples(rows, task), AT, TEXT, training=False)
    out = _model(task)(task.kind, batch, AT)
    assert batch.videos.frames.dtype == torch.float16
    assert {value.dtype for value in out.sums.values()} == {torch.float64}
    if out.pooled is not None:
        assert task.pool_terms(out.pooled, batch.videos.clips, AT)["ctx"][0].dtype == torch.float64


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.kind)
def test_wordless_and_frameless_videos_do_not_crash(random_rows, task):
    rows = random_rows(0)
    segments = rows.segment_offsets[-1]
    nothing = np.zeros(segments + 1, dtype=np.int64)
    bare = replace(
        rows, tokens=rows.tokens[:0], token_offsets=nothing, segment_frames=rows.segment_frames[:0],
        segment_frame_offsets=nothing,
    )  # fmt: skip
    model = _model(task)
    batch = task.prepare(_examples(bare, task), AT, TEXT, training=False)
    out = model(task.kind, batch, AT)
    assert all(torch.isfinite(value) for value in out.sums.values())
    if task.kind in ("mlm", "vsm"):
        assert set(batch.counts.values()) == {0}
        assert all(float(value) == 0 for value in out.sums.values())


@pytest.mark.parametrize(
    "wrong",
    [lambda: Mlm(mask_prob=1.2), lambda: Mfm(mask_prob=-1), lambda: Fom(shuffle_prob=2), lambda: Vsm(span_drop=9),
     lambda: Vsm(queries_per_video=0), lambda: MomentRetrieval(hard_pool=0)],
)  # fmt: skip
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(ValueError, match="give"):
        wrong()


def test_prepare_cuts_what_draw_and_assemble_take_as_it_is(random_rows):
    rows, task = random_rows(0), Mfm(max_frames=6)
    prepared = task.prepare(Examples(rows), AT, TEXT)
    examples = Examples(cut(rows, 6))
    by_hand = task.assemble(examples, task.draw(examples, AT, TEXT), TEXT)
    assert prepared.fingerprint == by_hand.fingerprint
    torch.testing.assert_close(prepared.videos.frames, by_hand.videos.frames)
