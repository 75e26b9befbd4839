"""Every command and file that the README, the guides and our own messages name is really there."""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from inspect import cleandoc
from pathlib import Path

import pytest

from macd.inventory.models import Inventory
from tasks import namespace
from tests.support import commands

ROOT = Path(__file__).parents[2]
PAGES = {
    path.relative_to(ROOT): path.read_text()
    for path in (
        *(ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")),
        ROOT / "data/sample/README.md",
        *sorted((ROOT / "docs").rglob("*.md")),
    )
}
SOURCES = sorted((ROOT / "macd").rglob("*.py"))
MODULES = {
    path.name for name in ("macd", "tests", "benchmarks") for path in (ROOT / name).rglob("*.py")
}
MODULES.add("tasks.py")
_COMMAND = re.compile(r"invoke (?:--help )?([a-z][a-z-]*(?:\.[a-z]+)?)\b")
_WITH_OPTIONS = re.compile(r"invoke ([a-z][a-z-]*(?:\.[a-z]+)?)((?: [^\n`;#&|]*)?)")
_SPAN = re.compile(r"`([^`\n]+)`")
_OURS = re.compile(r"(?:macd|tests|docs|benchmarks|templates|inventory)/[^\s:]*")
_MODULE = re.compile(r"[a-z_]+\.py\b")
_WITH_NAMES = re.compile(r"`(macd/[\w/]+\.py)`\s+\(((?:`[A-Za-z_][\w.]*`(?:,\s+)?)+)")
_NOT_OURS = {"serve.py"}  # of a release
_VERB = re.compile(r"([a-z]+)\.[a-z]+")
_MAKE = re.compile(r"(?:`|^    )make ([a-z][a-z-]*)", re.MULTILINE)
# Fields of the service's log lines, which `data.` begins as it does commands.
_LOGGED = {"data.components", "data.event"}
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def tasks() -> set[str]:
    listing = commands.run(ROOT, "--list", "--list-format", "flat").stdout
    names = set(re.findall(r"^  ([a-z][a-z.-]+)", listing, re.MULTILINE))
    return names | {name.partition(".")[0] for name in names}


def test_commands_that_are_named_exist(tasks: set[str]) -> None:
    gone = []
    for page, text in PAGES.items():
        code = re.findall(r"`([^`\n]+)`|^    (.+)$", text, re.MULTILINE)
        named = {name for pair in code for name in _COMMAND.findall(" ".join(pair))}
        gone += [f"{page} names {name}" for name in named - tasks]
    assert gone == []


def test_bare_verbs_exist(tasks: set[str]) -> None:
    """`noun.verb` is a command, or a key of the inventory."""
    nouns = {name.partition(".")[0] for name in tasks if "." in name}
    gone = []
    for page, text in PAGES.items():
        named = {
            match[0]
            for span in _SPAN.findall(text)
            if (match := _VERB.fullmatch(span)) and match[1] in nouns
        }
        unknown = [name for name in named - tasks - _LOGGED if not _is_key(name)]
        gone += [f"{page} names {name}" for name in unknown]
    assert gone == []


def _is_key(name: str) -> bool:
    section, _, key = name.partition(".")
    field = Inventory.model_fields.get(section)
    return field is not None and key in getattr(field.annotation, "model_fields", {})


def test_targets_of_make_exist() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {(page, name) for page, text in PAGES.items() for name in _MAKE.findall(text)}
    assert named
    assert [one for one in named if one[1] not in targets] == []


def test_paths_that_are_named_exist() -> None:
    named = [(page, match[0]) for page, match in _spans(_OURS)]
    assert named
    assert [one for one in named if not any(ROOT.glob(one[1].rstrip("/")))] == []


def test_modules_that_are_named_without_their_room_exist() -> None:
    named = [(page, match[0]) for page, match in _spans(_MODULE)]
    assert named
    assert [one for one in named if one[1] not in MODULES | _NOT_OURS] == []


def _spans(shape: re.Pattern[str]) -> Iterator[tuple[Path, re.Match[str]]]:
    """What stands between backticks and begins so, with its page."""
    for page, text in PAGES.items():
        for span in _SPAN.findall(text):
            if match := shape.match(span):
                yield page, match


def test_what_a_file_is_named_for_is_defined_there() -> None:
    """`macd/deploy/apply.py` (`deploy`), `macd/host/deploy/activation.py` (`Activation.go`)."""
    named = [
        (page, path, name)
        for page, text in PAGES.items()
        for path, names in _WITH_NAMES.findall(text)
        for name in _SPAN.findall(names)
    ]
    assert named
    assert [one for one in named if one[2] not in _defined(ROOT / one[1])] == []


def test_a_name_that_is_not_defined_is_found() -> None:
    assert {"Activation.go", "confirm"} <= _defined(ROOT / "macd/host/deploy/activation.py")
    assert "go" not in _defined(ROOT / "macd/host/deploy/activation.py")
    text = "`macd/errors.py` (`MacdError`,\n`Gone`) and `macd/errors.py` (`macd/sizes.py`)"
    assert _WITH_NAMES.findall(text) == [("macd/errors.py", "`MacdError`,\n`Gone`")]


@functools.cache
def _defined(source: Path) -> set[str]:
    """Functions, classes, constants of a module, and the members of its classes as Class.member."""
    body = ast.parse(source.read_text()).body
    members = [
        f"{node.name}.{name}"
        for node in body
        if isinstance(node, ast.ClassDef)
        for name in _bound(node.body)
    ]
    return {*_bound(body), *members}


def _bound(body: list[ast.stmt]) -> list[str]:
    names = []
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.append(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names += [target.id for target in targets if isinstance(target, ast.Name)]
    return names


def test_files_that_are_linked_exist() -> None:
    links = [(page, target) for page, text in PAGES.items() for target in _LINK.findall(text)]
    assert links
    assert [one for one in links if not (ROOT / one[0].parent / one[1]).exists()] == []


def test_options_that_are_named_exist(tasks: set[str]) -> None:
    unknown = {page: _unknown_options(text, tasks) for page, text in PAGES.items()}
    assert {page: options for page, options in unknown.items() if options} == {}


def _unknown_options(text: str, tasks: set[str]) -> list[str]:
    unknown = []
    for command, rest in _WITH_OPTIONS.findall(text):
        given = set(re.findall(r"--([a-z][a-z-]*)", rest)) - {"help", "list"}
        if given and command in tasks:
            known = {word for one in namespace[command].get_arguments() for word in one.names}
            unknown += [f"invoke {command} --{option}" for option in sorted(given - known)]
    return unknown


def test_what_our_messages_name_exists(tasks: set[str]) -> None:
    unknown = []
    for source in SOURCES:
        for text in _strings(source):
            gone = [f"invoke {name}" for name in set(_COMMAND.findall(text)) - tasks]
            unknown += [(source.name, name) for name in gone + _unknown_options(text, tasks)]
    assert unknown == []


def _strings(source: Path) -> list[str]:
    """Every string as it will be read: parts joined, {values} as …, docstrings left out."""
    tree = ast.parse(source.read_text())
    inner = {
        id(part)
        for node in ast.walk(tree)
        if isinstance(node, ast.JoinedStr)
        for part in node.values
    }
    inner |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    strings = []
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            strings.append("".join(_text(part) for part in node.values))
        elif id(node) not in inner:
            strings.append(_text(node))
    return strings


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return "…" if isinstance(node, ast.FormattedValue) else ""


def test_every_room_is_in_the_picture_and_has_its_paragraph() -> None:
    """The rooms are the packages and modules of macd/, and the packages of macd/app."""
    packages = [*(ROOT / "macd").glob("*/__init__.py"), *(ROOT / "macd/app").glob("*/__init__.py")]
    rooms = {str(path.parent.relative_to(ROOT / "macd")) for path in packages} - {"app"}
    rooms |= {path.stem for path in (ROOT / "macd").glob("*.py")} - {"__init__"}
    picture = (ROOT / "docs/architecture.svg").read_text()
    page = (ROOT / "docs/architecture.md").read_text()
    drawn = {room for room in rooms if f'class="b">{room.removeprefix("app/")}<' in picture}
    assert rooms - drawn == set()
    assert {room for room in rooms if f"\n**{room}** (`macd/{room}" not in page} == set()


def test_each_command_is_explained_in_lines_of_a_terminal() -> None:
    """`invoke --help` indents the text by two and breaks none of its lines."""
    explanations = {name: namespace[name].__doc__ or "" for name in namespace.task_names}
    assert all(explanations.values())
    long = [
        line
        for text in explanations.values()
        for line in cleandoc(text).splitlines()
        if len(line) > 78
    ]
    assert long == []
