"""Scoring captions as they are written: with the Java programs where they are, with a line that says so where not."""

from __future__ import annotations

import pytest

from hero_platform.infer import caption_score
from hero_platform.infer.caption_score import score_captions


def test_plain_words_follow_the_rules_of_the_treebank():
    text = "Dr. House says \"It's fine\" -- isn't it? He (slowly) walks; they'll stay, half-asleep..."
    words = "dr. house says it 's fine is n't it he -lrb- slowly -rrb- walks they 'll stay half-asleep"
    assert caption_score._plain_tokens(text) == words


def test_characters_outside_ascii_are_blanks():
    got = score_captions({"a": "caf\u00e9 style \u2013 red"}, {"a": ["caf style red"]})
    assert got.values["rouge_l"] == pytest.approx(100.0)


def test_predictions_must_cover_the_reference():
    with pytest.raises(ValueError, match="no caption was predicted for b"):
        score_captions({"a": "x"}, {"a": ["x"], "b": ["y"]})


def test_a_program_that_fails_says_why_and_the_other_metrics_are_there(monkeypatch, tmp_path):
    monkeypatch.setattr(caption_score, "_jars", lambda: (tmp_path, ""))
    fake = tmp_path / "java"
    fake.write_text("#!/bin/sh\necho no such jar >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    others = {"bleu1", "bleu2", "bleu3", "bleu4", "rouge_l", "cider_d"}
    without = score_captions({"a": "x"}, {"a": ["x"]})
    assert set(without.values) == others and "METEOR is left out and words are split by a plain rule" in without.note
    assert without.note.endswith("the PTB tokenizer gave 0 lines for 2 captions: no such jar")
    (tmp_path / "meteor").mkdir()
    monkeypatch.setattr(caption_score, "_ptb_tokens", lambda texts, jars: list(texts))
    without = score_captions({"a": "x"}, {"a": ["x"]})
    assert set(without.values) == others
    assert without.note == "METEOR is left out: METEOR gave no score: no such jar"
