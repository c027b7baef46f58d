"""The code that a job takes along: the three packages as they lie here, and nothing else (design D11)."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hero_platform import files
from hero_platform.tracking.system import ORIGIN_FILE, origin

ROOT = Path(__file__).resolve().parents[3]
FOLDERS = ("hero_model", "platform/hero_platform", "jobs")
SUFFIXES = frozenset({".py", ".html", ".css", ".js"})  # code; no data and no keys, whatever else lies there


def stage(folder: Path) -> dict[str, Any]:
    """Copy the code to a folder, laid out as here, with a file that says where it came from.

    Files that git ignores stay here. Where there is no git, all code files of the packages go.

    Returns:
        What that file says: `tracking.system.origin`.
    """
    for path in code_files():
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
    facts = origin()
    files.write_json(folder / ORIGIN_FILE, facts)
    return facts


def code_files() -> list[Path]:
    """The files that go, sorted."""
    return sorted(path for path in _known() if path.suffix in SUFFIXES and path.is_file() and not path.is_symlink())


def _known() -> Iterator[Path]:
    listed = subprocess.run(
        ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "-z", "--", *FOLDERS],
        capture_output=True,
        check=False,
    )
    if listed.returncode == 0 and listed.stdout:
        yield from (ROOT / name for name in listed.stdout.decode().split("\0") if name)
        return
    for name in FOLDERS:
        yield from (path for path in (ROOT / name).rglob("*") if "__pycache__" not in path.parts)
