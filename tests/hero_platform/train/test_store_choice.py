"""Which store a run reads: the one that is named, else the only one under the home folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from hero_platform.train.resolve import with_stores
from jobs.recipes import recipe


def _feature_sets(home: Path, *names: str) -> None:
    for name in names:
        (home / "stores" / "synthetic" / name).mkdir(parents=True)
        (home / "stores" / "synthetic" / name / "manifest.json").write_text("{}")


def test_the_only_feature_set_is_found(hero_home: Path):
    _feature_sets(hero_home, "one")
    (ref,) = with_stores(recipe("pretrain_synthetic"), []).stores
    assert ref.path == str(hero_home / "stores" / "synthetic" / "one")


def test_several_feature_sets_need_a_name_and_take_it(hero_home: Path):
    _feature_sets(hero_home, "one", "two")
    config = recipe("pretrain_synthetic")
    with pytest.raises(ValueError, match="choose with --store synthetic=PATH"):
        with_stores(config, [])
    (ref,) = with_stores(config, ["synthetic=/data/three"]).stores
    assert ref.path == "/data/three"
