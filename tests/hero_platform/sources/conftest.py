"""Where the LMDB fixtures are; tests that need them skip on a clone without them."""

import os
from pathlib import Path

import lmdb
import pytest

REPO = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="session")
def golden_lmdb():
    """`<golden>/lmdb`: $HERO_GOLDEN_DIR, else ../shared/golden beside the repository, else tests/golden."""
    shared = REPO.parent / "shared" / "golden"
    root = Path(os.environ.get("HERO_GOLDEN_DIR") or (shared if shared.exists() else REPO / "tests" / "golden"))
    if not (root / "lmdb").exists():
        pytest.skip(f"no LMDB fixtures in {root}")
    return root / "lmdb"


@pytest.fixture(scope="session")
def real():
    """`../shared/real`, beside the repository."""
    folder = REPO.parent / "shared" / "real"
    if not folder.exists():
        pytest.skip(f"no {folder}")
    return folder


@pytest.fixture(scope="session")
def write_lmdb():
    """A function that writes key -> bytes as an LMDB folder, as the released ones are: without its lock file."""

    def write(folder, values):
        folder.mkdir(parents=True, exist_ok=True)
        with lmdb.open(str(folder), map_size=1 << 24) as environment, environment.begin(write=True) as transaction:
            for key, value in values.items():
                transaction.put(key.encode(), value)
        (folder / "lock.mdb").unlink(missing_ok=True)

    return write
