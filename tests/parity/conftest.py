"""Makes tests/oracle and the helpers of this folder importable, and reports what the run compared."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

# tests/ itself must not be on sys.path: tests/hero_platform would shadow the package of that name.
for _name in ("oracle", "parity"):
    _package = ModuleType(_name)
    _package.__path__ = [str(Path(__file__).resolve().parents[1] / _name)]
    sys.modules.setdefault(_name, _package)

from parity.compare import Errors  # noqa: E402
from parity.golden import kinds_present, root  # noqa: E402

_ERRORS = Errors()


@pytest.fixture(scope="session")
def errors() -> Errors:
    return _ERRORS


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    """Small tensors: more threads only get in the way of each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if not _ERRORS.cases:
        return
    terminalreporter.section(f"parity with {root()}")
    for kind, count in sorted(kinds_present().items()):
        terminalreporter.write_line(f"{kind:28s} {count:3d} case(s)")
    terminalreporter.write_line("largest relative error (outputs and losses / gradients):")
    for (who, kind), error in sorted(_ERRORS.largest.items()):
        count = len(_ERRORS.cases[who, kind])
        terminalreporter.write_line(f"{who:24s} {kind:28s} {count:3d} case(s)  {error:.1e}")
