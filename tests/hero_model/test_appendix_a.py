"""The self-check of hero.md Appendix A: the base model, filled by a formula, against numbers of the official code."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from hero_model.config import base
from hero_model.hero import Hero
from hero_model.nn.heads import FrameHead, LmHead, OrderHead, QueryHead
from hero_model.official import from_official, to_official

SEP, CLS, MASK = 2, 0, 50264
A_SEGMENTS = [([100, 200, 300, 400], [0, 1]), ([500, 600], [2]), ([700], [])]
B_SEGMENTS = [([11, 12, 13], [0, 1, 2]), ([14, 15], [3])]
NORM_WEIGHT = re.compile(r"LayerNorm\.weight$|^v_encoder\.feat_regress\.net\.2\.weight$")


class Whole(nn.Module):
    """Every part of HeroForPretraining, under the names of MultiTaskHero."""

    def __init__(self, cfg):
        super().__init__()
        self.hero = Hero(cfg)
        heads = {"lm": LmHead(cfg), "frames": FrameHead(cfg), "order": OrderHead(cfg), "query": QueryHead(cfg)}
        self.heads = nn.ModuleDict(heads)


@pytest.fixture(scope="module")
def whole():
    cfg = replace(base(), dropout=0.0, attention_dropout=0.0)
    with torch.device("meta"):
        model = Whole(cfg)
    shapes = {name: tensor.shape for name, tensor in to_official(model.state_dict()).items()}
    filled = {}
    for index, name in enumerate(sorted(shapes)):
        u = np.random.RandomState(1000 + index).uniform(-1, 1, size=shapes[name].numel()).astype(np.float32)
        u = torch.from_numpy(u).reshape(shapes[name])
        filled[name] = 1 + 0.1 * u if NORM_WEIGHT.search(name) else 0.05 * u
    filled["v_encoder.f_encoder.lm_head.decoder.weight"] = filled[
        "v_encoder.f_encoder.embeddings.word_embeddings.weight"
    ]
    ours, report = from_official(filled, cfg)
    assert not (report.missing or report.unexpected or report.ignored)
    model.load_state_dict(ours, assign=True)
    return model.double().requires_grad_(False)


@pytest.fixture(scope="module")
def frames():
    return np.random.RandomState(7).uniform(-1, 1, (10, 4352)).astype(np.float32)


@pytest.fixture(scope="module")
def videos(frames, pack_clips):
    return pack_clips([(frames[:6], A_SEGMENTS), (frames[6:], B_SEGMENTS)], lead=SEP)


def close(actual, expected, places=6):
    """Equal to every digit that hero.md prints."""
    torch.testing.assert_close(
        actual, torch.tensor(expected, dtype=actual.dtype), rtol=0, atol=0.51 * 10.0**-places, check_stride=False
    )


def test_parameter_counts(whole):
    def count(module):
        return sum(parameter.numel() for parameter in module.parameters())

    assert count(whole) == 121_037_262
    assert count(whole.hero.cross) + count(whole.heads["lm"]) == 86_205_792
    assert count(whole.hero.cross.text) == 39_006_720
    assert count(whole.hero.cross.frames) == 3_438_848
    assert count(whole.hero.cross.layers) == 42_527_232
    assert count(whole.hero.temporal) == 22_250_496
    assert count(whole.hero.frame_transform) == 3_351_808
    assert count(whole.heads["frames"]) == 3_938_816
    assert count(whole.heads["order"]) == 1_337_956
    assert count(whole.heads["query"]) == 3_943_690


def test_encoders(whole, videos, segment_rows):
    hero = whole.hero
    hidden = hero.encode_segments(videos)
    close(hidden[segment_rows(videos, [2, 100, 200, 300, 400])][0, :4], [-0.439518, 2.137104, -0.489647, 1.818936])
    close(hidden[segment_rows(videos, [2, 11, 12, 13])][2, :4], [-1.835609, 1.659187, -1.323894, 1.453671])
    fused = hero.fuse(videos, hero.encode_frames(videos))
    close(fused[0, :4], [1.729672, 2.137104, -0.489647, 1.818936])
    close(fused[5, :4], [0.8558, 0, 0.166287, 0])
    states = hero.encode_clips(fused, videos.clips)
    close(states[0, :4], [-0.426485, 0.529564, 0.759918, 1.174894])
    close(states[5, :4], [-0.079474, 0.342686, 0.671631, 0.300853])
    close(states[9, :4], [0.716062, -0.401546, -0.541433, 0.336333])
    close(states.abs().mean(), 0.797362)


def test_queries_and_moments(whole, videos, pack_queries):
    hero, head = whole.hero, whole.heads["query"]
    texts, places = pack_queries([[31, 32, 33], [41, 42]], lead=CLS)
    query = head.encode(hero.encode_text(texts), texts.layout)[places]
    close(query[:, :4], [[-0.149157, -0.473578, 1.284125, 1.987281], [-0.444377, -0.438974, -0.042876, 2.138445]])
    states = hero.encode_video(videos)
    scores = head.video_scores(query, states, videos.clips)
    close(scores, [[-0.006492, -0.039411], [-0.002020, -0.023640]])
    spans = head.span_logits(query, states, videos.clips, np.array([0, 1]))
    start, end = spans.start_P.split([6, 4]), spans.end_P.split([6, 4])
    close(start[0], [1.07145, 1.757272, 2.214073, 0.099386, -0.171893, -0.445724])
    close(start[1], [1.268713, 1.692158, 1.099747, 0.507617])
    close(end[0], [-0.482137, -0.73781, -0.184529, 0.392381, 0.557318, 1.511926])
    close(end[1], [-0.662924, -0.702863, -0.27163, 0.404127])
    targets = [(1, 3), (0, 2)]
    loss = sum(
        F.cross_entropy(start[i], torch.tensor(first)) + F.cross_entropy(end[i], torch.tensor(last))
        for i, (first, last) in enumerate(targets)
    )
    close(0.01 * loss / 2, 0.029707)


def test_words(whole, frames, pack_clips, segment_rows):
    segments = [([100, MASK, 300, 400], [0, 1]), ([MASK, 600], [2]), ([MASK], [])]
    others = [([11, 12, 99], [0, 1, 2]), ([14, 15], [3])]
    videos = pack_clips([(frames[:6], segments), (frames[6:], others)], lead=CLS)
    hidden = whole.hero.encode_segments(videos)
    masked = [([100, MASK, 300, 400], 1, 200), ([MASK, 600], 0, 500), ([MASK], 0, 700)]
    masked += [([11, 12, 99], 2, 13), ([14, 15], 0, 14)]
    rows = [segment_rows(videos, [CLS, *text]).stop - len(text) + place for text, place, _ in masked]
    scores = whole.heads["lm"](hidden[rows], whole.hero.words_VD)
    losses = F.cross_entropy(scores, torch.tensor([word for _, _, word in masked]), reduction="none")
    close(losses, [11.143499, 11.499965, 10.412021, 11.204533, 11.656467])


def test_masked_frames(whole, frames, pack_clips):
    mask = np.zeros(10, dtype=bool)
    mask[[1, 4, 8]] = True
    videos = pack_clips([(frames[:6], A_SEGMENTS), (frames[6:], B_SEGMENTS)], lead=SEP, frame_mask=mask)
    predicted = whole.heads["frames"](whole.hero.encode_video(videos))
    targets = torch.from_numpy(frames[mask]).double()
    close(predicted[1, :4], [0.628746, 0.018314, 2.08255, 0.431309])
    logits = torch.cat([predicted[mask] @ targets.T, predicted[mask] @ predicted[~mask].T], dim=1)
    close(F.cross_entropy(logits, torch.arange(3), reduction="none"), [1564.062390, 1322.477947, 1653.966512])
    close((predicted[mask] - targets).norm(dim=1), [66.712975, 65.26191, 66.220868])


def test_frame_order(whole, videos):
    fused = whole.hero.fuse(videos, whole.hero.encode_frames(videos))
    order = torch.tensor([0, 3, 2, 1, 4, 5, 6, 7, 8, 9])
    moved = torch.empty_like(fused).index_copy(0, order, fused)
    scores = whole.heads["order"](whole.hero.encode_clips(moved, videos.clips))
    close(F.cross_entropy(scores[[1, 3]], torch.tensor([3, 1])), 5.060687)
