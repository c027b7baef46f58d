"""Who may use the service: this machine without a token, anybody else with one (docs/search.md, "Who may search").

The token itself stays in the environment of the job that starts the service. What the replicas get is its SHA-256, with
which they check a token, and sign the cookie that a browser gets in its place: `<video>` elements send no headers of
ours. Comparisons take the same time wherever they differ.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import time
from collections.abc import Mapping
from dataclasses import dataclass, field

TOKEN_VARIABLE = "HERO_SERVE_TOKEN"
COOKIE = "hero_session"
SESSION_S = 12 * 3600
LEAST = 16  # characters of a token


@dataclass(frozen=True)
class Access:
    """What a request needs."""

    loopback: bool  # whether only this machine reaches the service
    token_sha256: str = field(default="", repr=False)  # hex; empty: no token is needed

    @classmethod
    def of(cls, host: str, token: str) -> Access:
        """For a service that listens on `host`; `token` is empty where the user has set none.

        Raises:
            ValueError: others would reach the service, and there is no token, or a short one.
        """
        loopback = is_loopback(host)
        if not token and loopback:
            return cls(loopback)
        if len(token) < LEAST:
            what = f"has {len(token)} characters" if token else "is not set"
            raise ValueError(
                f"{TOKEN_VARIABLE} {what}: a service on {host} needs a token of at least {LEAST}; make one with "
                "python -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        return cls(loopback, _sha256(token))

    def knows_host(self, host: str) -> bool:
        """Whether a request's `Host` may be meant: without a token, pages of other names must not reach the service.

        A page elsewhere can have its name resolve to 127.0.0.1 (DNS rebinding); its requests then carry that name.
        """
        if self.token_sha256 or not self.loopback:
            return True
        name = host.rsplit(":", 1)[0] if not host.endswith("]") else host
        return is_loopback(name.lower())

    def admits(self, authorization: str, cookies: Mapping[str, str]) -> bool:
        """Whether a request may do more than see the empty page: by `Authorization: Bearer`, or by its session."""
        if not self.token_sha256:
            return True
        scheme, _, given = authorization.partition(" ")
        if scheme.lower() == "bearer" and self.is_token(given.strip()):
            return True
        return self._is_session(cookies.get(COOKIE, ""))

    def is_token(self, given: str) -> bool:
        """Whether this is the token."""
        return hmac.compare_digest(_sha256(given), self.token_sha256)

    def session(self) -> str:
        """A cookie's value for `SESSION_S` seconds: when it ends, and a signature."""
        ends = str(int(time.time()) + SESSION_S)
        return f"{ends}.{self._signature(ends)}"

    def _is_session(self, value: str) -> bool:
        ends, _, signature = value.partition(".")
        known = hmac.compare_digest(self._signature(ends).encode(), signature.encode())
        return known and ends.isascii() and ends.isdigit() and int(ends) > time.time()

    def _signature(self, ends: str) -> str:
        return hmac.new(self.token_sha256.encode(), f"session until {ends}".encode(), "sha256").hexdigest()


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
