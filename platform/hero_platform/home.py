"""Where outputs live: one root, `HERO_HOME` (default `./outputs`, may be `s3://...`), the same layout everywhere."""

from __future__ import annotations

import os
import re

from hero_platform import files
from hero_platform.credentials import check_address, shareable

_FOR_OTHERS = (
    *("MLFLOW_TRACKING_URI", "HERO_PRICES", "HERO_CACHE", "HERO_CACHE_BYTES"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION"),
)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._=-]{0,199}")  # file systems take 255 bytes
_SHOWN = 60  # characters of a name that is refused


def root() -> str:
    """The root of all outputs: an absolute local path or an `s3://` URL.

    Raises:
        ValueError: the URL holds a user or a password.
    """
    home = os.environ.get("HERO_HOME", "outputs")
    if not files.is_remote(home):
        return os.path.abspath(home)
    check_address(home)
    return home.rstrip("/")


def environment() -> dict[str, str]:
    """What processes on other machines need to know of this environment, to find the same places; no secret (D11)."""
    return {"HERO_HOME": root(), **shareable(_FOR_OTHERS)}


def check_name(what: str, name: str) -> None:
    """Refuse a name that could not be a folder's name.

    Args:
        what: the name's owner, for the message: run, evaluation, ...
        name: what a user called it.

    Raises:
        ValueError: it holds other characters than a folder's name may.
    """
    if not is_name(name):
        shown = name if len(name) <= _SHOWN else f"{name[:_SHOWN]}..."
        raise ValueError(
            f"{what} name {shown!r} may only hold letters, digits and . _ = -, a letter or digit first, 200 at most"
        )


def is_name(name: str) -> bool:
    """Whether a run could have this name."""
    return _NAME.fullmatch(name) is not None


def run_dir(name: str) -> str:
    """Folder of a run.

    Raises:
        ValueError: the name could not be a folder's name.
    """
    check_name("run", name)
    return files.join(root(), "runs", name)


def sweep_dir(name: str) -> str:
    """Folder of a sweep.

    Raises:
        ValueError: the name could not be a folder's name.
    """
    check_name("sweep", name)
    return files.join(root(), "sweeps", name)


def job_dir(name: str) -> str:
    """Folder of what a cluster job leaves: its driver's log, its result.

    Raises:
        ValueError: the name could not be a folder's name.
    """
    check_name("job", name)
    return files.join(root(), "jobs", name)


def checkpoints_dir(name: str) -> str:
    """Folder of a run's checkpoints."""
    return files.join(run_dir(name), "checkpoints")


def indexes_dir() -> str:
    """Folder of search indexes, which are mapped into memory: on this machine, wherever the root lies."""
    return os.path.join(cache_dir() if files.is_remote(root()) else root(), "indexes")


def cache_dir() -> str:
    """Folder of what this machine keeps of things elsewhere: `$HERO_CACHE`, default `~/.cache/hero`."""
    return os.environ.get("HERO_CACHE") or os.path.join(os.path.expanduser("~"), ".cache", "hero")


def store_dir(corpus: str, name: str) -> str:
    """Folder of a feature store.

    Raises:
        ValueError: a name could not be a folder's name.
    """
    check_name("corpus", corpus)
    check_name("store", name)
    return files.join(root(), "stores", corpus, name)


def store_of(corpus: str) -> str | None:
    """The feature store of a corpus under the root when there is exactly one; None when there is none.

    Raises:
        ValueError: several feature sets are there, so that one has to be named, or this is no name of a corpus.
    """
    check_name("corpus", corpus)
    folder = files.join(root(), "stores", corpus)
    sets = [name for name in files.listdir(folder) if files.exists(files.join(folder, name, "manifest.json"))]
    if len(sets) > 1:
        raise ValueError(f"{folder} holds several feature sets ({', '.join(sets)}): choose with --store {corpus}=PATH")
    return files.join(folder, sets[0]) if sets else None
