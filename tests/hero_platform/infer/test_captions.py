"""Describing a split: each clip once, however videos fall into blocks, in the official form, ready to be scored."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch

from hero_model.config import debug
from hero_model.multitask import MultiTaskHero
from hero_model.nn.generate import Search
from hero_model.tasks import Captioning
from hero_platform.config import Entry, RunConfig, StoreRef
from hero_platform.infer.caption_score import score_captions
from hero_platform.infer.captions import CaptionEvaluation, Clips, caption_clips, describe_clips
from hero_platform.infer.evaluation import Model, Settings
from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.store.reader import FeatureStore
from hero_platform.store.tokens import TokenizerSpec
from hero_platform.train.resolve import resolve

HOW = Settings(writing=Search(max_tokens=6))
TASK = Captioning()


@pytest.fixture(scope="module")
def written(tiny_store):
    config = RunConfig(
        recipe="captions",
        mixture=(Entry(TASK, "synthetic"),),
        stores=(StoreRef("synthetic", tiny_store),),
        model=debug(),
        batch=8,
        pool=8,
        nce_pool=1,
    )
    config = resolve(config)
    torch.manual_seed(0)
    module = MultiTaskHero(config.model, (TASK,))
    clips = Clips.open(FeatureStore.open(tiny_store), "val")
    model = Model.of(module, config, device=torch.device("cpu"))
    return model, clips, describe_clips(clips, model, TASK, HOW, SyntheticSource().tokenizer())


def test_every_clip_is_described_whatever_the_blocks(written):
    model, clips, captions = written
    assert list(captions) == list(clips.ids) == list(clips.references)
    assert len(clips.ids) == len(clips.table)  # each synthetic caption is about a scene of its own
    assert len(set(captions.values())) > 1
    for block in (1, 3):
        assert describe_clips(clips, model, TASK, HOW, SyntheticSource().tokenizer(), block=block) == captions


def test_the_official_form(written):
    _, clips, captions = written
    name, text = CaptionEvaluation(clips, captions, None).submission()
    lines = [json.loads(line) for line in text.splitlines()]
    assert name == "submission.jsonl"
    assert [line["descs"] for line in lines] == [[{"desc": text}] for text in captions.values()]
    for line, row in zip(lines, clips.rows.tolist(), strict=True):
        assert line["vid_name"] == clips.table.videos[row]
        assert line["ts"] == clips.table.spans_s[row].tolist()


def test_captions_of_one_clip_share_its_line(written):
    _, clips, _ = written
    table = clips.table.table
    group = ["7"] * 3 + [str(number) for number in range(100, 97 + len(table))]
    grouped = replace(clips.table, table=table.append_column("group", [group]))
    store = type("Store", (), {"annotations": lambda self, kind, split: grouped, "root": "here"})()
    found = Clips.open(store, "val")
    assert found.ids[:2] == ("7", "100") and len(found.ids) == len(table) - 2
    assert len(found.references["7"]) == 3 and found.rows[:2].tolist() == [0, 3]


def test_captions_are_scored_against_the_split(written, monkeypatch):
    model, clips, captions = written
    monkeypatch.setattr("hero_platform.infer.caption_score._jars", lambda: (None, "no Java"))
    found = caption_clips(clips, model, TASK, HOW)  # with the vocabulary that the store carries
    results = found.results()
    assert found.written == captions and results["clips"] == len(clips.ids) and results["note"] == "no Java"
    assert results["metrics"].keys() >= {"bleu4", "rouge_l", "cider_d"}
    assert results["intervals"].keys() == {"rouge_l", "cider_d"}
    low, high = results["intervals"]["rouge_l"]
    assert low < results["metrics"]["rouge_l"] < high
    perfect = {clip: texts[0] for clip, texts in clips.references.items()}
    assert score_captions(perfect, clips.references).values["rouge_l"] == pytest.approx(100.0)


def test_a_hidden_split_is_described_and_not_scored(written):
    model, clips, captions = written
    hidden = replace(clips, references={clip: [] for clip in clips.ids})
    found = caption_clips(hidden, model, TASK, HOW)
    assert found.written == captions and found.results()["metrics"] == {} and "hides" in found.lines()[-1]
    assert list(found.figures()) == ["captions"]


def test_another_vocabulary_is_refused(written, tmp_path):
    model, clips, _ = written
    other = TokenizerSpec.of_words(["only", "these"])
    with pytest.raises(ValueError, match="went through another vocabulary"):
        caption_clips(clips, model, TASK, replace(HOW, tokenizer=other))
    with pytest.raises(ValueError, match="carries no vocabulary"):
        TokenizerSpec.of_store(str(tmp_path), clips.store.manifest.tokenizer)
    other.write(str(tmp_path))
    with pytest.raises(ValueError, match="not the vocabulary the store was built with"):
        TokenizerSpec.of_store(str(tmp_path), clips.store.manifest.tokenizer)
