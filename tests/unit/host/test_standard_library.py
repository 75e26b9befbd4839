"""macd/host keeps its promise: the standard library only."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import macd.host

SOURCES = sorted(Path(macd.host.__file__).parent.rglob("*.py"))


@pytest.mark.parametrize("path", SOURCES, ids=str)
def test_it_imports_the_standard_library_and_its_siblings_only(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the shipped package knows absolute imports only"
            names = [str(node.module)]
        for name in names:
            assert name.split(".")[0] in sys.stdlib_module_names or name.startswith(
                ("macd.host", "macd.heads")
            ), name
