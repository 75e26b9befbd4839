"""macd's wheel: complete, pure, and the same bytes whatever the clone's modes and times are."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from macd.errors import MacdError, UsageError
from macd.release import wheel
from tests.support.training_run import ROOT


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    junk = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "macd", tmp_path / "tree/macd", ignore=junk)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path / "tree")
    return tmp_path / "tree"


def test_modes_times_and_litter_of_a_clone_do_not_matter(tree: Path) -> None:
    name, first = wheel.build(tree)
    for path in tree.rglob("*"):
        path.chmod(0o700 if path.is_dir() else 0o600)
        os.utime(path, (1_500_000_000, 1_500_000_000))
    (tree / "macd/__pycache__").mkdir(exist_ok=True)
    (tree / "macd/__pycache__/errors.cpython-311.pyc").write_bytes(b"old")
    (tree / "macd/.errors.py.swp").write_bytes(b"editor")
    before = os.umask(0o077)
    try:
        assert wheel.build(tree) == (name, first)
    finally:
        os.umask(before)
    inside = set(zipfile.ZipFile(io.BytesIO(first)).namelist())
    assert name == "macd-0.1.0-py3-none-any.whl"
    sources = {str(p.relative_to(tree)) for p in (tree / "macd").rglob("*.py")}
    assert sources <= inside
    assert "macd/py.typed" in inside
    assert any(path.endswith("licenses/LICENSE") for path in inside)
    assert not [path for path in inside if path.endswith((".pyc", ".swp", ".so"))]
    (tree / "macd/errors.py").write_text("# other code\n")
    assert wheel.build(tree)[1] != first


def test_a_tree_that_is_none_or_broken_is_told(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no source of macd"):
        wheel.build(tmp_path / "nowhere")
    (tree / "pyproject.toml").write_text("[project\n")
    with pytest.raises(MacdError, match="can't be built"):
        wheel.build(tree)


def test_outside_of_git_there_is_no_commit(tree: Path) -> None:
    assert wheel.code_of(tree).commit is None
    assert wheel.code_of(tree).dirty is False


def test_a_copy_inside_of_a_clone_does_not_borrow_its_commit(tree: Path) -> None:
    clone = tree.parent
    (clone / ".gitignore").write_text("tree/\n")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@example.org", "-C", str(clone)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "add", ".gitignore"], check=True)
    subprocess.run([*git, "commit", "-qm", "first"], check=True)
    assert wheel.code_of(clone).commit is not None
    assert wheel.code_of(tree).commit is None
