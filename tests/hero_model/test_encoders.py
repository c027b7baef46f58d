"""What the packed encoders and heads promise beyond golden numbers: isolation, precision, memory, initialisation."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hero_model.config import debug
from hero_model.hero import Hero
from hero_model.nn.heads import FrameHead, LmHead, OrderHead, QueryHead
from hero_model.packed.batch import Layout

CFG = replace(debug(), frame_dim=24, vocab_size=104, dropout=0.0, attention_dropout=0.0)
SEP = 2
SEGMENTS = [([5, 6, 7], [0, 1]), ([8], []), ([9, 10], [3])]  # of a clip of 5 frames: 2 and 4 belong to nobody
OTHERS = [([11, 12, 13, 14], [1, 2]), ([], [0])]


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def features():
    return np.random.default_rng(0).standard_normal((8, CFG.frame_dim)).astype(np.float32)


@pytest.fixture
def videos(features, pack_clips):
    return pack_clips([(features[:5], SEGMENTS), (features[5:], OTHERS)], lead=SEP)


@pytest.fixture
def hero():
    torch.manual_seed(0)
    return Hero(CFG)


def test_videos_do_not_see_each_other(hero, features, videos, pack_clips):
    together = hero.encode_video(videos)
    swapped = hero.encode_video(pack_clips([(features[5:], OTHERS), (features[:5], SEGMENTS)], lead=SEP))
    torch.testing.assert_close(together[5:], swapped[:3], rtol=0, atol=1e-6)
    torch.testing.assert_close(together[:5], swapped[3:], rtol=0, atol=1e-6)
    alone = hero.encode_video(pack_clips([(features[:5], SEGMENTS)], lead=SEP))
    torch.testing.assert_close(together[:5], alone, rtol=0, atol=1e-6)


def test_segments_do_not_see_each_other(hero, features, pack_clips, segment_rows):
    first = pack_clips([(features[:5], SEGMENTS)], lead=SEP)
    second = pack_clips([(features[:5], [SEGMENTS[0], ([99], [4])])], lead=SEP)
    text = [SEP, *SEGMENTS[0][0]]
    states = [hero.encode_segments(videos)[segment_rows(videos, text)] for videos in (first, second)]
    torch.testing.assert_close(*states, rtol=0, atol=1e-6)


def test_frames_of_nobody_keep_their_projection(hero, videos):
    fused = hero.fuse(videos, hero.encode_frames(videos))
    projected = hero.frame_transform(videos.frames)
    same = (fused == projected).all(dim=1)
    assert same.tolist() == [False, False, True, False, True, False, False, False]


def test_masks_reach_both_inputs(hero, features, pack_clips):
    clip = [(features[:5], SEGMENTS)]
    plain = pack_clips(clip, lead=SEP)
    nothing_masked = pack_clips(clip, lead=SEP, frame_mask=np.zeros(5, dtype=bool))
    masked = pack_clips(clip, lead=SEP, frame_mask=np.arange(5) == 2)
    with torch.no_grad():
        hero.mask.rows.weight[0], hero.cross.frames.mask.rows.weight[0] = 0.0, 0.0
    assert torch.equal(hero.encode_video(plain), hero.encode_video(nothing_masked))
    with torch.no_grad():  # row 0 is noise after initialisation and counts for unmasked frames, once a mask is given
        hero.cross.frames.mask.rows.weight[0] += torch.linspace(-1, 1, CFG.frame_dim)
    moved = hero.encode_segments(plain) - hero.encode_segments(nothing_masked)
    assert moved.abs().max() > 1e-3
    hero.fuse(masked, hero.encode_frames(masked)).sum().backward()
    for table in (hero.mask.rows.weight, hero.cross.frames.mask.rows.weight):
        assert table.grad[0].abs().max() == 0  # a padding row: it never trains
    assert hero.mask.rows.weight.grad[1].abs().max() > 0


def test_half_precision_frames_are_widened(hero, videos):
    stored = replace(videos, frames=videos.frames.half())
    widened = replace(videos, frames=videos.frames.half().float())
    assert torch.equal(hero.encode_video(stored), hero.encode_video(widened))


def test_precisions(hero, videos):
    single = hero.encode_video(videos)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = hero.encode_video(videos)
    assert mixed.dtype == torch.float32  # the last LayerNorm runs in single precision
    assert 1e-5 < (mixed - single).abs().max() < 0.1
    double = hero.double().encode_video(videos)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), single, rtol=0, atol=1e-5)


def gradients(hero, videos):
    hero.zero_grad()
    torch.manual_seed(3)
    hero.encode_video(videos).square().sum().backward()
    return {name: p.grad for name, p in hero.named_parameters() if p.grad is not None}


def test_activation_checkpointing_changes_memory_only(videos):
    cfg = replace(CFG, dropout=0.2, attention_dropout=0.2)
    results = []
    for checkpoint_activations in (False, True):
        torch.manual_seed(0)
        hero = Hero(cfg, checkpoint_activations=checkpoint_activations)
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=saved: kept.append(x.numel()) or x, lambda x: x):
            results.append(gradients(hero, videos))
        results.append(sum(saved))
    plain, plain_saved, again, again_saved = results
    assert again_saved < plain_saved and plain.keys() == again.keys()
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_gradients_repeat_under_deterministic_algorithms(hero, videos):
    torch.use_deterministic_algorithms(True)
    try:
        first, second = gradients(hero, videos), gradients(hero, videos)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(first[name], second[name]) for name in first)
    without = {name for name, _ in hero.named_parameters()} - set(first)
    masks = {"mask.rows.weight", "cross.frames.mask.rows.weight"}
    assert without == masks | {f"{part}.pooler.{leaf}" for part in ("cross", "temporal") for leaf in ("weight", "bias")}


def test_forward_never_reads_the_device(videos):
    """Fake tensors have no values: anything that needs one on the host (`.item()`, a mask index) raises."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        hero, head = Hero(CFG), QueryHead(CFG)
        fake = replace(videos, frames=mode.from_tensor(videos.frames))
        states = hero.encode_video(fake)
        query = head.encode(states, videos.clips)
        assert head.span_logits(query, states, videos.clips, np.array([0, 1])).start_P.shape == (8,)
        assert head.video_scores(query, states, videos.clips).shape == (2, 2)


