from dataclasses import replace

import pytest

from hero_platform import files
from hero_platform.store.manifest import MANIFEST, PLAN, Manifest
from hero_platform.store.shard import ShardInfo

SHARD = ShardInfo("shards/00000.arrow", "ab" * 32, 100, 2, 20, 6, 50, record={"pid": 1})
MADE = Manifest(
    corpus="tv",
    feature_set="f",
    frame_dim=4,
    dtype="float16",
    tokenizer={"kind": "ids"},
    shards=(SHARD, replace(SHARD, name="shards/00001.arrow", sha256="cd" * 32)),
    index_sha256="ef",
    rejects_sha256="01",
    num_rejects=1,
    source={"kind": "npz"},
    build={"seconds": 1.0},
)


def test_reads_back_equal(tmp_path):
    MADE.write(str(tmp_path))
    assert Manifest.read(str(tmp_path)) == MADE
    assert files.read_json(tmp_path / MANIFEST)["totals"]["num_frames"] == MADE.total("num_frames") == 40


@pytest.mark.parametrize(
    "change",
    [
        {"build": {"seconds": 2.0}},
        {"source": {"kind": "lmdb"}},
        {"rejects_sha256": "02", "num_rejects": 3},
        {"shards": tuple(replace(shard, record={"pid": 2}) for shard in MADE.shards)},
    ],
)
def test_digest_leaves_out_who_built_the_store_and_from_what(change):
    assert replace(MADE, **change).digest == MADE.digest


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "float32"},
        {"frame_dim": 5},
        {"tokenizer": {"kind": "words"}},
        {"index_sha256": "00"},
        {"shards": MADE.shards[::-1]},
        {"shards": MADE.shards[:1]},
    ],
)
def test_digest_covers_the_content(change):
    assert replace(MADE, **change).digest != MADE.digest


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema_version": 1}', "not json"])
def test_a_broken_manifest_is_one_clear_error(tmp_path, content):
    (tmp_path / MANIFEST).write_text(content)
    with pytest.raises(ValueError, match=r"manifest\.json"):
        Manifest.read(str(tmp_path))


@pytest.mark.parametrize("change", [{"name": "../../x.arrow"}, {"name": "/etc/x"}, {"name": 1}, {"sha256": "../../x"}])
def test_a_shard_leads_nowhere_else(tmp_path, change):
    """Its name and digest become parts of paths: of the store, and of the cache of shards."""
    shards = (replace(MADE.shards[0], **change), *MADE.shards[1:])
    replace(MADE, shards=shards).write(str(tmp_path))  # whoever makes one up gives it the right digest too
    with pytest.raises(ValueError, match="is not a store's manifest"):
        Manifest.read(str(tmp_path))


def test_no_manifest_is_no_store(tmp_path):
    with pytest.raises(ValueError, match="is not a store"):
        Manifest.read(str(tmp_path))
    (tmp_path / PLAN).touch()
    with pytest.raises(ValueError, match="unfinished"):
        Manifest.read(str(tmp_path))
