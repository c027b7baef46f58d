"""Credentials stay in the environment: what is kept or shown holds none of them (design D11)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator

_SECRET = re.compile(
    r"(?:PASSWORD|PASSWD|_PWD|PASSPHRASE|SECRET|TOKEN|CREDENTIALS?|(?:ACCESS|ACCOUNT|API|PRIVATE|SECRET)_KEY)$",
    re.IGNORECASE,
)
LEAST = 8  # characters of a value that is taken out: shorter ones are words that stand elsewhere too
_LOGIN = re.compile(r"(?<=://)[^\s/@:'\"`<>]*(?::[^\s'\"`<>]*)?@")  # a password may hold / and @
_PARAMETER = re.compile(r"([?&](?:user|[\w-]*(?:password|passwd|token|secret|signature))=)[^&\s'\"`<>]*", re.IGNORECASE)


def is_secret(name: str) -> bool:
    """Whether an environment variable of this name holds a credential: `AWS_SECRET_ACCESS_KEY`, `*_PASSWORD`, ..."""
    return _SECRET.search(name) is not None


def without_credentials(text: str) -> str:
    """A text without user and password of any URL in it, and without the values of secrets in the environment."""
    for value in sorted(_secrets(), key=len, reverse=True):  # one may hold another
        text = text.replace(value, "***")
    return _PARAMETER.sub(r"\1...", _LOGIN.sub("", text))


def shareable(names: Iterable[str]) -> dict[str, str]:
    """Those environment variables of these names that are set, and hold no credential: others may see them."""
    found = {name: os.environ[name] for name in names if os.environ.get(name)}
    return {name: value for name, value in found.items() if value == without_credentials(value)}


def check_address(address: str) -> None:
    """Refuse a URL that carries a user or a password: it would be kept with everything that was made there.

    Raises:
        ValueError: it does; the message shows the URL without them.
    """
    if _LOGIN.search(address) or _PARAMETER.search(address):
        raise ValueError(
            f"{without_credentials(address)} was given with a user or a password in it, which would be kept with what "
            "is made there: leave them out, and set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY or use a role"
        )


def _secrets() -> Iterator[str]:
    """Lines of the values of secrets: of a key in several lines each, since a diff puts signs before them."""
    for value in (value for name, value in os.environ.items() if is_secret(name)):
        yield from (line for line in value.splitlines() if len(line) >= LEAST)
