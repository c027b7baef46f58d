"""Caption metrics against the official ones on tokenised text, and on cases whose value is known."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hero_model.metrics.caption import bleu, cider_d, rouge_l, score

REPO = Path(__file__).resolve().parents[2]
FILES = sorted((REPO / "tests" / "golden" / "metrics").glob("caption_*.json"))
OFFICIAL = {"bleu1": "Bleu_1", "bleu2": "Bleu_2", "bleu3": "Bleu_3", "bleu4": "Bleu_4", "rouge_l": "ROUGE_L"}
OFFICIAL["cider_d"] = "CIDEr"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_official_values(path):
    stored = json.loads(path.read_text())
    hypotheses = {str(clip): stored["ptb_tokenized_hypotheses"][str(clip)][0] for clip in stored["clip_order"]}
    got = score(hypotheses, stored["ptb_tokenized_references"])
    assert set(got) == set(OFFICIAL)
    for name, official in OFFICIAL.items():
        assert 100 * got[name].corpus == pytest.approx(stored["corpus_scores_x100"][official], rel=1e-13)
        assert got[name].clips == pytest.approx(stored["per_clip_scores"][official], rel=1e-12)


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
