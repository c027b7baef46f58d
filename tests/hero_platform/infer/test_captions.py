"""Describing a split: each clip once, however videos fall into blocks, in the official form, ready to be scored."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from hero_model.config import debug
from hero_model.multitask import MultiTaskHero
from hero_model.nn.generate import Search
from hero_model.tasks import Captioning, Mlm
from hero_platform.config import Entry, RunConfig, StoreRef
from hero_platform.infer.caption_score import score_captions
from hero_platform.infer.captions import Clips, describe_clips, submission_lines
from hero_platform.sources.synthetic import SyntheticSource
from hero_platform.store.reader import FeatureStore
from hero_platform.train.resolve import resolve

HOW = Search(max_tokens=6)


@pytest.fixture(scope="module")
def written(tiny_store):
    config = RunConfig(
        recipe="captions",
        mixture=(Entry(Captioning(), "synthetic"),),
        stores=(StoreRef("synthetic", tiny_store),),
        model=debug(),
        batch=8,
        pool=8,
        nce_pool=1,
    )
    config = resolve(config)
    torch.manual_seed(0)
    module = MultiTaskHero(config.model, (Captioning(),)).eval()
    clips = Clips.open(FeatureStore.open(tiny_store), "val")
    tokenizer = SyntheticSource().tokenizer()
    return module, config, clips, tokenizer, describe_clips(module, config, clips, tokenizer, HOW)


def test_every_clip_is_described_whatever_the_blocks(written):
    module, config, clips, tokenizer, captions = written
    assert list(captions) == list(clips.ids) == list(clips.references)
    assert len(clips.ids) == len(clips.table)  # each synthetic caption is about a scene of its own
    assert len(set(captions.values())) > 1
    for block in (1, 3):
        assert describe_clips(module, config, clips, tokenizer, HOW, block=block) == captions


def test_the_official_form(written):
    _, _, clips, _, captions = written
    lines = list(submission_lines(clips, captions))
    assert [line["descs"] for line in lines] == [[{"desc": text}] for text in captions.values()]
    for line, row in zip(lines, clips.rows.tolist(), strict=True):
        assert line["vid_name"] == clips.table.videos[row]
        assert line["ts"] == clips.table.spans_s[row].tolist()


def test_captions_of_one_clip_share_its_line(written):
    _, _, clips, _, _ = written
    table = clips.table.table
    group = ["7"] * 3 + [str(number) for number in range(100, 97 + len(table))]
    grouped = replace(clips.table, table=table.append_column("group", [group]))
    store = type("Store", (), {"annotations": lambda self, kind, split: grouped, "root": "here"})()
    found = Clips.open(store, "val")
    assert found.ids[:2] == ("7", "100") and len(found.ids) == len(table) - 2
    assert len(found.references["7"]) == 3 and found.rows[:2].tolist() == [0, 3]


def test_captions_are_scored_against_the_split(written, monkeypatch):
    _, _, clips, _, captions = written
    monkeypatch.setattr("hero_platform.infer.caption_score._jars", lambda: (None, "no Java"))
    assert score_captions(captions, clips.references).values.keys() >= {"bleu4", "rouge_l", "cider_d"}
    perfect = {clip: texts[0] for clip, texts in clips.references.items()}
    assert score_captions(perfect, clips.references).values["rouge_l"] == pytest.approx(100.0)


def test_a_run_without_captions_is_refused(written):
    module, config, clips, tokenizer, _ = written
    other = replace(config, mixture=(Entry(Mlm(), "synthetic"),))
    with pytest.raises(ValueError, match="trained no captioning"):
        describe_clips(module, other, clips, tokenizer, HOW)
    with pytest.raises(ValueError, match="special ids"):
        describe_clips(module, replace(config, text=replace(config.text, mask=7)), clips, tokenizer, HOW)
