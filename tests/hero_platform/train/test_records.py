"""What a run says of itself: its setting, and what it has cost over all its starts."""

from __future__ import annotations

from dataclasses import replace

import pytest

from hero_platform import config_io, files
from hero_platform.config import RunConfig
from hero_platform.tracking.base import MemoryTracker
from hero_platform.tracking.recorder import JournalTracker
from hero_platform.train.records import Start, keep_cost, note_start, run_info
from jobs.recipes.synthetic import pretrain_synthetic


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return pretrain_synthetic()


def _tags(config: RunConfig) -> tuple[str, str]:
    tags = run_info(config, resume_step=0, same_split=True, provenance={}).tags
    return tags["hero.setting"], tags["fingerprint"]


def test_a_setting_is_a_run_without_its_seed(config: RunConfig):
    setting, fingerprint = _tags(config)
    other_seed = _tags(replace(config, seed=config.seed + 1))
    assert other_seed[0] == setting and other_seed[1] != fingerprint
    assert _tags(replace(config, steps=config.steps + 1, name="another")) == (setting, fingerprint)
    assert _tags(replace(config, batch=2 * config.batch))[0] != setting


def test_seeds_of_the_weights_are_seeds_too(config: RunConfig, hero_home):
    def tuned_from(name: str, digest: str, **changes: int) -> str:
        files.write_json(f"{hero_home}/runs/{name}/config.json", config_io.to_dict(replace(config, **changes)))
        return _tags(replace(config, init_from=name, init_digest=digest))[0]

    assert tuned_from("a", "1" * 64, seed=1) == tuned_from("b", "2" * 64, seed=2)
    assert tuned_from("c", "3" * 64, batch=2 * config.batch) != tuned_from("a", "1" * 64, seed=1)
    gone = [_tags(replace(config, init_from="gone", init_digest=digest * 64))[0] for digest in "12"]
    assert gone[0] != gone[1]


def test_the_cost_of_all_starts_is_known_at_the_end_of_each(config: RunConfig, tmp_path):
    folder, tracker = str(tmp_path), MemoryTracker()
    note_start(folder, Start(0, 0, 2, 3, "cpu", config), {})
    tracker.log(10, {"sys/step_s": 3.6})
    keep_cost(tracker, folder)
    note_start(folder, Start(5, 0, 2, 3, "cpu", config, recorded=10), {})  # killed before it came to step 11
    keep_cost(tracker, folder)
    note_start(folder, Start(5, 0, 2, 3, "cuda:0", config, recorded=10), {})
    tracker.log(20, {"sys/step_s": 7.2})
    keep_cost(tracker, folder)
    keep_cost(tracker, folder)
    cpu = 10 * 3.6 * 2 * 3 / 3600
    assert tracker.metrics["cost/cpu_hours"] == pytest.approx({1: cpu, 2: cpu, 3: cpu})
    assert tracker.metrics["cost/gpu_hours"] == pytest.approx({3: (5 * 3.6 + 10 * 7.2) * 2 / 3600})


def test_a_cost_that_cannot_be_kept_is_said_and_no_more(config: RunConfig, tmp_path, caplog):
    note_start(str(tmp_path), Start(0, 0, 1, 1, "cpu", config), {})
    keep_cost(JournalTracker(str(tmp_path)), str(tmp_path))  # one that was never started
    assert "the cost of the run could not be kept" in caplog.text
