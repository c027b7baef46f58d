"""What goes to a cluster: the code, what changed in it, and nothing that lies beside it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hero_platform.cluster import package
from hero_platform.tracking import system


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout of a few files of which not all may leave it."""
    root = tmp_path / "checkout"
    for name, text in {
        "hero_model/a.py": "A = 1\n",
        "platform/hero_platform/b.py": "",
        "jobs/c.py": "",
        "jobs/.env": "AWS_SECRET_ACCESS_KEY=hidden",
        "jobs/features.npz": "data",
        "jobs/ignored.py": "",
        "hero_model/key.pem": "hidden",
        "tests/t.py": "",
        ".gitignore": "ignored.py\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    monkeypatch.setattr(package, "ROOT", root)
    monkeypatch.setattr(system, "_REPOSITORY", root)
    return root


def commit(root: Path) -> None:
    who = ["-c", "user.name=t", "-c", "user.email=t@t"]
    for words in (["init", "-q"], ["add", "-A"], [*who, "commit", "-qm", "all"]):
        subprocess.run(["git", "-C", str(root), *words], check=True)


def staged(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_only_code_that_git_knows_goes(checkout: Path, tmp_path: Path):
    commit(checkout)
    (checkout / "hero_model" / "a.py").write_text("A = 2\n")
    (checkout / "jobs" / "new.py").write_text("")
    (checkout / "jobs" / "link.py").symlink_to("/etc/passwd")
    out = tmp_path / "out"
    facts = package.stage(out)
    code = ["hero_model/a.py", "jobs/c.py", "jobs/new.py", "platform/hero_platform/b.py"]
    assert staged(out) == sorted([*code, "origin.json"])
    assert (out / "hero_model" / "a.py").read_text() == "A = 2\n", "as it lies here"
    assert facts == json.loads((out / "origin.json").read_text())
    assert "+A = 2" in facts["git"]["diff"] and "jobs/new.py" in facts["git"]["untracked"]
    assert len(facts["git"]["commit"]) == 40 and facts["submitter"].count("@") == 1


def test_without_git_the_packages_go(checkout: Path, tmp_path: Path):
    out = tmp_path / "out"
    (checkout / "jobs" / "__pycache__").mkdir()
    (checkout / "jobs" / "__pycache__" / "c.py").write_text("")
    facts = package.stage(out)
    assert staged(out) == [
        "hero_model/a.py",
        "jobs/c.py",
        "jobs/ignored.py",
        "origin.json",
        "platform/hero_platform/b.py",
    ]
    assert facts["git"] == {}


def test_the_real_package_runs_where_it_is_unpacked(tmp_path: Path):
    """From there and from nowhere else; its runs know the commit that it came from."""
    facts = package.stage(tmp_path / "out")
    program = (
        "import jobs.train, hero_platform.tracking.system as s, hero_model, json;"
        "print(json.dumps([jobs.train.__file__, s.__file__, hero_model.__file__, s.origin()]))"
    )
    environment = {**os.environ, "PYTHONPATH": "platform"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path / "out", env=environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    *places, origin = json.loads(done.stdout)
    assert all(place.startswith(str(tmp_path / "out")) for place in places)
    assert origin == facts
