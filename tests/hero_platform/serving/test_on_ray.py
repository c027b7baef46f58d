"""How replicas come to another checkpoint. Here the actor is an object, without Ray; test_serve.py has the real one."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from hero_platform.infer.searcher import Searcher
from hero_platform.serving import on_ray
from hero_platform.serving.on_ray import Choice, Replica, Said

pytestmark = pytest.mark.filterwarnings("ignore:Exception in thread follow")  # how threads end here


class Remote:
    """An object whose methods are called as those of an actor."""

    def __init__(self, inner: object) -> None:
        self._inner, self.over = inner, False

    def __getattr__(self, name: str) -> Any:
        if self.over:
            raise SystemExit  # ends the thread that asks
        return SimpleNamespace(remote=getattr(self._inner, name))


@pytest.fixture
def choice(monkeypatch: pytest.MonkeyPatch) -> Iterator[Remote]:
    """Replicas follow it to the end of the test, no longer: the real `ray.get` would start a Ray in this process."""
    monkeypatch.setattr(on_ray, "LOOK_S", 0.02)
    monkeypatch.setattr(on_ray.ray, "get", lambda value: value)
    asked = Remote(Choice("first"))
    yield asked
    asked.over = True
    for thread in [each for each in threading.enumerate() if each.name == "follow"]:
        thread.join(10)
        assert not thread.is_alive()


@pytest.fixture
def replica(choice: Remote, monkeypatch: pytest.MonkeyPatch) -> Replica:
    """Reading takes a while; `broken` cannot be read."""

    def opened(self: Replica, checkpoint: str) -> Searcher:
        time.sleep(0.05)
        if checkpoint == "broken":
            raise ValueError("broken is damaged")
        return SimpleNamespace(checkpoint=checkpoint)  # type: ignore[return-value]

    monkeypatch.setattr(Replica, "_opened", opened)
    return Replica("store", None, 1, choice)


def test_a_replica_follows(replica: Replica, choice: Remote):
    on_ray._change(choice, "second", 1)
    assert replica._searcher.checkpoint == "second"
    on_ray._change(choice, "first", 1)
    assert replica._searcher.checkpoint == "first"


def test_what_cannot_be_read_changes_nothing(replica: Replica, choice: Remote):
    for _ in range(2):
        with pytest.raises(RuntimeError, match="broken is damaged"):
            on_ray._change(choice, "broken", 1)
        assert replica._searcher.checkpoint == "first"
    on_ray._change(choice, "second", 1)
    assert replica._searcher.checkpoint == "second"


def test_a_replica_that_is_started_again_gets_what_the_others_have(replica: Replica, choice: Remote):
    """Serve starts one for each that died: with a checkpoint that cannot be read it never would."""
    with pytest.raises(RuntimeError, match="broken is damaged"):
        on_ray._change(choice, "broken", 1)
    assert Replica("store", None, 1, choice)._searcher.checkpoint == "first"


def test_what_could_not_be_read_may_be_mended(replica: Replica, choice: Remote, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(RuntimeError, match="broken is damaged"):
        on_ray._change(choice, "broken", 1)
    monkeypatch.setattr(Replica, "_opened", lambda self, checkpoint: SimpleNamespace(checkpoint=checkpoint))
    time.sleep(5 * on_ray.LOOK_S)
    on_ray._change(choice, "broken", 1)
    assert replica._searcher.checkpoint == "broken"


def test_all_replicas_have_to_say_so(replica: Replica, choice: Remote, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(on_ray, "CHANGE_S", 0.3)
    with pytest.raises(RuntimeError, match="still answer with another checkpoint than second"):
        on_ray._change(choice, "second", 2)


def test_the_dead_do_not_count(choice: Remote):
    choice.look.remote("dead", Said("zero"))
    assert choice.said.remote() == [Said("zero")]
    time.sleep(6 * on_ray.LOOK_S)
    assert choice.said.remote() == []
