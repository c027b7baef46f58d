import hashlib
import os
import time
from uuid import uuid4

import pytest

from hero_platform import files
from hero_platform.store.cache import ShardCache


@pytest.fixture
def remote():
    """Three remote files of 10 bytes: (url, digest) each."""
    root = f"memory://{uuid4().hex}"
    entries = []
    for letter in b"abc":
        data = bytes([letter]) * 10
        files.write_bytes(files.join(root, chr(letter)), data)
        entries.append((files.join(root, chr(letter)), hashlib.sha256(data).hexdigest()))
    return entries


def test_fetched_once_and_checked(tmp_path, remote):
    cache = ShardCache(tmp_path, 100)
    (url, digest), *_ = remote
    path = cache.fetch(url, digest, 10)
    assert path.read_bytes() == b"a" * 10
    files.remove(url)
    assert cache.fetch(url, digest, 10) == path


def test_least_recently_used_goes_first(tmp_path, remote):
    cache = ShardCache(tmp_path, 20)
    first, second, third = (cache.fetch(*entry, 10) if number < 2 else None for number, entry in enumerate(remote))
    assert third is None
    earlier = time.time() - 100
    os.utime(first, (earlier, earlier))
    os.utime(second, (earlier - 1, earlier - 1))
    cache.fetch(*remote[0], 10)
    third = cache.fetch(*remote[2], 10)
    assert first.exists() and third.exists() and not second.exists()


def test_damaged_remote_file_is_not_kept(tmp_path, remote):
    cache = ShardCache(tmp_path, 100)
    with pytest.raises(ValueError, match="damaged"):
        cache.fetch(remote[0][0], remote[1][1], 10)
    assert files.tree(tmp_path) == []


def test_file_larger_than_the_cache(tmp_path, remote):
    with pytest.raises(ValueError, match="HERO_CACHE_BYTES"):
        ShardCache(tmp_path, 5).fetch(*remote[0], 10)


def test_a_disk_that_is_full_at_the_cache_is_named_and_keeps_no_half_file(small_disk):
    data = bytes(range(256)) * 4096
    url = f"memory://{uuid4().hex}/shard"
    files.write_bytes(url, data)
    disk = small_disk("512k")
    cache = ShardCache(disk / "cache")
    with pytest.raises(
        OSError, match=f"the shard cache {disk / 'cache'} has no space left for {url}: free some, or set"
    ):
        cache.fetch(url, hashlib.sha256(data).hexdigest(), len(data))
    assert files.tree(disk) == []
