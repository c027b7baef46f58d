"""Caption metrics on cases whose value is known (tests/parity/test_metrics.py has the official ones)."""

from __future__ import annotations

import pytest

from hero_model.metrics.caption import bleu, cider_d, rouge_l, score


def test_a_caption_equal_to_its_reference():
    words = "a man sits down and reads".split()
    other = "two women walk along the beach".split()
    pairs = [(words, [words]), (other, [other])]
    assert [scores.corpus for scores in bleu(pairs)] == pytest.approx([1.0] * 4)
    assert rouge_l(pairs).clips == pytest.approx([1.0, 1.0])
    assert cider_d(pairs).clips == pytest.approx([10.0, 10.0])


def test_empty_captions_score_nothing_and_break_nothing():
    got = score({"a": "", "b": "a man sits"}, {"a": ["a man sits down"], "b": [""]})
    assert got["rouge_l"].clips == [0.0, 0.0]
    assert got["cider_d"].clips == [0.0, 0.0]
    assert all(scores.corpus < 1e-3 for scores in got.values())


@pytest.mark.parametrize(
    ("hypotheses", "references", "message"),
    [
        ({"a": "x"}, {"a": ["x"], "b": ["y"], "c": ["z"]}, r"no caption was predicted for b, c \(2 in all\)"),
        ({"a": "x", "b": "y"}, {"a": ["x"]}, r"no reference for the predicted clips b \(1 in all\)"),
        ({"a": "x"}, {"a": []}, "the reference has no caption of a"),
        ({}, {}, "the reference holds no clip"),
    ],
)
def test_hypotheses_must_cover_exactly_the_reference_clips(hypotheses, references, message):
    with pytest.raises(ValueError, match=message):
        score(hypotheses, references)
