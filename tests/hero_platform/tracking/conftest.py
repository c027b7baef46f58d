"""A tracking store and a run's folder."""

import pytest

from hero_platform.tracking.base import default_uri


@pytest.fixture
def uri(tracking_database):
    return default_uri(str(tracking_database.parent))


@pytest.fixture
def folder(hero_home):
    return str(hero_home / "runs" / "r")
