"""Credentials are taken out of whatever is kept or shown, and refused where they would be kept."""

from __future__ import annotations

import pytest

from hero_platform import files, home
from hero_platform.credentials import LEAST, check_address, is_secret, shareable, without_credentials


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
        ("s3://b/k?X-Amz-Security-Token=secret", "s3://b/k?X-Amz-Security-Token=..."),
        ('{"a": "http://host:1", "mail": "me@host"}', '{"a": "http://host:1", "mail": "me@host"}'),
        ("half = a // b  # me@host", "half = a // b  # me@host"),
    ],
)
def test_no_secret_of_an_address_is_shown(text: str, shown: str):
    assert without_credentials(text) == shown and "secret" not in without_credentials(text)


@pytest.mark.parametrize(
    "name",
    [
        *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "MLFLOW_TRACKING_PASSWORD", "PGPASSWORD"),
        *("MLFLOW_FLASK_SERVER_SECRET_KEY", "HF_TOKEN", "OPENAI_API_KEY", "MYSQL_PWD", "client_secret"),
    ],
)
def test_the_value_of_a_secret_is_shown_nowhere(name: str, monkeypatch):
    monkeypatch.setenv(name, "wJalr/XUtn+FEMI=")
    assert is_secret(name) and without_credentials("a wJalr/XUtn+FEMI=, b") == "a ***, b"


@pytest.mark.parametrize("name", ["TOKENIZERS_PARALLELISM", "PWD", "AWS_ACCESS_KEY_ID", "RAY_AUTH_TOKEN_PATH"])
def test_what_is_no_secret_is_left_alone(name: str, monkeypatch):
    monkeypatch.setenv(name, "hero-test")
    assert not is_secret(name) and without_credentials("s3://hero-test/x") == "s3://hero-test/x"


def test_each_line_of_a_key_is_a_secret_and_short_words_are_none(monkeypatch):
    monkeypatch.setenv("DEPLOY_PRIVATE_KEY", "-----BEGIN-----\nMIIEvQIBADAN\nshort\n")
    monkeypatch.setenv("SOME_TOKEN", "t" * (LEAST - 1))
    assert without_credentials("+MIIEvQIBADAN\n+short tttttttt") == "+***\n+short tttttttt"


def test_of_two_secrets_that_hold_each_other_nothing_is_left(monkeypatch):
    monkeypatch.setenv("A_TOKEN", "12345678")
    monkeypatch.setenv("B_TOKEN", "12345678-90")
    assert without_credentials("12345678-90") == "***"


@pytest.mark.parametrize(
    "address", ["s3://me:secret@bucket/x", "s3://me:sec/ret@bucket/x", "s3://me@bucket", "s3://bucket/x?token=secret"]
)
def test_an_address_with_a_credential_is_refused(address: str, monkeypatch):
    with pytest.raises(ValueError, match="AWS_SECRET_ACCESS_KEY") as refused:
        files.exists(address)
    monkeypatch.setenv("HERO_HOME", address)
    with pytest.raises(ValueError, match="a user or a password"):
        home.root()
    assert "secret" not in str(refused.value)


def test_an_at_sign_in_a_key_is_no_credential():
    check_address("s3://bucket/a@b/c:d@e")


def test_only_addresses_without_a_credential_are_passed_on(monkeypatch):
    monkeypatch.setenv("HERO_A", "https://tracking.example")
    monkeypatch.setenv("HERO_B", "https://user:hidden-word@tracking.example")
    monkeypatch.setenv("HERO_C", "")
    monkeypatch.delenv("HERO_D", raising=False)
    assert shareable(["HERO_A", "HERO_B", "HERO_C", "HERO_D"]) == {"HERO_A": "https://tracking.example"}
