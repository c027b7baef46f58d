"""What a run says of itself: its setting, what it was made with, and where."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from hero_platform import config_io, files
from hero_platform.config import RunConfig, StoreRef
from hero_platform.tracking.place import Place
from hero_platform.train.records import Start, made_with, nodes_of, note_start, provenance_of, run_info, starts_of
from jobs.recipes.synthetic import pretrain_synthetic


@pytest.fixture(scope="module")
def config() -> RunConfig:
    return pretrain_synthetic()


def _tags(config: RunConfig) -> tuple[str, str]:
    tags = run_info(config, resume_step=0, same_split=True, provenance={}, nodes=[]).tags
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


def test_a_run_is_tagged_with_its_data_its_code_and_its_machines(config: RunConfig):
    store = StoreRef("synthetic", "somewhere", digest="d" * 64, annotations="a" * 64)
    made = {"git": {"commit": "c0ffee", "diff": "+x"}, "packages": ["a==1"]}
    nodes = [
        Place("a", "a", "g5.2xlarge", "spot", "us-east-1"),
        Place("b", "b", "g5.2xlarge", "on-demand", "us-east-1"),
    ]
    run = replace(config, stores=(store,))
    tags = run_info(run, resume_step=0, same_split=True, provenance=made, nodes=nodes).tags
    assert tags["store.synthetic"] == store.digest and tags["annotations.synthetic"] == store.annotations
    assert tags["hero.made_with"] == made_with(made) != made_with({**made, "packages": ["a==2"]})
    assert (tags["hero.instance_types"], tags["hero.market"]) == ("g5.2xlarge", "on-demand, spot")
    silent = run_info(run, resume_step=0, same_split=True, provenance={}, nodes=[]).tags
    assert not {"hero.made_with", "hero.instance_types", "hero.market", "hero.region"} & set(silent)


def test_what_a_damaged_file_says_of_a_start_is_not_known(tmp_path, caplog):
    assert provenance_of(str(tmp_path)) == {"git": {}} and not caplog.records
    (tmp_path / "provenance.json").write_text('{"git": ')
    assert provenance_of(str(tmp_path)) == {"git": {}}
    assert "what ran is not known: " in caplog.text and "provenance.json is not valid JSON" in caplog.text


def test_a_start_keeps_its_machines_and_older_notes_have_none(config: RunConfig, tmp_path):
    nodes = (Place("a", "a", "g5.2xlarge", "spot", "us-east-1", ranks=2), Place("b", share=0.25))
    note_start(str(tmp_path), Start(0, 0, 3, 1, "cpu", config, nodes=nodes), {})
    note_start(str(tmp_path), Start(5, 0, 3, 1, "cpu", config, nodes=nodes[:1]), {})
    older = tmp_path / "starts" / "0000.json"
    facts = json.loads(older.read_text())
    assert facts["nodes"][0]["instance_type"] == "g5.2xlarge"
    assert [start.nodes for start in starts_of(str(tmp_path))] == [nodes, nodes[:1]]
    assert nodes_of(str(tmp_path)) == [*nodes, nodes[0]]
    del facts["nodes"]
    older.write_text(json.dumps(facts))
    assert [start.nodes for start in starts_of(str(tmp_path))] == [(), nodes[:1]]
