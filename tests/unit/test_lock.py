"""The lock files agree with each other and with pyproject.toml."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(
    r"^(\S+)==(\S+)(?: ; [^\\\n]+)?((?: \\\n    --hash=sha256:[0-9a-f]{64})+)$", re.M
)
_HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def _locked(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text()
    blocks = _BLOCK.findall(text)
    lines = 1 + sum(1 + len(_HASH.findall(hashes)) for _, _, hashes in blocks)
    assert lines == len(text.splitlines()), f"{name} has lines of another form: make lock"
    return {package: version for package, version, _ in blocks}


def test_the_lock_has_the_versions_that_releases_are_resolved_with() -> None:
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines())
    assert _locked("requirements.lock") == pins


def test_what_the_project_asks_for_is_locked() -> None:
    """setuptools is among it, so that the project is built without a network."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    groups = (project["dependencies"], *project["optional-dependencies"].values())
    asked = [text for group in groups for text in group]
    names = {_normal(re.split(r"[\[<>=!~; ]", text)[0]) for text in asked} - {"macd"}
    assert "setuptools" in names
    assert names - {_normal(name) for name in _locked("requirements.lock")} == set()


@pytest.mark.parametrize("library", ["cuda-toolkit", "nvidia-cudnn-cu13", "triton"])
def test_what_torch_needs_on_linux_has_a_lock_of_its_own(library: str) -> None:
    assert library in _locked("requirements-cuda.lock")
    assert library not in _locked("requirements.lock")


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()
