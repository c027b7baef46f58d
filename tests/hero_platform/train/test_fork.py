"""A forked run is its donor from there on, bit for bit, as long as its settings are the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from hero_platform import config_io, files
from hero_platform.tracking.journal import of_run
from hero_platform.train.fork import fork, origin_of
from hero_platform.train.launch import launch
from hero_platform.train.snapshot import choose, weights_digest
from jobs import reproduce, train


@pytest.fixture
def donor(tiny_store: str, hero_home: Path) -> Callable[[int], None]:
    """Trains run `donor` to a step."""

    def trained(steps: int) -> None:
        words = ["pretrain_synthetic", "--store", f"synthetic={tiny_store}", "--model", "debug", "--batch", "8"]
        rest = [
            "--tracking.kind",
            "none",
            "--evaluation.every",
            "3",
            "--checkpoint.every",
            "3",
            "--checkpoint.keep-last",
            "9",
        ]
        assert train.main([*words, "--name", "donor", "--steps", str(steps), *rest]) == 0

    return trained


def config_of(home: Path, name: str, **changes: object):
    read_back = config_io.from_json((home / "runs" / "donor" / "config.json").read_text())
    return replace(read_back, name=name, **changes)


def curve(home: Path, name: str) -> dict[int, float]:
    """Step -> loss of its task."""
    found = [(record.step, *item) for record in of_run(f"{home}/runs/{name}") for item in record.metrics.items()]
    return {step: value for step, name, value in found if name.startswith("train/loss/") and name.count("/") == 3}


def cost(home: Path, name: str) -> float:
    """CPU-hours by its newest start."""
    return [r.metrics["cost/cpu_hours"] for r in of_run(f"{home}/runs/{name}") if "cost/cpu_hours" in r.metrics][-1]


def test_a_fork_goes_on_as_its_donor_does(donor, hero_home: Path, monkeypatch):
    donor(6)
    with pytest.raises(ValueError, match="there is no checkpoint of step 5"):
        fork(config_of(hero_home, "same"), "donor", 5)
    with monkeypatch.context() as broken, pytest.raises(KeyboardInterrupt):
        broken.setattr(files, "copy_file", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        fork(config_of(hero_home, "same"), "donor", 6)
    assert not (hero_home / "runs" / "same" / "config.json").exists()
    same = config_of(hero_home, "same", steps=12)
    other = config_of(hero_home, "other", steps=12)
    other = replace(other, optim=replace(other.optim, lr=other.optim.lr * 2))
    for config in (same, other):
        fork(config, "donor", 6)
    donor(12)
    for config in (same, other):
        fork(config, "donor", 6)  # it was begun: nothing happens
        assert launch(config).resumed_from == 6
    whole = curve(hero_home, "donor")
    assert sorted(whole) == list(range(1, 13)) and curve(hero_home, "same") == whole
    names = ("donor", "same", "other")
    digests = [weights_digest(choose(f"{hero_home}/runs/{name}/checkpoints", "last")) for name in names]
    assert digests[0] == digests[1] != digests[2]
    spent = {name: cost(hero_home, name) for name in ("donor", *names)}
    assert 0 < spent["same"] < spent["donor"], "its own steps only"
    parted = curve(hero_home, "other")
    assert [step for step in whole if whole[step] != parted[step]] == list(range(8, 13)), "the rate acts after a step"
    assert origin_of("other") == ("donor", 6) and origin_of("donor") is None
    assert reproduce.main(["other"]) == 0, "it is forked again"
    assert curve(hero_home, "other-again") == parted