def test_a_batch_without_segments(hero, features, pack_clips):
    videos = pack_clips([(features[:5], [])], lead=SEP)
    assert hero.encode_segments(videos).shape == (0, CFG.hidden_size)
    assert torch.equal(hero.fuse(videos, hero.encode_frames(videos)), hero.frame_transform(videos.frames))


def test_spans_see_zeros_beyond_their_video():
    torch.manual_seed(0)
    head = QueryHead(CFG)
    lengths, own = [5, 1, 5, 3], np.array([2, 0, 0, 3, 1])
    clips = Layout.of(np.array(lengths))
    frames, query = torch.randn(14, CFG.hidden_size), torch.randn(5, CFG.hidden_size)
    start_all, end_all = head.span_logits_all(query, frames, clips)
    spans = head.span_logits(query, frames, clips, torch.from_numpy(own))
    assert spans.layout.runs == ((5, 3), (3, 1), (1, 1))
    similarity = head.span_query(query) @ frames.T
    for found_all, found_own, conv in ((start_all, spans.start_P, head.start), (end_all, spans.end_P, head.end)):
        expected = [
            F.conv1d(piece[:, None], conv.weight, padding=CFG.span_kernel // 2)[:, 0]
            for piece in similarity.split(lengths, dim=1)
        ]
        torch.testing.assert_close(found_all, torch.cat(expected, dim=1), rtol=0, atol=1e-5)
        rows = torch.cat([expected[video][i] for i, video in enumerate(own)])
        torch.testing.assert_close(found_own, rows, rtol=0, atol=1e-5)


def test_video_scores_are_the_best_cosine():
    frames, query = torch.randn(9, 8, dtype=torch.bfloat16), torch.randn(4, 8, dtype=torch.bfloat16)
    scores = QueryHead.video_scores(query, frames, Layout.of(np.array([2, 2, 5])))
    cosine = F.cosine_similarity(query.double()[:, None], frames.double()[None], dim=-1)
    expected = torch.stack([part.amax(1) for part in cosine.split([2, 2, 5], dim=1)], dim=1)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores.double(), expected, rtol=0, atol=1e-6)


def test_initialisation():
    """hero.md 1.13: N(0, .02) and zero biases inside `v_encoder`, PyTorch's own outside."""
    torch.manual_seed(0)
    inside = nn.ModuleList([Hero(CFG), LmHead(CFG), FrameHead(CFG), OrderHead(CFG)])
    for name, parameter in inside.named_parameters():
        if "norm" in name:
            assert (parameter == (1 if name.endswith("weight") else 0)).all(), name
        elif name.endswith("bias"):
            assert (parameter == 0).all(), name
        else:
            assert parameter.std().item() == pytest.approx(CFG.initializer_range, rel=0.25), name
    words = inside[0].words_VD
    assert words[1].abs().max() > 0 and inside[0].mask.rows.weight[0].abs().max() > 0  # padding rows get noise too
    head = QueryHead(CFG)
    assert head.embedding.positions.weight.std().item() == pytest.approx(1, rel=0.05)
    assert head.attention.qkv.weight.abs().max().item() == pytest.approx(CFG.hidden_size**-0.5, rel=0.01)
    assert head.attention.qkv.bias.abs().max() > 0


def test_two_layer_norm_epsilons():
    norms = {
        name: m.eps
        for name, m in nn.ModuleDict({"hero": Hero(CFG), "query": QueryHead(CFG)}).named_modules()
        if isinstance(m, nn.LayerNorm)
    }
    inner = {name for name, eps in norms.items() if eps == 1e-12}
    assert set(norms.values()) == {1e-12, 1e-5}
    assert inner == {name for name in norms if ".layers." in name} | {"query.attention.norm"}


def test_heads_must_divide_the_width():
    bad = replace(CFG, cross=replace(CFG.cross, num_heads=5))
    with pytest.raises(ValueError, match="hidden_size 64 must be a multiple of num_heads 5"):
        Hero(bad)
