"""Rules about the tree itself: sizes, layers, documentation, and what a job's `--help` may import."""

from __future__ import annotations

import ast
import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCE = [path for top in ("hero_model", "platform", "jobs") for path in sorted((ROOT / top).rglob("*.py"))]
PYTHON = [*SOURCE, *(path for top in ("tests", "benchmarks") for path in sorted((ROOT / top).rglob("*.py")))]
JOBS = [path.stem for path in sorted((ROOT / "jobs").glob("*.py")) if "def main(" in path.read_text("utf-8")]


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def _functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def test_platform_is_no_package():
    assert not (ROOT / "platform" / "__init__.py").exists(), "it would shadow the standard library's platform module"
    assert not list((ROOT / "platform").glob("*.py"))
    assert not (ROOT / "tests" / "platform").exists()
    said = subprocess.run(
        [sys.executable, "-c", "import platform; print(platform.__file__, platform.python_version())"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert str(ROOT / "platform") not in said


def test_test_folders_are_no_packages():
    assert [_name(path) for path in (ROOT / "tests").rglob("__init__.py")] == []


def test_files_stay_short():
    lengths = {_name(path): len(path.read_text("utf-8").splitlines()) for path in PYTHON}
    assert {name: length for name, length in lengths.items() if length > 400} == {}


def test_functions_stay_short():
    long = []
    for path in SOURCE:
        for function in _functions(ast.parse(path.read_text("utf-8"))):
            length = (function.end_lineno or 0) - function.lineno + 1
            if length > 60:
                long.append(f"{_name(path)}:{function.lineno} {function.name} ({length} lines)")
    assert long == []


def test_source_is_finished_and_ascii():
    unfinished = re.compile(r"NotImplementedError|\bTODO\b|\bFIXME\b|\bXXX\b")
    assert [_name(path) for path in SOURCE if unfinished.search(path.read_text("utf-8"))] == []
    assert [_name(path) for path in PYTHON if not path.read_text("utf-8").isascii()] == []


def _undocumented(tree: ast.Module) -> Iterator[str]:
    if not ast.get_docstring(tree):
        yield "the module"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            if not ast.get_docstring(node):
                yield node.name
            if isinstance(node, ast.ClassDef):
                methods = (m for m in node.body if isinstance(m, ast.FunctionDef) and not m.name.startswith("_"))
                yield from (f"{node.name}.{method.name}" for method in methods if not ast.get_docstring(method))


def test_public_names_are_documented():
    missing = {_name(path): list(_undocumented(ast.parse(path.read_text("utf-8")))) for path in SOURCE}
    assert {name: names for name, names in missing.items() if names} == {}


def test_import_contracts_hold():
    """The contracts in pyproject.toml: layers, and who may import Ray, MLflow and storage libraries."""
    program = "from importlinter.cli import lint_imports; raise SystemExit(lint_imports(cache_dir=None))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


IMPORTERS = {  # only these files import it, as docs/architecture.md says
    "ray": {
        *("store/build.py", "store/reader.py", "ray_cluster.py", "train/on_ray.py", "infer/on_ray.py"),
        "serving/on_ray.py",
        *("tune/asha.py", "tune/searcher.py", "tune/sweep.py", "tune/trial.py", "cluster/access.py"),
        *("video/extract.py", "video/speech.py"),
    },
    "optuna": {"tune/study.py", "tune/asha.py", "tune/pictures.py"},
    "mlflow": {"tracking/mlflow_calls.py"},
    "requests": {
        "cluster/access.py",
        "tracking/mlflow_runs.py",
    },  # a table of runs takes less time than importing MLflow
    "sqlalchemy": {"tracking/mlflow_runs.py"},
    "tyro": {"config_io.py"},
    "pydantic": {"config_io.py", "serving/schema.py"},
    "fastapi": {"serving/app.py", "serving/on_ray.py"},
    "av": {"infer/films.py", "sources/synthetic_films.py", "video/child.py", "video/decode.py"},
    "tokenizers": {"hero_model/text.py"},
    "transformers": {"video/speech.py", "video/transformers_models.py"},
    "huggingface_hub": {"video/transformers_models.py"},
    "safetensors": {"hero_model/official.py", "hero_model/retriever.py", "train/convert.py", "train/snapshot.py"},
    "pickle": set(),
}


@functools.cache
def _imported(path: Path) -> set[str]:
    """Top-level names of everything a file imports, inside functions too, types apart."""
    tree = ast.parse(path.read_text("utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    modules = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    modules += [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return {module.split(".")[0] for module in modules}


def test_libraries_are_imported_where_the_documents_say():
    importers = {library: {path for path in SOURCE if library in _imported(path)} for library in IMPORTERS}
    names = {
        library: {_name(path).removeprefix("platform/hero_platform/") for path in paths}
        for library, paths in importers.items()
    }
    assert names == IMPORTERS


def _fenced_tree(text: str) -> list[str]:
    """Paths in the fenced block of a document that starts with a `tree` fence, joined by indentation."""
    block = re.search(r"```tree\n(.*?)```", text, re.DOTALL)
    paths: list[str] = []
    parents: list[tuple[int, str]] = []
    for line in (block.group(1) if block else "").splitlines():
        if not line.strip():
            continue
        indent, name = len(line) - len(line.lstrip()), line.split()[0]
        while parents and parents[-1][0] >= indent:
            parents.pop()
        full = f"{parents[-1][1] if parents else ''}{name}"
        paths.append(full)
        if name.endswith("/"):
            parents.append((indent, full))
    return paths


def test_readme_tree_is_true():
    readme = ROOT / "README.md"
    listed = _fenced_tree(readme.read_text("utf-8"))
    assert listed, "README.md ends with a ```tree block"
    assert [path for path in listed if not (ROOT / path).exists()] == []
    packages = {f"{_name(path.parent)}/" for path in SOURCE if path.name != "__init__.py"}
    modules = {_name(path) for path in SOURCE if path.name != "__init__.py"}
    assert sorted((packages | modules) - set(listed)) == [], "each file of source has its line in the README's tree"


@pytest.mark.parametrize("job", JOBS)
def test_help_imports_nothing_heavy(job: str):
    program = (
        "import runpy, sys\n"
        f"sys.argv = ['{job}', '--help']\n"
        "try:\n"
        f"    runpy.run_module('jobs.{job}', run_name='__main__')\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code, stop.code\n"
        "heavy = {'torch', 'ray', 'mlflow', 'pyarrow', 'transformers', 'matplotlib', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_workers_start_without_what_draws():
    program = "import sys, hero_platform.train.on_ray\nassert 'matplotlib' not in sys.modules\n"
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr


def test_the_step_benchmark_runs_on_a_bare_machine():
    """`benchmarks.step` goes to GPU machines that have torch and NumPy and nothing else of ours."""
    program = (
        "import sys\n"
        "import benchmarks.step\n"
        "others = {'ray', 'mlflow', 'pyarrow', 'psutil', 'matplotlib', 'transformers', 'tokenizers', 'safetensors',\n"
        "          'pydantic', 'tyro', 'fsspec', 'optuna', 'requests', 'msgpack', 'lmdb'} & set(sys.modules)\n"
        "assert not others, others\n"
    )
    path = os.pathsep.join([str(ROOT), str(ROOT / "platform")])
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )
    assert done.returncode == 0, done.stderr
