"""Recipe and arguments to a `RunConfig`, and that to JSON and back. The only file that knows tyro and pydantic."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
from collections.abc import Sequence
from typing import Any

import pydantic
import tyro

from hero_platform.config import RunConfig, identity

_ADAPTER = pydantic.TypeAdapter(RunConfig)


def override(config: RunConfig, arguments: Sequence[str], *, program: str) -> RunConfig:
    """Apply dotted overrides such as `--optim.lr 1e-4` or `--mixture.0.task.mask-prob 0.3`.

    Raises:
        ValueError: an unknown name or a value of the wrong type, in tyro's words (it suggests near names).
        SystemExit: `--help` was among the arguments (after printing it).
    """
    if not arguments:
        return config
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                RunConfig, default=config, args=list(arguments), prog=program, config=(tyro.conf.AvoidSubcommands,)
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise ValueError(_sentence(said.getvalue())) from None


def _sentence(text: str) -> str:
    """Flatten tyro's boxed error message to one line."""
    words = " ".join("".join(c if c.isascii() else " " for c in text).split())
    for noise in ("Value error", "Unrecognized options", "Parsing error", "Error parsing RunConfig:"):
        words = words.removeprefix(noise).strip()
    return words.split(" For full helptext")[0]


def to_json(config: RunConfig) -> str:
    """The whole config, readable, stable in order."""
    return json.dumps(_ADAPTER.dump_python(config, mode="json"), indent=2)


def to_dict(config: RunConfig) -> dict[str, Any]:
    """The whole config as plain data."""
    data: dict[str, Any] = _ADAPTER.dump_python(config, mode="json")
    return data


def from_json(text: str) -> RunConfig:
    """The inverse of `to_json`: an equal value.

    Raises:
        ValueError: unknown keys or wrong types (pydantic's list of them).
    """
    return _ADAPTER.validate_json(text)


def fingerprint(config: RunConfig) -> str:
    """sha256 over the identity fields; the same for a config that was read back from JSON."""
    whole = from_json(to_json(config))  # a recipe may say 2 where a float is meant
    return hashlib.sha256(json.dumps(identity(whole), sort_keys=True).encode()).hexdigest()
