"""What a run has cost over all its starts: hours of devices and machines, and their price."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from hero_platform.config import RunConfig
from hero_platform.tracking.base import MemoryTracker
from hero_platform.tracking.place import Place
from hero_platform.tracking.recorder import JournalTracker
from hero_platform.train.cost import keep_cost
from hero_platform.train.records import Start, note_start
from jobs.recipes.synthetic import pretrain_synthetic

SPOT, OWNED = Place("a", "a", "p4d.24xlarge", "spot", ranks=8), Place("b", "b", "p4d.24xlarge", ranks=8)


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return pretrain_synthetic()


def set_prices(home: Path, **table: object) -> None:
    home.mkdir(parents=True, exist_ok=True)
    (home / "prices.json").write_text(json.dumps({"currency": "USD", **table}))


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


def test_a_run_that_never_started_has_cost_nothing(tmp_path, caplog):
    tracker = MemoryTracker()
    keep_cost(tracker, str(tmp_path))
    assert tracker.metrics == {} and caplog.text == ""


def test_a_cost_that_cannot_be_kept_is_said_and_no_more(config: RunConfig, tmp_path, caplog):
    note_start(str(tmp_path), Start(0, 0, 1, 1, "cpu", config), {})
    keep_cost(JournalTracker(str(tmp_path)), str(tmp_path))  # one that was never started
    assert "the cost of the run could not be kept" in caplog.text


def test_the_price_of_starts_on_spot_and_on_demand_is_their_sum(config: RunConfig, tmp_path, hero_home):
    rates = {"p4d.24xlarge": {"on-demand": 32.0, "spot": 12.0}}
    set_prices(hero_home, instances=rates, gpu=1.5)
    folder, tracker = str(tmp_path), MemoryTracker()
    two = Start(0, 0, 16, 1, "cuda:0", config, nodes=(SPOT, replace(SPOT, host="c")))
    note_start(folder, two, {})
    tracker.log(10, {"sys/step_s": 360.0})  # an hour
    keep_cost(tracker, folder)
    note_start(folder, replace(two, step=10, recorded=10, nodes=(SPOT, OWNED)), {})
    tracker.log(20, {"sys/step_s": 720.0})
    keep_cost(tracker, folder)
    note_start(folder, replace(two, step=20, recorded=20, world=4, nodes=(Place("d", ranks=4),)), {})
    tracker.log(30, {"sys/step_s": 360.0})
    keep_cost(tracker, folder)
    first, second = 1 * 2 * 12.0, 2 * (12.0 + 32.0)
    prices = {1: first, 2: first + second, 3: first + second + 1 * 4 * 1.5}
    assert tracker.metrics["cost/price/USD"] == pytest.approx(prices)
    assert tracker.metrics["cost/hours/p4d.24xlarge/spot"] == pytest.approx({1: 2, 2: 4, 3: 4})
    assert tracker.metrics["cost/hours/p4d.24xlarge/on-demand"] == pytest.approx({2: 2, 3: 2})
    assert tracker.metrics["cost/hours/gpu"] == pytest.approx({3: 4})
    assert tracker.metrics["cost/gpu_hours"] == pytest.approx({1: 16, 2: 48, 3: 52})


def test_a_recorded_price_stays_when_the_table_is_edited(config: RunConfig, tmp_path, hero_home):
    set_prices(hero_home, cpu=1.0)
    folder, tracker = str(tmp_path), MemoryTracker()
    note_start(folder, Start(0, 0, 1, 2, "cpu", config), {})
    tracker.log(10, {"sys/step_s": 360.0})
    keep_cost(tracker, folder)
    set_prices(hero_home, currency="EUR", cpu=7.0)
    keep_cost(tracker, folder)
    assert tracker.metrics["cost/price/USD"] == pytest.approx({1: 2.0}) and "cost/price/EUR" not in tracker.metrics


def test_a_trial_pays_its_part_of_a_machine(config: RunConfig, tmp_path, hero_home):
    set_prices(hero_home, instances={"p4d.24xlarge": {"on-demand": 32.0}})
    tracker = MemoryTracker()
    note_start(str(tmp_path), Start(0, 0, 1, 1, "cuda", config, nodes=(replace(OWNED, ranks=1, share=1 / 8),)), {})
    tracker.log(10, {"sys/step_s": 360.0})
    keep_cost(tracker, str(tmp_path))
    assert tracker.metrics["cost/price/USD"] == pytest.approx({1: 4.0})


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("", ""),
        ("{", "the price table .*prices.json is not valid JSON"),
        ('{"currency": "USD", "cpu": 1}', r"has no price of p4d.24xlarge \(spot\)"),
    ],
)
def test_without_a_price_the_hours_are_kept(config: RunConfig, tmp_path, hero_home, caplog, table: str, words: str):
    if table:
        hero_home.mkdir(parents=True)
        (hero_home / "prices.json").write_text(table)
    tracker = MemoryTracker()
    note_start(str(tmp_path), Start(0, 0, 8, 1, "cuda:0", config, nodes=(SPOT,)), {})
    tracker.log(10, {"sys/step_s": 360.0})
    keep_cost(tracker, str(tmp_path))
    assert tracker.metrics["cost/gpu_hours"] == {1: 8.0} == {1: 8 * tracker.metrics["cost/hours/p4d.24xlarge/spot"][1]}
    assert not [name for name in tracker.metrics if name.startswith("cost/price/")]
    said = [record.message for record in caplog.records]
    assert len(said) == bool(table) and all(re.search(f"^the run has no price: .*{words}", line) for line in said)
