"""What runs cost and where they ran, through the command line: trained, ranked, compared."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient

from hero_platform import files
from hero_platform.report.leaderboard import price as price_text
from hero_platform.tracking.base import default_uri
from hero_platform.tracking.index import Index, Row
from hero_platform.tracking.journal import read
from hero_platform.train.records import close_evaluation, keep_evaluation, starts_of
from jobs import compare, leaderboard, train

RATES = {"g5.2xlarge": {"on-demand": 3600.0, "spot": 36.0}}  # a second of a machine: 1, and a hundredth


@pytest.fixture
def tracked(short_run: Callable[..., list[str]], hero_home: Path, tracking_database: Path) -> Callable[..., None]:
    """Trains a run to a step, on a machine that says its market, if it says any."""

    def run(name: str, steps: int, market: str = "", kind: str = "mlflow") -> None:
        with pytest.MonkeyPatch.context() as patch:
            if market:
                patch.setenv("HERO_INSTANCE_TYPE", "g5.2xlarge")
                patch.setenv("HERO_MARKET", market)
                patch.setenv("HERO_REGION", "us-east-1")
            more = ["--tracking.kind", kind, "--tracking.log-every", "1", "--scale.threads-per-worker", "2"]
            assert train.main(short_run(name, *more, "--steps", str(steps))) == 0

    return run


def price_table(home: Path, **table: Any) -> None:
    (home / "prices.json").write_text(json.dumps({"currency": "USD", **table}))


def seconds(home: Path, name: str) -> list[float]:
    """Of every step of a run."""
    records = read(str(home / "runs" / name / "metrics.jsonl"))
    found = {record.step: record.metrics["sys/step_s"] for record in records if "sys/step_s" in record.metrics}
    return [found[step] for step in sorted(found)]


def board(capsys: pytest.CaptureFixture[str], tmp_path: Path, *words: str) -> tuple[str, dict[str, dict[str, Any]]]:
    """What the leaderboard printed, and its rows by name."""
    file = tmp_path / "board.json"
    capsys.readouterr()
    assert leaderboard.main([*words, "--json", str(file)]) == 0
    groups = json.loads(file.read_text())["groups"]
    rows = {line["row"]["name"]: line["row"] for group in groups for line in group["lines"]}
    return capsys.readouterr().out, rows


def tags_of(home: Path, name: str) -> dict[str, str]:
    client = MlflowClient(default_uri(str(home)))
    place = client.get_experiment_by_name("hero")
    (run,) = client.search_runs([place.experiment_id], f"tags.`hero.run_name` = '{name}'")
    return dict(run.data.tags)


def test_starts_on_spot_and_on_demand_are_priced_together(tracked, hero_home: Path, tmp_path: Path, capsys):
    price_table(hero_home, instances=RATES)
    tracked("one", 4, "spot")
    tracked("one", 6, "on-demand")
    took = seconds(hero_home, "one")
    expected = 0.01 * sum(took[:4]) + sum(took[4:])
    said, rows = board(capsys, tmp_path)
    assert rows["one"]["price"] == pytest.approx(expected) and rows["one"]["currency"] == "USD"
    assert rows["one"]["cpu_hours"] == pytest.approx(2 * sum(took) / 3600)
    assert "| price " in said and " USD " in said
    assert leaderboard.main(["--html", str(tmp_path / "board.html")]) == 0
    assert '"price",true' in (tmp_path / "board.html").read_text() and " USD" in (tmp_path / "board.html").read_text()

    starts = [files.read_json(hero_home / "runs" / "one" / "starts" / f"000{number}.json") for number in (0, 1)]
    assert [start["nodes"][0]["market"] for start in starts] == ["spot", "on-demand"]
    kept = files.read_json(hero_home / "runs" / "one" / "provenance.json")
    assert kept["hardware"]["instance_type"] == "g5.2xlarge" and kept["hardware"]["market"] == "on-demand"
    tags = tags_of(hero_home, "one")
    assert tags["hero.instance_types"] == "g5.2xlarge" and tags["hero.market"] == "on-demand, spot"
    assert tags["hero.region"] == "us-east-1" and tags["hero.submitter"] == kept["submitter"]
    assert tags["hero.made_with"] == starts[1]["made_with"] and len(tags["hero.made_with"]) == 64
    (store,) = starts[1]["config"]["stores"]
    assert tags["store.synthetic"] == store["digest"] and len(store["digest"]) == 64
    if kept["git"]:
        diff = kept["git"]["diff"]
        assert tags["mlflow.source.git.commit"] == kept["git"]["commit"]
        assert tags["hero.git.diff"] == (hashlib.sha256(diff.encode()).hexdigest() if diff else "none")

    price_table(hero_home, instances={"g5.2xlarge": {"spot": 0, "on-demand": 0}})
    assert board(capsys, tmp_path, "--refresh")[1]["one"]["price"] == pytest.approx(expected), "what it was then"


def test_a_run_from_before_there_was_a_table_is_priced_by_that_of_today(
    tracked, hero_home: Path, tmp_path: Path, capsys
):
    tracked("far", 2, "spot")
    tracked("near", 2)
    said, rows = board(capsys, tmp_path)
    assert "price" not in said and [row["price"] for row in rows.values()] == [None, None]
    price_table(hero_home, instances=RATES)
    said, rows = board(capsys, tmp_path)
    assert rows["far"]["price"] == pytest.approx(0.01 * sum(seconds(hero_home, "far")))
    assert rows["near"]["price"] is None, "nothing says what its machine costs"
    price_table(hero_home, instances=RATES, cpu=3600.0)
    said, rows = board(capsys, tmp_path)
    assert rows["near"]["price"] == pytest.approx(2 * sum(seconds(hero_home, "near")))
    (row,) = [
        row for row in Index(str(hero_home / "index.db"), default_uri(str(hero_home))).rows() if row.name == "far"
    ]
    assert row.price is None, "the index holds what was recorded"


def test_a_damaged_table_stands_in_the_way_of_no_run(tracked, hero_home: Path, capsys, caplog):
    (hero_home / "prices.json").write_text('{"currency": "USD", "gpu": "1.50"}')
    tracked("one", 2, "spot")
    problem = f"the price table {hero_home}/prices.json is damaged: the price of gpu is '1.50'"
    assert f"the run has no price: {problem}" in caplog.text
    assert files.read_json(hero_home / "runs" / "one" / "status.json") == {"status": "FINISHED"}
    capsys.readouterr()
    assert leaderboard.main([]) == 2
    said = capsys.readouterr().err
    assert problem in said and said.count("\n") == 1


def test_compare_says_where_runs_ran(tracked, hero_home: Path, tmp_path: Path, capsys):
    tracked("spot", 2, "spot", kind="none")
    tracked("owned", 2, kind="none")
    file = tmp_path / "compared.json"
    assert compare.main(["spot", "owned", "--json", str(file)]) == 0
    rows = json.loads(file.read_text())["rows"]
    assert rows["place"] == {
        "instance_types": ["g5.2xlarge", None],
        "market": ["spot", None],
        "region": ["us-east-1", None],
    }
    assert rows["hardware"]["market"] == ["spot", None]
    assert "g5.2xlarge" in capsys.readouterr().out


def test_an_evaluation_elsewhere_does_not_change_who_trained_a_run(tracked, hero_home: Path, monkeypatch):
    tracked("one", 2, "spot")
    before = tags_of(hero_home, "one")
    monkeypatch.setattr("hero_platform.tracking.system._submitter", lambda: "another@elsewhere")
    monkeypatch.setattr("hero_platform.tracking.system.git_state", lambda folder: {"commit": "c0ffee", "diff": "+x"})
    folder = str(hero_home / "runs" / "one")
    config = starts_of(folder)[-1].config
    close_evaluation(keep_evaluation(config, folder, 2, "synthetic/val", {"accuracy": 50.0}), folder)
    assert tags_of(hero_home, "one") == before


def made(name: str, **fields: Any) -> Row:
    texts = {field: "" for field in Row.__dataclass_fields__}
    none = {field: None for field in ("start_ms", "end_ms", "best_step", "cpu_hours", "gpu_hours", "price")}
    kept: dict[str, Any] = {
        "hours": {},
        "metrics": {},
        "searched": {},
        "best": 1.0,
        "headline": "val/loss",
        "mode": "min",
    }
    return Row(
        **{**texts, **none, **kept, "run_id": name, "name": name, "status": "FINISHED", "setting": "s", **fields}
    )


@pytest.mark.parametrize(
    ("prices", "total", "currency"),
    [
        ([("USD", 1.5), ("USD", 2.0)], 3.5, "USD"),
        ([("USD", 1.5), ("EUR", 2.0)], None, ""),
        ([("USD", 1.5), ("", None)], None, ""),  # a sum that leaves some out is no price
    ],
)
def test_seeds_cost_their_sum(hero_home: Path, tmp_path: Path, capsys, prices, total, currency: str):
    uri = default_uri(str(hero_home))
    rows = [
        made(f"s{seed}", seed=str(seed), price=price, currency=unit, gpu_hours=1.0, hours={"gpu": 1.0})
        for seed, (unit, price) in enumerate(prices)
    ]
    with Index(str(hero_home / "index.db"), uri) as index:
        index.update([*rows, made("silent", seed="9")], [], 1, everything=True)
    _, found = board(capsys, tmp_path, "--seeds")
    (row,) = found.values()
    assert (row["price"], row["currency"], row["gpu_hours"], row["hours"]) == (total, currency, 2.0, {"gpu": 2.0})


@pytest.mark.parametrize(
    ("price", "shown"), [(1234.5, "1,234.50 USD"), (0.1, "0.10 USD"), (0.00123, "0.0012 USD"), (0.0, "0.00 USD")]
)
def test_prices_are_short(price: float, shown: str):
    assert price_text(made("a", price=price, currency="USD")) == shown
