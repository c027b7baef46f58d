"""Documents must be true: links lead somewhere, and commands name jobs, recipes and flags that exist."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from functools import lru_cache
from pathlib import Path

import pytest

from jobs.recipes import RECIPES

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]


@lru_cache
def help_of(job: str, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{job}", *command, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    return done.stdout


def commands(text: str) -> list[list[str]]:
    """Words of every `python -m jobs...` command in a fenced block, continuation lines joined."""
    fenced = "\n".join(re.findall(r"```\w*\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    lines = [line.strip() for line in fenced.splitlines() if line.strip().startswith("python -m jobs.")]
    return [shlex.split(line, comments=True)[2:] for line in lines]


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_somewhere(name: str):
    path = ROOT / name
    links = re.findall(r"\]\(([^)#\s]+)", path.read_text("utf-8"))
    assert [link for link in links if "://" not in link and not (path.parent / link).exists()] == []


@pytest.mark.parametrize("name", NAMES)
def test_commands_exist(name: str):
    for module, *words in commands((ROOT / name).read_text("utf-8")):
        job = module.removeprefix("jobs.")
        assert (ROOT / "jobs" / f"{job}.py").exists(), module
        sub = words[:1] if job == "build_store" else []
        if job in ("train", "tune"):
            assert words[0] in RECIPES, words[0]
        known = help_of(job, *sub)
        flags = [word for word in words if word.startswith("--")]
        fields = ("--init-from",) if job in ("train", "tune") else ()
        assert [flag for flag in flags if "." not in flag and flag not in fields and flag not in known] == []


def test_commands_are_found():
    found = commands("x\n```\npython -m jobs.train pretrain_tv \\\n  --batch 4   # four\n```\n")
    assert found == [["jobs.train", "pretrain_tv", "--batch", "4"]]
