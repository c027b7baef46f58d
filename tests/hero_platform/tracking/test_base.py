"""What of an address may be shown."""

from __future__ import annotations

import pytest

from hero_platform.tracking.base import without_credentials


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("sqlite:////work/mlflow.db", "sqlite:////work/mlflow.db"),
        ("http://127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("postgresql://user:secret@host:5432/db", "postgresql://host:5432/db"),
        ("postgresql://user:sec/ret@host/db", "postgresql://host/db"),
        ("postgresql://user:s@cret@host/db and more", "postgresql://host/db and more"),
        ("https://user@host/path", "https://host/path"),
        ("s3://bucket/a@b", "s3://bucket/a@b"),
        ("mysql://host/db?user=me&password=secret&ssl=1", "mysql://host/db?user=...&password=...&ssl=1"),
    ],
)
def test_no_secret_of_an_address_is_shown(text: str, shown: str):
    assert without_credentials(text) == shown and "secret" not in without_credentials(text)
