"""Read YAML so that each problem has its line: duplicate keys, odd keys, ${VAR} unset.

Knows nothing of inventories: it returns plain values, and the line of each.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import yaml

KeyPath = tuple[str | int, ...]

_VARIABLE = re.compile(r"\$(?P<escaped>\$\{)|\$\{(?P<name>[^}]*)\}|\$\{(?P<open>.*)$", re.DOTALL)
_IDENTIFIER = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_DEEPEST = 12  # an inventory has five levels; an alias that contains itself has no end


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file: where, what was expected and what stands there."""

    key: KeyPath
    expected: str
    found: str
    line: int | None = None

    def text(self) -> str:
        """Two lines for people: the place, then expected and found."""
        name = ".".join(str(part) for part in self.key) or "the file"
        place = f"line {self.line}: {name}" if self.line else name
        return f"{place}\n  expected {self.expected}\n  found {self.found}"


@dataclass
class Document:
    """Plain values of a file, the line of each key path, and the texts that held a ${VAR}."""

    data: Any = None
    lines: dict[KeyPath, int] = field(default_factory=dict)
    templates: dict[KeyPath, str] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def line(self, key: KeyPath) -> int | None:
        """The line of a key, or of the nearest one above it that exists."""
        for end in range(len(key), 0, -1):
            if key[:end] in self.lines:
                return self.lines[key[:end]]
        return None


def read_document(text: str, environment: Mapping[str, str]) -> Document:
    """Parse one YAML document; ${NAME} comes from `environment`, $${ stands for a plain ${.

    Problems are collected in the result. A value whose variable is unset becomes None.
    """
    document = Document()
    loader = yaml.SafeLoader(text)
    try:
        node = loader.get_single_node()
        if node is not None:
            document.data = _Reader(loader, environment, document).value(node, ())
    except yaml.YAMLError as error:
        document.problems = [_syntax_problem(error)]
    finally:
        loader.dispose()
    return document


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    mark = getattr(error, "problem_mark", None)
    said = getattr(error, "problem", None) or " ".join(str(error).split())
    column = f" at column {mark.column + 1}" if mark else ""
    return Problem((), "YAML", f"{said}{column}", mark.line + 1 if mark else None)


class _Reader:
    def __init__(
        self, loader: yaml.SafeLoader, environment: Mapping[str, str], document: Document
    ) -> None:
        self._loader = loader
        self._environment = environment
        self._document = document

    def value(self, node: yaml.Node, key: KeyPath) -> Any:
        if len(key) > _DEEPEST:
            self._report(node, key[:4], "at most a few levels", "an alias that contains itself")
            return None
        if isinstance(node, yaml.MappingNode):
            return self._mapping(node, key)
        if isinstance(node, yaml.SequenceNode):
            return [self._at(child, (*key, i)) for i, child in enumerate(node.value)]
        made = self._loader.construct_object(node)
        return self._substituted(node, key, made) if isinstance(made, str) else made

    def _at(self, node: yaml.Node, key: KeyPath) -> Any:
        self._document.lines[key] = node.start_mark.line + 1
        return self.value(node, key)

    def _mapping(self, node: yaml.MappingNode, key: KeyPath) -> dict[str, Any]:
        made: dict[str, Any] = {}
        for name_node, child in node.value:
            name = name_node.value
            if not isinstance(name_node, yaml.ScalarNode) or not name_node.tag.endswith(":str"):
                self._report(name_node, key, "keys that are text (quote it)", repr(name))
                continue
            here = (*key, name)
            if name in made:
                first = self._document.lines[here]
                self._report(name_node, here, "each key once", f"it again, after line {first}")
                continue
            made[name] = None
            self._document.lines[here] = name_node.start_mark.line + 1
            made[name] = self.value(child, here)
        return made

    def _substituted(self, node: yaml.Node, key: KeyPath, text: str) -> str | None:
        missing: list[str] = []

        def put(match: re.Match[str]) -> str:
            if match["escaped"]:
                return "${"
            name = match["name"]
            if name is None or not _IDENTIFIER.fullmatch(name):
                missing.append("${NAME} with a variable's name")
                return ""
            if name not in self._environment:
                missing.append(f"the environment variable {name}")
            return self._environment.get(name, "")

        made = _VARIABLE.sub(put, text)
        if made != text:
            self._document.templates[key] = text
        for wanted in missing:
            unset = f"{text}, but it is not set" if wanted.startswith("the env") else repr(text)
            self._report(node, key, wanted, unset)
        return None if missing else made

    def _report(self, node: yaml.Node, key: KeyPath, expected: str, actual: str) -> None:
        line = node.start_mark.line + 1
        self._document.problems.append(Problem(key, expected, actual, line))
