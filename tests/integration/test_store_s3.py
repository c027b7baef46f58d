"""A store on S3: built there by Ray workers, read back through the bounded local cache."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from hero_platform import files
from hero_platform.store.cache import ShardCache
from hero_platform.store.manifest import Manifest
from hero_platform.store.reader import FeatureStore
from jobs.build_store import main

pytestmark = [pytest.mark.s3, pytest.mark.ray]

KEY, SECRET = "hero-test", "hero-test-secret"


@pytest.fixture(scope="module")
def s3(tmp_path_factory):
    """`s3://` URL of an empty bucket on a SeaweedFS of our own, on loopback; credentials in the environment."""
    folder = tmp_path_factory.mktemp("weed")
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    master, volume, filer, port = _free_ports(4)
    command = [
        *(
            str(Path(sys.executable).with_name("weed")),
            "server",
            "-ip=127.0.0.1",
            "-ip.bind=127.0.0.1",
            f"-dir={folder / 'data'}",
        ),
        *(f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}"),
        *("-s3", f"-s3.port={port}", "-s3.port.iceberg=0", "-s3.port.lance=0", f"-s3.config={folder / 's3.json'}"),
        *("-volume.max=8", "-master.volumeSizeLimitMB=64"),
    ]
    environment = {
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "HERO_CACHE": str(folder / "cache"),
    }
    with pytest.MonkeyPatch.context() as patch, (folder / "log").open("wb") as log:
        for name, value in environment.items():
            patch.setenv(name, value)
        server = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ)
        try:
            _make_bucket("hero")
            yield "s3://hero"
        finally:
            server.kill()  # it takes a minute to stop politely, and nothing of it is kept
            server.wait()


def _free_ports(count):
    """Ports that are free, and whose gRPC twin 10,000 above is free too."""
    ports = []
    while len(ports) < count:
        with socket.socket() as one, socket.socket() as twin:
            one.bind(("127.0.0.1", 0))
            port = one.getsockname()[1]
            if port > 55_000:  # the system gives high ports: come down below the twin's limit
                port -= 30_000
            try:
                twin.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            if port not in ports:
                ports.append(port)
    return ports


def _make_bucket(name):
    """Create a bucket as soon as the server answers."""
    fs, _ = files.filesystem("s3://")
    deadline = time.monotonic() + 60
    while True:
        try:
            fs.mkdir(name)
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.3)


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
    assert 0 < sum(path.stat().st_size for path in tmp_path.iterdir()) <= 2 * largest
    np.testing.assert_array_equal(far.annotations("moments", "val").spans_s, near.annotations("moments", "val").spans_s)


def test_inspect_names_a_damaged_object(stores, s3, capsys):
    remote, _ = stores
    copy = f"{s3}/stores/copy"
    files.copy_tree(remote, copy)
    assert main(["inspect", copy]) == 0
    path = files.join(copy, "shards/00001.arrow")
    files.write_bytes(path, files.read_bytes(path)[:-1] + b"x")
    assert main(["inspect", copy]) == 1
    assert path in capsys.readouterr().err
    files.remove_tree(copy)
    assert files.tree(copy) == []
