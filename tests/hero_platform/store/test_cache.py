import hashlib
import os
import random
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from uuid import uuid4

import pytest

from hero_platform import files, transfer
from hero_platform.store import cache as cache_module
from hero_platform.store.cache import ShardCache


@pytest.fixture
def remote():
    """Three remote files of 10 bytes: (url, digest) each."""
    return [_put(f"memory://{uuid4().hex}/{letter}", letter.encode() * 10) for letter in "abc"]


def _put(url: str, data: bytes) -> tuple[str, str]:
    files.write_bytes(url, data)
    return url, hashlib.sha256(data).hexdigest()


def test_fetched_once_and_checked(tmp_path, remote):
    cache = ShardCache(tmp_path, 100)
    (url, digest), *_ = remote
    for _ in range(2):
        with cache.opened(url, digest, 10) as path:
            assert path.read_bytes() == b"a" * 10
        files.remove(url)
    cache.fetch(url, digest, 10)


def test_least_recently_used_goes_first(tmp_path, remote):
    cache = ShardCache(tmp_path, 20)
    first, second, third = (cache.path_of(digest) for _, digest in remote)
    for entry in remote[:2]:
        cache.fetch(*entry, 10)
    os.utime(first, (time.time() - 100,) * 2)
    os.utime(second, (time.time() - 101,) * 2)
    with cache.opened(*remote[0], 10):
        pass
    cache.fetch(*remote[2], 10)
    assert first.exists() and third.exists() and not second.exists()


def test_what_is_read_stays_and_room_is_waited_for(tmp_path, remote, monkeypatch):
    cache = ShardCache(tmp_path, 10)
    done = threading.Event()

    def other() -> None:
        cache.fetch(*remote[1], 10)
        done.set()

    with cache.opened(*remote[0], 10) as path:
        thread = threading.Thread(target=other)
        thread.start()
        assert not done.wait(0.3) and path.exists()
        monkeypatch.setattr(cache_module, "ROOM_TIMEOUT_S", 0.1)
        with pytest.raises(ValueError, match="holds 10 bytes, and others use all of them: set HERO_CACHE_BYTES"):
            cache.fetch(*remote[2], 10)
    thread.join()
    assert done.is_set() and [p.name for p in tmp_path.glob("*.*r*")] == [cache.path_of(remote[1][1]).name]


def test_who_wants_the_same_shard_waits_for_the_one_that_writes_it(tmp_path, remote, monkeypatch):
    real, asked = transfer.parts, []

    def slow(*given):
        asked.append(given)
        time.sleep(0.1)
        yield from real(*given)

    monkeypatch.setattr(transfer, "parts", slow)
    with ThreadPoolExecutor(6) as pool:  # locks are of open files: threads are as strange to each other as processes
        for future in [pool.submit(ShardCache(tmp_path).fetch, *remote[0], 10) for _ in range(6)]:
            future.result()
    assert len(asked) == 1 and files.tree(tmp_path) == sorted([".lock", f"{remote[0][1]}.arrow"])


def test_damage_is_fetched_once_more_and_then_named(tmp_path, remote, monkeypatch):
    cache = ShardCache(tmp_path, 100)
    url, digest = remote[0]
    answers = [b"x" * 10]
    real = transfer.parts
    monkeypatch.setattr(transfer, "parts", lambda *given: iter([answers.pop()]) if answers else real(*given))
    cache.fetch(url, digest, 10)
    assert cache.path_of(digest).read_bytes() == b"a" * 10
    with pytest.raises(ValueError, match=f"{url} has SHA-256 .*: it is damaged"):
        cache.fetch(url, remote[1][1], 10)
    with pytest.raises(ValueError, match="it is damaged"):  # cut off
        cache.fetch(url, remote[2][1], 12)
    assert [path for path in files.tree(tmp_path) if path != ".lock"] == [cache.path_of(digest).name]


def test_file_larger_than_the_cache(tmp_path, remote):
    with pytest.raises(ValueError, match="HERO_CACHE_BYTES"):
        ShardCache(tmp_path, 5).fetch(*remote[0], 10)


def test_a_bound_that_is_no_number(monkeypatch):
    monkeypatch.setenv("HERO_CACHE_BYTES", "20GB")
    with pytest.raises(ValueError, match="HERO_CACHE_BYTES is '20GB': give a number of bytes"):
        ShardCache.default()


