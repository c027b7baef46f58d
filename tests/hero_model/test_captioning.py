"""Captioning: what is packed, how moments become frames, what is learnt and what the searches write."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from hero_model.config import TextIds, base, debug
from hero_model.multitask import MultiTaskHero
from hero_model.nn.decoder import Memory
from hero_model.nn.generate import Search, search
from hero_model.nn.losses import smoothed_cross_entropy
from hero_model.official import load_official, official_name, to_official
from hero_model.packed.batch import Examples, Layout, Notes
from hero_model.packed.pack import Texts, offsets_of
from hero_model.tasks import Captioning, Fom, Mfm, Mlm
from hero_model.tasks.base import At
from hero_model.tasks.captioning import Captions, frame_ranges

TEXT = TextIds(cls=0, pad=1, sep=2, mask=99, vocab_size=100, random_low=4, random_high=90)
CFG = replace(debug(), frame_dim=8, vocab_size=104, dropout=0.0, attention_dropout=0.0)
AT = At(seed=3, step=0)
NORM_WEIGHT = re.compile(r"LayerNorm\.weight$|^v_encoder\.feat_regress\.net\.2\.weight$")


def texts_of(captions):
    lengths = np.array([len(caption) for caption in captions])
    return Texts(np.array([word for caption in captions for word in caption], dtype=np.int64), offsets_of(lengths))


def model_of(*tasks, cfg=CFG):
    torch.manual_seed(5)
    return MultiTaskHero(cfg, tasks)


# -- the official model ------------------------------------------------------------------------------------------


def test_numeric_self_check(pack_clips):
    """The TVC rows of hero.md Appendix A; 246 official names and the published number of parameters."""
    cfg = replace(base(), dropout=0.0, attention_dropout=0.0)
    with torch.device("meta"):
        model = MultiTaskHero(cfg, (Mfm(), Fom(), Captioning()))
    assert sum(parameter.numel() for parameter in model.parameters()) == 136_785_092
    shapes = {name: tensor.shape for name, tensor in to_official(model.state_dict()).items()}
    assert len(shapes) == 246
    assert shapes["decoder.tri_mask"] == (1024, 1024) and shapes["loss_func.one_hot"] == (1, 50272)
    filled = {}
    for index, name in enumerate(sorted(shapes)):
        if name.endswith(("pad", "tri_mask", "one_hot", "lm_head.decoder.weight")):
            continue
        u = np.random.RandomState(1000 + index).uniform(-1, 1, size=shapes[name].numel()).astype(np.float32)
        u = torch.from_numpy(u).reshape(shapes[name])
        filled[name] = 1 + 0.1 * u if NORM_WEIGHT.search(name) else 0.05 * u
    model = model.to_empty(device="cpu")
    report = load_official(filled, model)
    assert (report.missing, report.unexpected, report.ignored) == ((), (), ())
    hero, head = model.double().requires_grad_(False).hero, model.heads["captions"]

    frames = np.random.RandomState(7).uniform(-1, 1, (10, 4352)).astype(np.float32)
    first = [([100, 200, 300, 400], [0, 1]), ([500, 600], [2]), ([700], [])]
    second = [([11, 12, 13], [0, 1, 2]), ([14, 15], [3])]
    videos = pack_clips([(frames[:6], first), (frames[6:], second)], lead=TEXT.sep)
    memory = Memory(torch.tensor([1, 2, 3, 6, 7]), Layout.of(np.array([3, 2])))
    tokens, captions = torch.tensor([0, 71, 72, 73, 0, 74, 75]), Layout.of(np.array([4, 3]))
    scores = head(tokens, captions, hero.encode_video(videos), memory, hero.words_VD)
    expected = torch.tensor([0.165743, -0.992312, -0.775401, 1.212085]).double()
    torch.testing.assert_close(scores[3, :4], expected, rtol=0, atol=5.1e-7)
    targets = [71, 72, 73, 2, 74, 75, 2]
    losses = [9.710463, 8.611502, 9.244745, 10.434448, 9.040381, 8.856212, 10.583587]
    for row, (target, loss) in enumerate(zip(targets, losses, strict=True)):
        got = smoothed_cross_entropy(scores[row : row + 1], torch.tensor([target]), 0.1).loss
        assert got.item() == pytest.approx(loss, abs=5.1e-7)


def test_the_decoder_learns_faster_than_the_language_head_it_shares_with_the_encoder():
    model = model_of(Captioning())
    outside = {name for name, _ in model.named_parameters() if not official_name(name).startswith("v_encoder.")}
    head = {f"heads.captions.{name}" for name, _ in model.heads["captions"].named_parameters()}
    assert outside == {name for name in head if not name.startswith("heads.captions.lm.")}


# -- packing -----------------------------------------------------------------------------------------------------


def test_moments_become_frames_as_python_rounds(random_rows):
    rows = random_rows(2, num_videos=5)
    draw = np.random.default_rng(0)
    video = draw.integers(5, size=200)
    spans = np.sort(draw.integers(0, 40, size=(200, 2)) * 0.75, axis=1)  # halves of a frame, and beyond the clip
    spans[:2] = [[0.0, 0.75], [0.0, 3.75]]  # 0.5 and 2.5 frames
    got = frame_ranges(rows, spans, video)
    for (start, end), (t0, t1), owner in zip(got.tolist(), spans.tolist(), video.tolist(), strict=True):
        num_frames = int(np.diff(rows.frame_offsets)[owner])
        first = min(int(t0 // 1.5), num_frames)
        assert (start, end) == (first, min(max(round(t1 / 1.5), first + 1), num_frames))
    assert got[:2].tolist() == [[0, 1], [0, min(2, int(np.diff(rows.frame_offsets)[video[1]]))]]
    assert (got[:, 0] == got[:, 1]).any() and (np.diff(got) > 3).any()
    whole = frame_ranges(rows, np.full((5, 2), np.nan), np.arange(5))
    assert whole.tolist() == [[0, count] for count in np.diff(rows.frame_offsets).tolist()]


def test_captions_are_shifted_ended_and_cut(random_rows):
    rows = random_rows(1, num_videos=2)
    captions = [[11, 12, 13, 14], [], [21, 22], [31, 32, 33]]
    last = int(np.diff(rows.frame_offsets)[1])
    drawn = Captions(
        texts=texts_of(captions),
        ranges=np.array([[0, 1], [0, 1], [0, last], [last, last]]),
        video_C=np.array([0, 0, 1, 1]),
        keys_C=np.arange(4, dtype=np.uint64),
    )
    batch = Captioning(max_tokens=4).assemble(Examples(rows), drawn, TEXT)
    bounds = batch.captions.offsets.tolist()
    parts = [(batch.tokens[a:b].tolist(), batch.targets[a:b].tolist()) for a, b in itertools.pairwise(bounds)]
    by_caption = dict(zip(batch.order.tolist(), parts, strict=True))
    assert by_caption[0] == ([0, 11, 12, 13], [11, 12, 13, 14])  # no room for the end
    assert by_caption[1] == ([0], [2])
    assert by_caption[2] == ([0, 21, 22], [21, 22, 2])
    assert by_caption[3] == ([0, 31, 32, 33], [31, 32, 33, 2])
    assert batch.counts == {"caption": 12} and [length for length, _ in batch.captions.runs] == [1, 3, 4]
    cuts = batch.memory.layout.offsets[1:-1].long()
    seen = dict(
        zip(batch.order.tolist(), [part.tolist() for part in batch.memory.rows.tensor_split(cuts)], strict=True)
    )
    start, end = rows.frame_offsets[1:].tolist()
    assert seen == {0: [0], 1: [0], 2: list(range(start, end)), 3: [end]}  # the zero state stands for no frame


def test_captions_share_the_encoding_of_their_video(random_rows):
    rows = random_rows(4, num_videos=3)
    notes = Notes(
        ids=tuple("abcde"),
        keys=np.arange(5, dtype=np.uint64),
        tokens=np.arange(10, 20, dtype=np.int32),
        token_offsets=np.arange(0, 11, 2),
        spans_s=np.array([[0.0, 3.0]] * 5),
        video_N=np.array([0, 0, 0, 1, 2]),
    )
    batch = Captioning().prepare(Examples(rows, notes), AT, TEXT)
    assert len(batch.videos.frames) == len(rows.frames) and batch.captions.num_sequences == 5


@pytest.mark.parametrize("setting", [{"smoothing": 0.5}, {"smoothing": -0.1}, {"max_tokens": 0}])
def test_impossible_settings_are_refused(setting):
    with pytest.raises(ValueError, match="give at least"):
        Captioning(**setting)


def test_a_decoder_with_too_few_positions_is_refused():
    small = replace(CFG, decoder=replace(CFG.decoder, max_positions=20))
    with pytest.raises(ValueError, match="60, but the decoder has 20 positions"):
        MultiTaskHero(small, (Captioning(),))
    model = MultiTaskHero(small, (Captioning(max_tokens=20),))
    memory = Memory(torch.tensor([0]), Layout.of(np.array([1])))
    with pytest.raises(ValueError, match="captions of up to 30 tokens need as many positions"):
        search(model.heads["captions"], torch.zeros(1, 64), memory, model.hero.words_VD, TEXT, Search())


# -- losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_smoothing_is_the_divergence_from_the_smoothed_target(smoothing):
    torch.manual_seed(0)
    scores, targets = torch.randn(6, 9, dtype=torch.float64), torch.tensor([0, 8, 3, 3, 1, 7])
    wanted = torch.full((6, 9), smoothing / 8, dtype=torch.float64)
    wanted[torch.arange(6), targets] = 1 - smoothing
    expected = F.kl_div(scores.log_softmax(-1), wanted, reduction="sum")
    got = smoothed_cross_entropy(scores, targets, smoothing)
    assert got.loss.item() == pytest.approx(expected.item(), rel=1e-12)
    assert got.correct.item() == (scores.argmax(-1) == targets).sum().item()


def test_captions_start_from_the_language_head_of_mlm():
    trained, model = model_of(Mlm()), MultiTaskHero(CFG, (Captioning(),))
    adopted = model.adopt(trained.state_dict())
    report = model.load_state_dict(adopted, strict=False)
    assert not report.unexpected_keys
    assert all(name.startswith("heads.captions.") and ".lm." not in name for name in report.missing_keys)
    for name, weight in trained.heads["lm"].state_dict().items():
        assert torch.equal(model.heads["captions"].lm.state_dict()[name], weight)
    both = MultiTaskHero(CFG, (Mlm(), Captioning()))
    assert set(both.adopt(trained.state_dict())) >= set(trained.state_dict())
    resumed = both.adopt(both.state_dict())  # a checkpoint with both heads keeps both
    assert all(
        resumed[name] is weight or torch.equal(resumed[name], weight) for name, weight in both.state_dict().items()
    )


# -- searching ---------------------------------------------------------------------------------------------------


def all_captions(head, states, rows, words, steps):
    """Log-probability of every caption of at most `steps` tokens over a few words, by running each whole."""
    memory = Memory(rows, Layout.of(np.array([len(rows)])))
    found = {}
    for caption in itertools.product(range(len(words)), repeat=steps):
        cut = caption[: caption.index(TEXT.sep) + 1] if TEXT.sep in caption else caption
        tokens = torch.tensor([TEXT.cls, *cut[:-1]])
        scores = head(tokens, Layout.of(np.array([len(tokens)])), states, memory, words).log_softmax(-1)
        found[cut] = scores[torch.arange(len(cut)), torch.tensor(cut)].sum().item()
    return found


@pytest.mark.parametrize("length_penalty", [0.0, 1.0])
def test_a_wide_beam_finds_the_best_caption_of_all(length_penalty):
    cfg = replace(CFG, vocab_size=8)
    torch.manual_seed(1)
    model = MultiTaskHero(cfg, (Captioning(),)).eval().requires_grad_(False)
    head, words = model.heads["captions"], model.hero.words_VD * 60  # far apart, so that captions differ
    states = torch.randn(9, 64) * 3
    lengths = np.array([1, 2, 2, 4])
    memory = Memory(torch.arange(9), Layout.of(lengths))
    how = Search(num_beams=8**3, max_tokens=3, length_penalty=length_penalty)
    wide = search(head, states, memory, words, TEXT, how)
    greedy = search(head, states, memory, words, TEXT, Search(max_tokens=3))
    for moment, rows in enumerate(memory.rows.tensor_split(memory.layout.offsets[1:-1].long())):
        scores = all_captions(head, states, rows, words, 3)
        best = max(scores, key=lambda caption: scores[caption] / len(caption) ** length_penalty)
        assert wide.lists()[moment] == [word for word in best if word != TEXT.sep]
        assert wide.scores[moment] == pytest.approx(scores[best], abs=1e-4)
        own = tuple(greedy.lists()[moment])
        assert greedy.scores[moment] == pytest.approx(scores[own if len(own) == 3 else (*own, TEXT.sep)], abs=1e-4)
        for place, word in enumerate((*own, TEXT.sep)[:3]):  # each word is the best after those before it
            ahead = {c: s for c, s in scores.items() if c[:place] == own[:place] and len(c) > place}
            totals = [torch.tensor([s for c, s in ahead.items() if c[place] == w]).logsumexp(0) for w in range(8)]
            assert int(torch.stack(totals).argmax()) == word


def test_an_ended_caption_is_not_written_on(monkeypatch):
    """The decoder sees fewer and fewer captions: those that have ended leave the batch."""
    model = MultiTaskHero(CFG, (Captioning(),)).eval().requires_grad_(False)
    head, seen = model.heads["captions"], []
    ends = {0: 3, 1: 1, 2: 5}  # caption -> step at which its end is the best word

    def fake(x, words):
        step = len(seen)
        live = [caption for caption, end in ends.items() if end >= step]
        seen.append(len(x))
        scores = torch.zeros(len(live), 104)
        for row, caption in enumerate(live):
            scores[row, TEXT.sep if ends[caption] == step else 10 + caption] = 9.0
        return scores

    monkeypatch.setattr(head.lm, "forward", fake)
    memory = Memory(torch.tensor([0, 1, 2, 0, 1, 2]), Layout.of(np.array([1, 2, 3])))
    found = search(head, torch.randn(3, 64), memory, model.hero.words_VD, TEXT, Search(max_tokens=30))
    assert found.lists() == [[10] * 3, [11], [12] * 5]
    assert seen == [3, 3, 2, 2, 1, 1]


def test_a_search_without_moments_finds_none():
    model = MultiTaskHero(CFG, (Captioning(),)).eval()
    nothing = Memory(torch.zeros(0, dtype=torch.int64), Layout.of(np.zeros(0, dtype=np.int64)))
    found = search(model.heads["captions"], torch.randn(3, 64), nothing, model.hero.words_VD, TEXT, Search())
    assert len(found.scores) == len(found.tokens) == 0


@pytest.mark.parametrize("how", [{"num_beams": 0}, {"max_tokens": 0}])
def test_a_search_for_nothing_is_refused(how):
    with pytest.raises(ValueError, match="at least one beam and one token"):
        Search(**how)
