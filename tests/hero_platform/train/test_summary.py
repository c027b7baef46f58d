from dataclasses import replace

import pytest
import torch

from hero_model.config import debug
from hero_model.multitask import MultiTaskHero
from hero_model.tasks import Mlm, MomentRetrieval
from hero_platform import config_io
from hero_platform.config import Entry, RunConfig, StoreRef
from hero_platform.feed.loader import Feed, mixture_of, open_stores
from hero_platform.store.reader import FeatureStore
from hero_platform.train import summary as summary_module
from hero_platform.train.resolve import resolve
from hero_platform.train.summary import summary, summary_text, unique_tasks


@pytest.fixture(scope="module")
def run(tiny_store) -> RunConfig:
    return resolve(
        RunConfig(
            recipe="tiny",
            mixture=(Entry(Mlm(), "synthetic", weight=3), Entry(MomentRetrieval(), "synthetic")),
            stores=(StoreRef("synthetic", tiny_store),),
            model=debug(),
            batch=8,
            pool=8,
            nce_pool=2,
            steps=50,
        )
    )


def test_facts_are_those_of_the_run(run, tiny_store):
    facts = summary(run)
    module = MultiTaskHero(run.model, unique_tasks(run))
    assert facts["parameters"] == sum(p.numel() for p in module.parameters())
    feed = Feed(run, open_stores(run), 0, 1)
    entries = [feed.mixture.entry(step) for step in range(run.steps)]
    assert [entry["steps"] for entry in facts["mixture"]] == [entries.count(0), entries.count(1)]
    assert [entry["examples"] for entry in facts["mixture"]] == [24, 72]
    assert facts["mixture"][0]["epochs"] == round(entries.count(0) * 8 / 24, 2)
    assert facts["videos_per_step"] == 8
    assert facts["fingerprint"] == config_io.fingerprint(run)
    frames = FeatureStore.open(tiny_store).index.num_frames.mean()
    assert facts["feature_bytes_read"] == pytest.approx(50 * 8 * frames * 16 * 2, rel=0.3)  # of all splits


def test_tokens_a_step_are_those_the_loader_counts(run):
    """All frames and all text: what MLM reads, when each video is read once and owns all its frames."""
    mlm = replace(run, mixture=run.mixture[:1], batch=24, pool=24)
    (batch,) = Feed(mlm, open_stores(mlm), 0, 1)[0].batches
    assert summary(mlm)["tokens_per_step"] == pytest.approx(batch.num_tokens, rel=0.1)


def test_a_published_schedule_is_drawn_once(run, monkeypatch):
    """pretrain_tv has 100,000 steps: drawing the schedule anew for each would take minutes."""
    drawn = []
    monkeypatch.setattr(summary_module, "mixture_of", lambda config: drawn.append(1) or mixture_of(config))
    shares = [entry["steps"] / 100_000 for entry in summary(replace(run, steps=100_000))["mixture"]]
    assert drawn == [1]
    assert shares == pytest.approx([0.75, 0.25], abs=0.01)


def test_text_names_every_fact(run):
    text = summary_text(run, summary(run))
    assert config_io.to_json(run) in text
    for words in ("run tiny (recipe tiny", "8 videos", "mlm/synthetic", "moment_retrieval/synthetic", "GB a worker"):
        assert words in text


def test_one_kind_with_two_settings_is_refused(run):
    assert len(unique_tasks(run)) == 2
    twice = replace(run, mixture=(Entry(Mlm(), "synthetic"), Entry(Mlm(mask_prob=0.3), "tv")))
    with pytest.raises(ValueError, match="two mixture entries run mlm with different settings"):
        unique_tasks(twice)
    same = replace(run, mixture=(Entry(Mlm(), "synthetic"), Entry(Mlm(), "tv")))
    assert unique_tasks(same) == [Mlm()]


def test_nothing_is_allocated_for_the_model(run, monkeypatch):
    """A dry run of the full-size model must not take its memory."""
    made = []
    real = MultiTaskHero.__init__

    def spy(self, *arguments, **named):
        real(self, *arguments, **named)
        made.append({parameter.device for parameter in self.parameters()})

    monkeypatch.setattr(MultiTaskHero, "__init__", spy)
    summary(run)
    assert made == [{torch.device("meta")}]
