import json
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from hero_model.config import TextIds
from hero_platform import files
from hero_platform.sources.base import Planned, RawVideo, Reject
from hero_platform.sources.npz import NpzSource
from hero_platform.store.build import build, build_shard, probe_width, read_rows
from hero_platform.store.manifest import MANIFEST, Manifest
from hero_platform.store.rows import RowRules
from hero_platform.store.tokens import TokenizerSpec

IDS = TokenizerSpec.ids_only(TextIds())
RULES = RowRules(4, "float16", IDS)


class Listed:
    """A source that gives what it is told to, for what no well-behaved source does."""

    def __init__(self, *rows: RawVideo | Reject) -> None:
        self.rows = rows

    def plan(self):
        return [Planned(row.id, None, 100) for row in self.rows], []

    def read(self, ids) -> Iterator[RawVideo | Reject]:
        yield from (row for row in self.rows if row.id in set(ids))

    def provenance(self):
        return {}

    def annotations(self):
        return iter(())


def video(key, width=4):
    return RawVideo(key, "train", float("nan"), 1.5, np.ones((3, width), np.float32))


def write_npz(folder, key, frames):
    folder.mkdir(exist_ok=True)
    np.savez(folder / f"{key}.npz", features=frames)


def rebuild(source, out, **keywords):
    tokenizer = TokenizerSpec.of_words(source.words()) if hasattr(source, "words") else IDS
    settings = {"corpus": "synthetic", "feature_set": "f", "tokenizer": tokenizer, "progress": False}
    return build(source, str(out), **{**settings, **keywords})


def test_each_id_comes_out_exactly_once():
    source = Listed(video("a"), video("a"), Reject("b", "there", "broken"), video("stray"))
    rows = list(read_rows(source, ["a", "b", "c", "stray"][:3], RULES, "here"))
    assert [(row.id, type(row).__name__) for row in rows] == [
        ("a", "VideoRow"),
        ("a", "Reject"),
        ("b", "Reject"),
        ("c", "Reject"),
    ]
    assert "duplicate id" in rows[1].reason and rows[2].reason == "broken" and "missing features" in rows[3].reason


def test_width_is_that_of_the_first_good_video():
    rules = replace(RULES, frame_dim=None)
    empty = replace(video("a"), frames=np.ones((0, 9), np.float32))
    assert probe_width(Listed(empty, video("b", 5), video("c")), ["a", "b", "c"], rules, "here") == 5
    bad = probe_width(Listed(empty), ["a"], rules, "here")
    assert isinstance(bad, Reject) and "empty" in bad.reason


def test_a_shard_that_is_there_is_not_built_again(tmp_path):
    built = build_shard(
        Listed(video("a"), video("b", 3)), str(tmp_path), "shards/00000.arrow", ["a", "b"], RULES, "here"
    )
    assert (built.num_rows, [reject.id for reject in built.rejects]) == (1, ["b"])
    assert build_shard(Listed(), str(tmp_path), "shards/00000.arrow", ["a", "b"], RULES, "here") == built


@pytest.mark.ray
@pytest.mark.slow
def test_workers_and_digest_do_not_depend_on_each_other(ray_two, synthetic_source, synthetic_store, tmp_path):
    first = Manifest.read(synthetic_store)
    together = rebuild(_meeting(synthetic_source, tmp_path), tmp_path / "together")
    assert len({worker["pid"] for worker in together.build["workers"]}) == 2
    assert together.digest == first.digest
    alone = rebuild(synthetic_source, tmp_path / "alone", workers=1)
    assert len(alone.build["workers"]) == 1
    assert alone.digest == first.digest
    assert [shard.sha256 for shard in alone.shards] == [shard.sha256 for shard in first.shards]
    assert rebuild(replace(synthetic_source, seed=1), tmp_path / "seed").digest != first.digest


def _meeting(source, folder):
    """The same source, whose workers wait for each other: else the first may be done before another starts."""
    everything = len(source.plan()[0])

    class Meeting:  # nested: Ray sends it by value
        words, plan, provenance, annotations = source.words, source.plan, source.provenance, source.annotations

        def read(self, ids):
            if len(ids) < everything:  # a shard: the build looks for the width among all videos first
                (folder / f"worker-{os.getpid()}").touch()
                give_up = time.monotonic() + 60
                while len(list(folder.glob("worker-*"))) < 2 and time.monotonic() < give_up:
                    time.sleep(0.02)
            yield from source.read(ids)

    return Meeting()


@pytest.mark.ray
def test_an_interrupted_build_continues(ray_two, synthetic_source, synthetic_store, tmp_path):
    out = tmp_path / "store"
    shutil.copytree(synthetic_store, out)
    digest = Manifest.read(synthetic_store).digest
    (out / MANIFEST).unlink()
    (out / "shards/00001.arrow").unlink()
    (out / "shards/00002.arrow").write_bytes(b"half")
    (out / "shards/.00002.arrow.99-ff.partial").touch()
    kept = os.stat(out / "shards/00000.arrow").st_mtime_ns
    with pytest.raises(ValueError, match="unfinished"):
        Manifest.read(str(out))
    assert rebuild(synthetic_source, out).digest == digest
    assert os.stat(out / "shards/00000.arrow").st_mtime_ns == kept
    assert files.tree(out) == files.tree(synthetic_store)
    assert rebuild(synthetic_source, out).digest == digest
    with pytest.raises(ValueError, match="differs in dtype"):
        rebuild(synthetic_source, out, keep_float32=True)
    with pytest.raises(ValueError, match="differs in source, the list of videos"):
        rebuild(replace(synthetic_source, num_train=7), out)


@pytest.mark.ray
def test_bad_rows_are_rejected_and_none_vanish(ray_two, tmp_path):
    good = np.ones((4, 6), np.float16)
    folder = tmp_path / "features"
    for key in ("b", "g", "h", "i", "j", "k"):
        write_npz(folder, key, good)
    write_npz(folder, "a", np.ones((4, 6), dtype=object))  # first in order, but no good row: it does not fix the width
    write_npz(folder, "c", good * np.float16(np.nan))
    write_npz(folder, "d", np.ones((4, 7), np.float16))
    write_npz(folder, "e", np.ones((0, 6), np.float16))
    (folder / "f.npz").write_bytes(b"not a zip")
    rejected = {"a", "c", "d", "e", "f"}
    manifest = rebuild(NpzSource((str(folder),)), tmp_path / "store")
    assert manifest.frame_dim == 6 and manifest.total("num_rows") == 6
    lines = files.read_bytes(tmp_path / "store/rejects.jsonl").splitlines()
    assert {json.loads(line)["id"] for line in lines} == rejected
    assert lines == sorted(lines) and manifest.num_rejects == len(lines)
    for key in rejected:
        (folder / f"{key}.npz").unlink()
    alone = rebuild(NpzSource((str(folder),)), tmp_path / "good only")
    assert alone.num_rejects == 0


@pytest.mark.ray
def test_a_source_without_a_good_video_is_one_clear_error(ray_two, tmp_path):
    write_npz(tmp_path / "features", "a", np.ones((0, 6), np.float16))
    with pytest.raises(ValueError, match=r"no usable video: all 1 .*first: a: empty video"):
        rebuild(NpzSource((str(tmp_path / "features"),)), tmp_path / "store")
    assert not files.exists(tmp_path / "store")
