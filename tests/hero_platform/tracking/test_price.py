"""Price tables: what they say, and the one sentence about each that is damaged."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from hero_platform import files
from hero_platform.tracking.price import Prices

TABLE = {
    "currency": "EUR",
    "instances": {"g5.2xlarge": {"on-demand": 1.25, "spot": 0.5}, "own": {"on-demand": 0}},
    "cpu": 0.05,
}


def test_hours_have_the_price_of_their_machine_and_market(tmp_path: Path):
    (tmp_path / "prices.json").write_text(json.dumps(TABLE))
    prices = Prices.read(str(tmp_path))
    assert prices is not None and prices.currency == "EUR"
    hours = {"g5.2xlarge/on-demand": 2.0, "g5.2xlarge/spot": 4.0, "own/on-demand": 9.0, "cpu": 10.0}
    assert prices.of(hours) == pytest.approx(2.5 + 2 + 0 + 0.5) and prices.of({}) == 0
    for kind, words in (
        ("g5.2xlarge/reserved", r"no price of g5.2xlarge \(reserved\)"),
        ("p4d.24xlarge/spot", r"no price of p4d.24xlarge \(spot\)"),
        ("gpu", 'no price of "gpu", for machines that do not say their type'),
    ):
        with pytest.raises(ValueError, match=words):
            prices.of({**hours, kind: 1.0})


def test_there_need_be_no_table_but_one_that_is_named(tmp_path: Path, monkeypatch):
    assert Prices.read(str(tmp_path)) is None and Prices.read("memory://empty") is None
    monkeypatch.setenv("HERO_PRICES", str(tmp_path / "mine.json"))
    with pytest.raises(ValueError, match=r"HERO_PRICES is .*mine.json, and there is no such price table"):
        Prices.read(str(tmp_path))
    (tmp_path / "mine.json").write_text('{"currency": "USD", "gpu": 2}')
    (tmp_path / "prices.json").write_text("damaged")
    prices = Prices.read(str(tmp_path))
    assert prices is not None and prices.of({"gpu": 3.0}) == 6.0


def test_the_table_in_the_documents_is_one(tmp_path: Path):
    text = (Path(__file__).parents[3] / "docs" / "leaderboard.md").read_text()
    (table,) = re.findall(r"```json\n(.*?)```", text, re.DOTALL)
    (tmp_path / "prices.json").write_text(table)
    prices = Prices.read(str(tmp_path))
    assert prices is not None and prices.of({"g5.2xlarge/spot": 2.0, "gpu": 2.0, "cpu": 10.0}) == pytest.approx(4.5)


def test_a_table_may_lie_in_a_remote_root():
    files.write_json("memory://priced/prices.json", TABLE)
    prices = Prices.read("memory://priced")
    assert prices is not None and prices.of({"cpu": 1.0}) == 0.05
    files.remove_tree("memory://priced")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "is not valid JSON"),
        ("[]", "it is no JSON object"),
        ("{}", '"currency" is not three capital letters, such as "USD"'),
        ('{"currency": "$"}', '"currency" is not three capital letters'),
        ('{"currency": "USD", "g5.2xlarge": {"spot": 1}}', "'g5.2xlarge' is none of currency, instances, gpu, cpu"),
        ('{"currency": "USD", "instances": []}', '"instances" is not an object of {"on-demand": PRICE'),
        ('{"currency": "USD", "instances": {"g5": 1.2}}', '"instances" is not an object of {"on-demand": PRICE'),
        ('{"currency": "USD", "instances": {"g5": {"spot": "1"}}}', "the price of g5 spot is '1'"),
        ('{"currency": "USD", "instances": {"g5": {"spot": NaN}}}', "the price of g5 spot is nan"),
        ('{"currency": "USD", "gpu": -1}', "the price of gpu is -1"),
        ('{"currency": "USD", "cpu": true}', "the price of cpu is True"),
    ],
)
def test_a_damaged_table_is_one_sentence(tmp_path: Path, text: str, words: str):
    (tmp_path / "prices.json").write_text(text)
    with pytest.raises(ValueError) as refused:
        Prices.read(str(tmp_path))
    said = str(refused.value)
    assert said.startswith(f"the price table {tmp_path}/prices.json is ") and words in said
    assert said.endswith("docs/leaderboard.md shows one") and "\n" not in said


def test_a_folder_in_its_place_is_said(tmp_path: Path):
    (tmp_path / "prices.json").mkdir()
    with pytest.raises(ValueError, match=r"the price table .*prices.json cannot be read: "):
        Prices.read(str(tmp_path))
