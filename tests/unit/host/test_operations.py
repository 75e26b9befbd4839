"""Every operation that this side asks a host for is one in the tables of macd/host/rpc/agent.py."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import pytest

from macd.host.rpc import agent

ROOT = Path(__file__).parents[3] / "macd"


def test_operations_that_are_asked_for_exist() -> None:
    asked = {name: path for path in ROOT.rglob("*.py") for name in _asked(path)}
    assert {"lock", "checkup", "facts"} <= set(asked)
    unknown = set(asked) - {*agent.OPERATIONS, *agent.STREAMS}
    assert unknown == set(), [f"{asked[name].name} asks for {name}" for name in sorted(unknown)]


def _asked(path: Path) -> Iterator[str]:
    """First arguments of `.call("name", ...)` and `.submit("name", ...)`."""
    for node in ast.walk(ast.parse(path.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args):
            continue
        name = node.args[0]
        if node.func.attr in ("call", "submit") and isinstance(name, ast.Constant):
            yield str(name.value)


@pytest.mark.parametrize("path", [*agent.OPERATIONS.values(), *agent.STREAMS.values()])
def test_each_entry_leads_to_a_function(path: str) -> None:
    module, _, function = path.rpartition(".")
    assert callable(getattr(importlib.import_module(f"macd.host.{module}"), function))
