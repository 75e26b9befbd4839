"""Every operation that this side asks a host for is one that a module of macd.host offers."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Iterator
from pathlib import Path

from macd import host

ROOT = Path(__file__).parents[3] / "macd"


def test_operations_that_are_asked_for_exist() -> None:
    asked = {name: path for path in ROOT.rglob("*.py") for name in _asked(path)}
    assert {"lock", "checkup", "facts"} <= set(asked)
    unknown = set(asked) - _offered()
    assert unknown == set(), [f"{asked[name].name} asks for {name}" for name in sorted(unknown)]


def _asked(path: Path) -> Iterator[str]:
    """First arguments of `.call("name", ...)` and `.submit("name", ...)`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        name = node.args[0]
        if node.func.attr in ("call", "submit") and isinstance(name, ast.Constant):
            yield str(name.value)


def _offered() -> set[str]:
    names = {"ping"}  # the agent's own
    for module in pkgutil.walk_packages(host.__path__, f"{host.__name__}."):
        if not module.name.endswith("__main__"):
            loaded = importlib.import_module(module.name)
            names |= {*getattr(loaded, "OPERATIONS", {}), *getattr(loaded, "STREAMS", {})}
    return names
