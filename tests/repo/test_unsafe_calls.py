"""No call in the code base runs what it reads: pickles, YAML objects, texts as programs, lines for a shell.

Ruff's rules (`S` in pyproject.toml, part of `make lint`) find most of them; what it has no rule for is found here. A
planted call of each kind shows that the rules are on.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("hero_model", "platform", "jobs", "benchmarks", "deploy", "tests")
PYTHON = [path for top in FOLDERS for path in sorted((ROOT / top).rglob("*.py"))]
OBJECTS = ("gather_object", "all_gather_object", "broadcast_object_list", "scatter_object_list", "send_object_list")


def _ruff(code: str, file: str) -> str:
    command = [sys.executable, "-m", "ruff", "check", "--output-format", "concise", "--stdin-filename", file, "-"]
    return subprocess.run(command, input=code, cwd=ROOT, capture_output=True, text=True).stdout


@pytest.mark.parametrize("file", ["platform/hero_platform/planted.py", "jobs/planted.py", "deploy/planted.py"])
@pytest.mark.parametrize(
    ("rule", "code"),
    [
        ("S301", "import pickle\n\npickle.loads(b'')\n"),
        ("S301", "from pickle import load\n\nload(open('x', 'rb'))\n"),
        ("S301", "import pandas as pd\n\npd.read_pickle('x')\n"),
        ("S302", "import marshal\n\nmarshal.loads(b'')\n"),
        ("S307", "eval('1')\n"),
        ("S102", "exec('1')\n"),
        ("S506", "import yaml\n\nyaml.load('a: 1', Loader=yaml.Loader)\n"),
        ("S602", "import subprocess\n\nsubprocess.run('ls *', shell=True)\n"),
        ("S605", "import os\n\nos.system('ls')\n"),
        ("S605", "import os\n\nos.popen('ls')\n"),
        ("S202", "import tarfile\n\ntarfile.open('x').extractall('y')\n"),
        ("S501", "import requests\n\nrequests.get('https://x', verify=False, timeout=1)\n"),
        ("S104", "HOST = '0.0.0.0'\n"),
        ("PGH004", "import os\n\nos.system('ls')  # noqa\n"),
    ],
)
def test_a_planted_call_fails_the_lint(rule: str, code: str, file: str):
    assert f" {rule} " in _ruff(f'"""Planted."""\n\n{code}', file)


def test_the_rules_are_not_switched_off_where_they_count():
    switched = re.compile(r"noqa:[^#]*\b(S102|S[23567]\d\d)\b")
    lines = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in PYTHON
        for number, line in enumerate(path.read_text("utf-8").splitlines(), 1)
        if switched.search(line) and path != Path(__file__)
    ]
    assert lines == []


def _unsafe(code: str) -> Iterator[str]:
    """Calls that may unpickle, by name, as far as ruff has no rule for them."""
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module in ("torch", "numpy", "joblib"):
            yield from (f"{node.module}.load under another name" for alias in node.names if alias.name == "load")
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        said = {word.arg: ast.unparse(word.value) for word in node.keywords}
        if name == "torch.load" and said.get("weights_only") != "True":
            yield name
        if name in ("np.load", "numpy.load") and said.get("allow_pickle", "False") != "False":
            yield name
        if name == "joblib.load" or name.rpartition(".")[2] in OBJECTS:
            yield name


@pytest.mark.parametrize(
    "code",
    [
        "torch.load(path)",
        "torch.load(\n    path,\n    weights_only=safe,\n)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "numpy.load(path, allow_pickle=trusted)",
        "joblib.load(path)",
        "torch.distributed.all_gather_object(all, mine)",
    ],
)
def test_a_planted_call_is_found(code: str):
    assert list(_unsafe(code))


@pytest.mark.parametrize("code", ["torch.load(path, weights_only=True)", "np.load(path)", "json.load(file)"])
def test_a_safe_call_is_none(code: str):
    assert not list(_unsafe(code))


@pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
def test_nothing_travels_as_a_pickle(path: Path):
    """Design D6: neither NumPy's and torch's own readers nor object collectives may unpickle."""
    assert list(_unsafe(path.read_text("utf-8"))) == []
