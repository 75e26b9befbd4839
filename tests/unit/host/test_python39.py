"""macd/host keeps its promise: the standard library only, and no newer Python than 3.9."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

import macd.host

SOURCES = sorted(Path(macd.host.__file__).parent.glob("*.py"))

# What came to the standard library after 3.9 and is easily reached for. An attribute of that name
# on one of our own objects would be a false alarm; then rename it.
NEWER = {
    "pairwise", "batched", "file_digest", "UTC", "StrEnum", "chdir", "bit_count", "aclosing",
    "ExceptionGroup", "BaseExceptionGroup", "add_note", "TaskGroup", "Self", "Never", "TypeAlias",
    "ParamSpec", "assert_never", "override", "hexdigest_file", "walk_up", "orig_argv", "anext",
    "aiter", "process_cpu_count", "EnumType", "getencoding", "setns", "unshare", "splice",
}  # fmt: skip
NEWER_KEYWORDS = {
    "zip": {"strict"},
    "dataclass": {"slots", "kw_only"},
    "format_exception": {"exc"},
    "print_exception": {"exc"},
    "rmtree": {"onexc", "dir_fd"},
    "extractall": {"filter"},  # from 3.9.17, 3.8.17 on only; check hasattr before
    "Popen": {"pipesize", "process_group"},
    "run": {"process_group"},
}
NEWER_MODULES = {"tomllib", "compression", "annotationlib"}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_python_39_can_parse_it(path: Path) -> None:
    ast.parse(path.read_text(), feature_version=(3, 9))


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_it_imports_the_standard_library_and_its_siblings_only(path: Path) -> None:
    allowed = sys.stdlib_module_names - NEWER_MODULES
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "the shipped package knows absolute imports only"
            names = [str(node.module)]
        for name in names:
            assert name.split(".")[0] in allowed or name.startswith("macd.host"), name


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.stem)
def test_it_uses_nothing_newer_than_39(path: Path) -> None:
    text = path.read_text()
    assert "from __future__ import annotations" in text or len(text) < 200
    found = [name for node in ast.walk(ast.parse(text)) for name in newer(node)]
    assert found == []


def newer(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Attribute) and node.attr in NEWER:
        return [node.attr]
    if isinstance(node, ast.ImportFrom):
        return [alias.name for alias in node.names if alias.name in NEWER]
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else ""
        called = node.func.id if isinstance(node.func, ast.Name) else called
        keywords = {word.arg for word in node.keywords}
        return sorted(f"{called}({word}=)" for word in keywords & NEWER_KEYWORDS.get(called, set()))
    return []


def test_the_check_sees_what_it_should() -> None:
    bad = "import itertools\nitertools.pairwise(x)\nzip(a, b, strict=True)\nfrom typing import Self"
    found = [name for node in ast.walk(ast.parse(bad)) for name in newer(node)]
    assert sorted(found) == ["Self", "pairwise", "zip(strict=)"]
