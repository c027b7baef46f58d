"""Who gets in: hosts, tokens, sessions."""

from __future__ import annotations

import pytest

from hero_platform.serving import access as module
from hero_platform.serving.access import COOKIE, Access, is_loopback

TOKEN = "correct-horse-battery"
EVERYWHERE = "0.0.0.0"  # noqa: S104  what users give
ELSEWHERE = Access.of("192.0.2.1", TOKEN)


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True), ("127.9.9.9", True), ("localhost", True), ("::1", True), ("[::1]", True),
        (EVERYWHERE, False), ("::", False), ("192.0.2.1", False), ("example.org", False), ("", False),
    ],
)  # fmt: skip
def test_what_is_loopback(host: str, local: bool):
    assert is_loopback(host) is local


@pytest.mark.parametrize(("token", "message"), [("", "is not set"), ("short", "has 5 characters")])
def test_others_need_a_token(token: str, message: str):
    with pytest.raises(ValueError, match=f"HERO_SERVE_TOKEN {message}: a service on {EVERYWHERE} needs a token"):
        Access.of(EVERYWHERE, token)
    with pytest.raises(ValueError, match="has 5 characters"):
        Access.of("127.0.0.1", "short")


def test_the_token_is_nowhere_in_what_travels():
    assert TOKEN not in repr(ELSEWHERE) and TOKEN not in str(vars(ELSEWHERE))
    assert ELSEWHERE.token_sha256 not in repr(ELSEWHERE)


@pytest.mark.parametrize(
    ("authorization", "admitted"),
    [
        (f"Bearer {TOKEN}", True), (f"bearer  {TOKEN} ", True), (f"Basic {TOKEN}", False), (TOKEN, False),
        (f"Bearer {TOKEN}x", False), ("Bearer ", False), ("", False), ("Bearer \udcff", False),
    ],
)  # fmt: skip
def test_a_token_in_the_header(authorization: str, admitted: bool):
    assert ELSEWHERE.admits(authorization, {}) is admitted


def test_a_session_ends_and_cannot_be_made_up(monkeypatch: pytest.MonkeyPatch):
    session = ELSEWHERE.session()
    ends, _, signature = session.partition(".")
    assert ELSEWHERE.admits("", {COOKIE: session})
    for other in (
        f"{int(ends) + 1}.{signature}",
        f"{ends}.{signature[:-1]}",
        ends,
        f"{ends}.",
        ".",
        "x.y",
        "\xe9.\xe9",
    ):
        assert not ELSEWHERE.admits("", {COOKIE: other})
    assert not Access.of("192.0.2.1", TOKEN + "2").admits("", {COOKIE: session})
    monkeypatch.setattr(module.time, "time", lambda: float(ends) + 1)
    assert not ELSEWHERE.admits("", {COOKIE: session})


@pytest.mark.parametrize(
    ("host", "known"),
    [
        ("localhost", True), ("127.0.0.1:8000", True), ("LOCALHOST:1", True), ("[::1]:8000", True), ("[::1]", True),
        ("127.0.0.2:8000", True), ("evil.example", False), ("127.0.0.1.evil.example:80", False), ("", False),
    ],
)  # fmt: skip
def test_without_a_token_other_names_do_not_reach_it(host: str, known: bool):
    assert Access.of("127.0.0.1", "").knows_host(host) is known
    assert ELSEWHERE.knows_host(host)
