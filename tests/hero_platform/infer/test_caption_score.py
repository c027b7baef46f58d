"""Scoring captions as they are written: with the Java programs where they are, with a line that says so where not."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hero_platform.infer import caption_score
from hero_platform.infer.caption_score import score_captions

REPO = Path(__file__).resolve().parents[3]
FILES = sorted((REPO / "tests" / "golden" / "metrics").glob("caption_*.json"))
OFFICIAL = {"bleu1": "Bleu_1", "bleu4": "Bleu_4", "rouge_l": "ROUGE_L", "cider_d": "CIDEr", "meteor": "METEOR"}
HAS_JAVA = caption_score._jars()[0] is not None


def captions_of(path):
    stored = json.loads(path.read_text())
    predicted = {str(row["clip_id"]): row["descs"][0]["desc"] for row in stored["hypotheses"]}
    references = {str(row["clip_id"]): [text["desc"] for text in row["descs"]] for row in stored["references"]}
    return stored, predicted, references


def check(got, stored, names):
    for name in names:
        assert got.values[name] == pytest.approx(stored["corpus_scores_x100"][OFFICIAL[name]], rel=1e-12)
        own = [100 * value for value in stored["per_clip_scores"][OFFICIAL[name]]]
        assert got.clips[name] == pytest.approx(own, rel=1e-12, abs=1e-12)


@pytest.mark.skipif(not HAS_JAVA, reason="needs Java and pycocoevalcap")
def test_official_values_with_java():
    stored, predicted, references = captions_of(FILES[-1])
    got = score_captions(predicted, references)
    assert got.note == "" and got.clip_ids == [str(clip) for clip in stored["clip_order"]]
    check(got, stored, OFFICIAL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
@pytest.mark.parametrize("lacking", ["java", "package"])
def test_without_java_one_line_says_so_and_the_rest_is_scored(path, lacking, monkeypatch):
    """On these captions the plain words are PTB's, so the values are the official ones too."""
    if lacking == "package":
        monkeypatch.setattr(caption_score.importlib.util, "find_spec", lambda name: None)
    else:
        found = type("Spec", (), {"submodule_search_locations": ["/nowhere"]})()
        monkeypatch.setattr(caption_score.importlib.util, "find_spec", lambda name: found)
        monkeypatch.setattr(caption_score.shutil, "which", lambda name: None)
    stored, predicted, references = captions_of(path)
    got = score_captions(predicted, references)
    assert got.note.startswith("METEOR is left out") and "\n" not in got.note
    assert "meteor" not in got.values
    check(got, stored, ["bleu1", "bleu4", "rouge_l", "cider_d"])


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