def test_parts_of_a_shard_come_in_order_and_few_are_asked_for_at_once(tmp_path, monkeypatch):
    monkeypatch.setattr(transfer, "READ_PART", 1000)
    data = random.Random(0).randbytes(50_500)
    url, digest = _put(f"memory://{uuid4().hex}/shard", data)
    fs, _ = files.filesystem(url)
    at_once, most, guard, real = 0, 0, threading.Lock(), fs.cat_file

    def slow(*given, **more):
        nonlocal at_once, most
        with guard:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.005)
        with guard:
            at_once -= 1
        return real(*given, **more)

    monkeypatch.setattr(type(fs), "cat_file", lambda self, *given, **more: slow(*given, **more))
    ShardCache(tmp_path).fetch(url, digest, len(data))
    assert 1 < most <= transfer.PARALLEL
    assert files.sha256_file(url) == digest == files.sha256_file(ShardCache(tmp_path).path_of(digest))


def test_a_disk_that_is_full_at_the_cache_is_named_and_keeps_no_half_file(small_disk):
    data = bytes(range(256)) * 4096
    entry = _put(f"memory://{uuid4().hex}/shard", data)
    disk = small_disk("512k")
    cache = ShardCache(disk / "cache")
    with pytest.raises(
        OSError, match=f"the shard cache {disk / 'cache'} has no space left for {entry[0]}: free some, or set"
    ):
        cache.fetch(*entry, len(data))
    assert files.tree(disk / "cache") == [".lock"]
    small = [_put(f"memory://{uuid4().hex}/shard", bytes([n]) * 300_000) for n in range(3)]
    for each in small:  # the bound is above the disk: what was used least makes room all the same
        cache.fetch(*each, 300_000)
    assert cache.path_of(small[2][1]).exists() and not cache.path_of(small[0][1]).exists()


def test_what_a_dead_process_was_writing_is_taken_over_or_removed(tmp_path, remote):
    cache = ShardCache(tmp_path, 20)
    for _, digest in remote[:2]:
        cache.path_of(digest).with_suffix(".filling").write_bytes(b"half a sha" + bytes(9))
    assert len(list(cache.left())) == 2
    cache.fetch(*remote[0], 10)
    assert cache.path_of(remote[0][1]).read_bytes() == b"a" * 10
    assert list(cache.left()) == [] and len(list(tmp_path.glob("*.*r*"))) == 1


WORKER = """
import random, sys, time
from pathlib import Path
from hero_platform import files, transfer
from hero_platform.store.cache import ShardCache
folder, bound, seed, *entries = sys.argv[1:]
transfer.READ_PART = 4096
real = transfer.parts
def slow(*given):
    for part in real(*given):
        time.sleep(0.002)
        yield part
transfer.parts = slow
cache, draw = ShardCache(Path(folder), int(bound)), random.Random(int(seed))
print("ready", flush=True)
while True:
    url, digest = draw.choice(entries).split("|")
    with cache.opened(url, digest, 65536) as path:
        assert files.sha256_file(path) == digest and path.exists()
"""


def test_processes_that_are_killed_while_they_fill_leave_a_cache_that_is_whole(tmp_path):
    """Several at a time, over a cache for half of the shards; every one of them is killed, wherever it is."""
    draw = random.Random(1)
    (tmp_path / "far").mkdir()
    entries = [_put(f"file://{tmp_path}/far/{n}", draw.randbytes(65536)) for n in range(8)]
    folder, bound = tmp_path / "cache", 4 * 65536
    words = [str(folder), str(bound)]
    workers: list[subprocess.Popen] = []

    def start(seed: int) -> None:
        command = [sys.executable, "-c", WORKER, *words, str(seed), *("|".join(entry) for entry in entries)]
        workers.append(subprocess.Popen(command, stdout=subprocess.PIPE))

    try:
        for seed in range(3):
            start(seed)
        for worker in workers[:3]:
            assert worker.stdout.readline() == b"ready\n"
        filling = 0
        for round_ in range(12):
            time.sleep(draw.uniform(0.01, 0.1))
            held = [path for path in folder.glob("*.*") if path.suffix in (".arrow", ".filling")]
            assert sum(_size(path) for path in held) <= bound
            for path in folder.glob("*.arrow"):
                assert _digest(path) in (path.stem, None), "only whole shards have this name"
            victim = draw.choice([worker for worker in workers if worker.poll() is None])
            victim.send_signal(signal.SIGKILL)
            assert victim.wait() == -signal.SIGKILL, "it lived until then"
            filling += any(folder.glob("*.filling"))
            if round_ < 9:
                start(100 + round_)
                assert workers[-1].stdout.readline() == b"ready\n"
        assert all(worker.poll() is not None for worker in workers) and filling
        cache = ShardCache(folder, bound)
        for url, digest in entries:
            with cache.opened(url, digest, 65536) as path:
                assert _digest(path) == digest
        assert list(folder.glob("*.filling")) == []
    finally:
        for worker in workers:
            worker.kill()
            worker.wait()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _digest(path: Path) -> str | None:
    try:
        return files.sha256_file(path)
    except FileNotFoundError:
        return None
