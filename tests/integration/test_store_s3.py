"""A store on S3: built there by Ray workers, read back through the bounded local cache."""

import re
import subprocess
import sys

import numpy as np
import pytest

from hero_platform import files
from hero_platform.store.cache import ShardCache
from hero_platform.store.manifest import Manifest
from hero_platform.store.reader import FeatureStore
from jobs.build_store import main

pytestmark = [pytest.mark.s3, pytest.mark.ray, pytest.mark.slow]


@pytest.fixture(scope="module")
def s3(object_store):
    """`s3://` URL of an empty bucket."""
    return "s3://hero"


@pytest.fixture(scope="module")
def stores(s3, tmp_path_factory):
    """The same corpus built on S3 and locally by one command line."""
    remote, local = f"{s3}/stores/synthetic", str(tmp_path_factory.mktemp("store") / "synthetic")
    # A process with a Ray of its own: workers of the suite's Ray were started without these credentials.
    program = (
        "import sys; from jobs.build_store import main; from hero_platform.store.build import ray_cluster\n"
        "with ray_cluster(2):\n"
        "    codes = [main(['synthetic', '--videos', '20', '--frame-dim', '16', '--out', o]) for o in sys.argv[1:]]\n"
        "raise SystemExit(any(codes))"
    )
    done = subprocess.run([sys.executable, "-c", program, remote, local], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    requests, written = re.search(r"^s3 +([\d,]+) requests, .* read, ([\d,.]+) MB written$", done.stdout, re.M).groups()
    size = Manifest.read(local).total("num_bytes") / 1e6  # of the shards, which Ray's workers wrote
    assert int(requests.replace(",", "")) > 10 and float(written.replace(",", "")) >= round(size, 1)
    return remote, local


def test_same_store_on_s3_and_on_disk(stores):
    remote, local = stores
    assert Manifest.read(remote).digest == Manifest.read(local).digest
    assert files.tree(remote) == files.tree(local)


def test_rows_through_a_cache_smaller_than_the_store(stores, tmp_path):
    remote, local = stores
    largest = max(shard.num_bytes for shard in Manifest.read(remote).shards)
    cache = ShardCache(tmp_path, 2 * largest)
    near, far = FeatureStore.open(local), FeatureStore.open(remote, cache)
    order = np.random.default_rng(0).permutation(len(near))
    for wanted in (order, order[:5], order[::-1]):
        np.testing.assert_array_equal(far.rows(wanted).frames, near.rows(wanted).frames)
    assert 0 < sum(path.stat().st_size for path in tmp_path.glob("*.arrow")) <= 2 * largest
    np.testing.assert_array_equal(far.annotations("moments", "val").spans_s, near.annotations("moments", "val").spans_s)


def test_inspect_names_a_damaged_object(stores, s3, capsys):
    remote, _ = stores
    copy = f"{s3}/stores/copy"
    files.copy_tree(remote, copy)
    assert main(["inspect", copy]) == 0
    assert re.search(r"^s3: [\d,]+ requests, [\d,.]+ MB read", capsys.readouterr().out, re.M)
    path = files.join(copy, "shards/00001.arrow")
    files.write_bytes(path, files.read_bytes(path)[:-1] + b"x")
    assert main(["inspect", copy]) == 1
    assert path in capsys.readouterr().err
    files.remove_tree(copy)
    assert files.tree(copy) == []
