"""Question answering and entailment: readings share frames, answers come in any number, hidden labels count nowhere."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from hero_model.config import TextIds, base, debug
from hero_model.multitask import MultiTaskHero
from hero_model.nn.losses import binary_cross_entropy
from hero_model.official import load_official, to_official
from hero_model.packed.batch import Answers, Examples, Notes, VideoRows
from hero_model.packed.pack import Texts, joined, offsets_of, with_lead
from hero_model.tasks import Entailment, Fom, Mfm, Mlm, VideoQa
from hero_model.tasks.base import At
from hero_model.tasks.entailment import Statements
from hero_model.tasks.video_qa import Questions

TEXT = TextIds(cls=0, pad=1, sep=2, mask=99, vocab_size=100, random_low=4, random_high=90)
CFG = replace(debug(), frame_dim=8, vocab_size=104, dropout=0.0, attention_dropout=0.0)
AT = At(seed=3, step=0)
NORM_WEIGHT = re.compile(r"LayerNorm\.weight$|^v_encoder\.feat_regress\.net\.2\.weight$")


def flat(parts):
    return np.array([value for part in parts for value in part], dtype=np.int64)


def texts_of(parts):
    return Texts(flat(parts), offsets_of(np.array([len(part) for part in parts])))


def questions_of(asked, video_Q=None):
    """From (words, answers, label, span) each."""
    words, answers, labels, spans = zip(*asked, strict=True)
    return Questions(
        texts=texts_of(words),
        answers=texts_of([answer for of_one in answers for answer in of_one]),
        answer_offsets=offsets_of(np.array([len(of_one) for of_one in answers])),
        labels=np.array(labels),
        spans=np.array(spans),
        video_Q=np.arange(len(asked)) if video_Q is None else np.array(video_Q),
        keys_Q=np.arange(len(asked), dtype=np.uint64),
    )


def rows_of(*videos):
    """From (frames, segments of (words, frame indices)) each."""
    segments = [segment for _, owned in videos for segment in owned]
    words, owned = texts_of([text for text, _ in segments]), texts_of([indices for _, indices in segments])
    return VideoRows(
        ids=tuple(str(number) for number in range(len(videos))),
        keys=np.arange(len(videos), dtype=np.uint64),
        interval_s=np.full(len(videos), 1.5),
        frames=np.concatenate([frames for frames, _ in videos]),
        frame_offsets=offsets_of(np.array([len(frames) for frames, _ in videos])),
        segment_offsets=offsets_of(np.array([len(part) for _, part in videos])),
        tokens=words.tokens.astype(np.int32),
        token_offsets=words.offsets,
        segment_frames=owned.tokens,
        segment_frame_offsets=owned.offsets,
    )


@pytest.fixture
def rows():
    draw = np.random.default_rng(4)
    first = (draw.normal(size=(5, 8)).astype(np.float32), [([7, 8], [0, 1]), ([9], []), ([], [2, 4])])
    second = (draw.normal(size=(3, 8)).astype(np.float32), [([5, 6, 7], [1, 2])])
    return rows_of(first, second)


def model_of(*tasks):
    torch.manual_seed(5)
    return MultiTaskHero(CFG, tasks).double()


def asked(model, rows, questions):
    batch = VideoQa().assemble(Examples(rows), questions, TEXT)
    return batch, VideoQa().answer(model.hero, model.heads["answers"], batch)


TWO = ([11, 12], [[21], [22, 23]], 1, (0, 2))
FIVE = ([13], [[31], [], [32, 33, 34], [35], [36]], 3, (-1, -1))


# -- packing -----------------------------------------------------------------------------------------------------


def test_texts_are_written_behind_each_other():
    ab, cd = texts_of([[1, 2], []]), texts_of([[3], [4, 5], [6]])
    got = joined((ab, np.array([0, 1, 0])), (with_lead(cd, 9), np.array([2, 0, 1])))
    assert got.tokens.tolist() == [1, 2, 9, 6, 9, 3, 1, 2, 9, 4, 5]
    assert got.offsets.tolist() == [0, 4, 6, 11]


def test_a_reading_is_frames_subtitle_question_and_answer(rows):
    batch, _ = asked(model_of(VideoQa()), rows, questions_of([TWO, FIVE]))
    videos = batch.videos
    assert len(videos.frames) == 8 and videos.clips.runs == ((5, 2), (3, 5))
    assert videos.shared.frames.tolist() == [*range(5)] * 2 + [5, 6, 7] * 5
    tokens = [part.tolist() for part in videos.segments.tokens.split(np.diff(_text_offsets(videos)).tolist())]
    assert sorted(tokens)[:3] == [[2, 2, 11, 12, 2, 21], [2, 2, 11, 12, 2, 22, 23], [2, 5, 6, 7, 2, 13, 2]]
    assert len(tokens) == 2 * 2 + 5  # the segment without a frame is left out
    assert batch.texts.tokens.tolist()[:11] == [2, 11, 12, 2, 21, 2, 11, 12, 2, 22, 23]
    assert batch.texts.positions.tolist()[:11] == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 5]
    assert batch.counts == {"answer": 2, "span": 1}


def _text_offsets(videos):
    starts = torch.flatten((videos.segments.token_positions == 0).nonzero()).tolist()
    return np.array([*starts, len(videos.segments.tokens)])


# -- results -----------------------------------------------------------------------------------------------------


def test_questions_with_two_and_with_five_answers_do_not_see_each_other(rows):
    model = model_of(VideoQa())
    _, together = asked(model, rows, questions_of([TWO, FIVE]))
    alone = [asked(model, rows, questions_of([one], [video]))[1] for video, one in enumerate((TWO, FIVE))]
    torch.testing.assert_close(together.scores_N, torch.cat([said.scores_N for said in alone]))
    torch.testing.assert_close(together.spans_P2, torch.cat([said.spans_P2 for said in alone]))


def test_questions_about_one_video_are_as_with_copies_of_it(rows):
    model = model_of(VideoQa())
    _, shared = asked(model, rows, questions_of([TWO, FIVE], [1, 1]))
    one = (rows.frames[5:], [([5, 6, 7], [1, 2])])
    _, copied = asked(model, rows_of(one, one), questions_of([TWO, FIVE]))
    torch.testing.assert_close(shared.scores_N, copied.scores_N)
    torch.testing.assert_close(shared.spans_P2, copied.spans_P2)


def test_seconds_become_frames_and_clips_are_cut(rows):
    notes = Notes(
        ids=("a", "b"),
        keys=np.arange(2, dtype=np.uint64),
        tokens=np.array([11, 12, 13], dtype=np.int32),
        token_offsets=np.array([0, 2, 3]),
        spans_s=np.array([[1.6, 4.4], [np.nan, np.nan]]),
        labels=np.array([1, -1]),
        answers=Answers(np.array([21, 22, 31, 32], dtype=np.int32), np.arange(5), np.array([0, 2, 4])),
    )
    batch = VideoQa(max_frames=2).prepare(Examples(rows, notes), AT, TEXT)
    assert batch.spans.tolist() == [[1, 1], [-1, -1]] and batch.labels.tolist() == [1, -1]
    assert batch.videos.clips.runs == ((2, 4),) and batch.counts == {"answer": 1, "span": 1}


def test_hidden_labels_are_neither_loss_nor_count(rows):
    model, hidden = model_of(VideoQa()), [(words, answers, -1, (-1, -1)) for words, answers, _, _ in (TWO, FIVE)]
    batch, _ = asked(model, rows, questions_of(hidden))
    out = model("video_qa", batch, AT)
    assert batch.counts == {"answer": 0, "span": 0}
    assert [value.item() for value in out.sums.values()] == [0.0, 0.0]
    assert all((correct.item(), count.item()) == (0, 0) for correct, count in out.stats.values())
    sum(out.sums.values()).backward()


def test_without_weight_there_is_no_span_term(rows):
    task, model = VideoQa(span_weight=0.0), model_of(VideoQa())
    batch = task.assemble(Examples(rows), questions_of([TWO, FIVE]), TEXT)
    assert set(batch.counts) == set(task.forward(model.hero, model.heads["answers"], batch, AT).sums) == {"answer"}


def test_the_second_pooling_starts_as_the_first():
    head = model_of(VideoQa()).heads["answers"]
    assert torch.equal(head.pool.weight, head.span_pool.weight) and head.pool.weight is not head.span_pool.weight


def test_binary_cross_entropy_of_extreme_and_hidden_rows():
    logits = torch.tensor([200.0, -200.0, 0.5, 7.0], requires_grad=True)
    loss, correct = binary_cross_entropy(logits, torch.tensor([1, 1, 0, -1]))
    loss.backward()
    assert loss.item() == pytest.approx(200 + np.log1p(np.exp(0.5))) and correct.item() == 1
    assert logits.grad[3] == 0
    half, _ = binary_cross_entropy(torch.tensor([-20.0], dtype=torch.float16), torch.tensor([1]))
    assert half.dtype == torch.float32 and half.item() == pytest.approx(20)


# -- the official models ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    frames = np.random.RandomState(7).uniform(-1, 1, (10, 4352)).astype(np.float32)
    return rows_of((frames[:6], [([100, 200, 300, 400], [0, 1]), ([500, 600], [2]), ([700], [])]))


def official_model(task, names, parameters):
    """The base model, filled by the formula of hero.md Appendix A."""
    cfg = replace(base(), dropout=0.0, attention_dropout=0.0)
    with torch.device("meta"):
        model = MultiTaskHero(cfg, (Mlm(), Mfm(), Fom(), task))
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    shapes = {name: tensor.shape for name, tensor in to_official(model.state_dict()).items()}
    assert len(shapes) == names
    filled = {}
    for index, name in enumerate(sorted(shapes)):
        if name.endswith(("pad", "lm_head.decoder.weight")):
            continue
        u = np.random.RandomState(1000 + index).uniform(-1, 1, size=shapes[name].numel()).astype(np.float32)
        u = torch.from_numpy(u).reshape(shapes[name])
        filled[name] = 1 + 0.1 * u if NORM_WEIGHT.search(name) else 0.05 * u
    model = model.to_empty(device="cpu")
    report = load_official(filled, model)
    assert (report.missing, report.unexpected, report.ignored) == ((), (), ())
    return model.double().requires_grad_(False)


def test_numeric_self_check_of_question_answering(clip):
    model = official_model(VideoQa(), 203, 119_468_231)
    asked_once = ([21, 22], [[51], [52, 53], [54], [55], [56, 57, 58]], 3, (1, 3))
    batch, said = asked(model, clip, questions_of([asked_once]))
    expected = torch.tensor([0.606057, 0.400044, 0.606476, 0.485389, 0.208045]).double()
    torch.testing.assert_close(said.scores_N, expected, rtol=0, atol=5.1e-7)
    sums = model("video_qa", batch, AT).sums
    assert sums["answer"].item() == pytest.approx(1.59594, abs=5.1e-6)
    assert sums["span"].item() == pytest.approx(1.865118, abs=5.1e-7)


def test_numeric_self_check_of_entailment(clip):
    model = official_model(Entailment(), 196, 118_280_133)
    drawn = Statements(
        texts_of([[61, 62, 63], [64, 65]]), np.array([1, 0]), np.zeros(2, np.int64), np.arange(2, dtype=np.uint64)
    )
    batch = Entailment(context=0).assemble(Examples(clip), drawn, TEXT)
    logits = Entailment().judge(model.hero, model.heads["statements"], batch)
    torch.testing.assert_close(logits, torch.tensor([-0.547722, -0.423876]).double(), rtol=0, atol=5.1e-7)
    assert model("entailment", batch, AT).sums["entailment"].item() / 2 == pytest.approx(0.753775, abs=5.1e-7)
