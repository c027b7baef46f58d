"""No install of this project has a version with a known advisory that concerns us (docs/security.md lists them)."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
FLOORS = {"ray": "2.54", "mlflow": "3.10", "torch": "2.10"}  # the first versions without them


def _project() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


def _required(name: str) -> list[Requirement]:
    """Every line of pyproject.toml about a package, those of the extras too."""
    project = _project()
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    return [requirement for requirement in map(Requirement, lines) if requirement.name == name]


def _pinned() -> dict[str, Version]:
    lines = [line for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines() if "==" in line]
    return {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}


@pytest.mark.parametrize("name", FLOORS)
def test_the_ranges_leave_out_versions_with_advisories(name: str):
    floor = Version(FLOORS[name])
    older = [f"{floor.major}.{floor.minor - 1}.99", f"{floor.major}.0", f"{floor.major - 1}.99", "0.1"]
    assert _required(name)
    for requirement in _required(name):
        allowed = [version for version in older if requirement.specifier.contains(version, prereleases=True)]
        assert allowed == [], f"{requirement} allows {allowed}"
    assert _pinned()[name] >= floor


def test_every_dependency_has_a_pinned_version_in_its_range():
    project = _project()
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pinned = _pinned()
    for requirement in map(Requirement, lines):
        version = pinned.get(canonicalize_name(requirement.name))
        assert version is not None, f"{requirement.name} has no line in constraints.txt"
        assert requirement.specifier.contains(version), f"{requirement} leaves out the tested {version}"
