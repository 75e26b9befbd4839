"""Every command and file that the README and the guides name is really there."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tasks import namespace

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]
_COMMAND = re.compile(r"invoke (?:--help )?([a-z][a-z-]*(?:\.[a-z]+)?)\b")
_WITH_OPTIONS = re.compile(r"invoke ([a-z][a-z-]*(?:\.[a-z]+)?)((?: [^\n`;#&|]*)?)")
_LINK = re.compile(r"\]\(([^)#:]+)(?:#[^)]*)?\)")


@pytest.fixture(scope="module")
def tasks() -> set[str]:
    invoke = Path(sys.executable).with_name("invoke")
    told = subprocess.run(
        [invoke, "--list", "--list-format", "flat"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    names = set(re.findall(r"^  ([a-z][a-z.-]+)", told, re.MULTILINE))
    return names | {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_that_are_named_exist(page: Path, tasks: set[str]) -> None:
    code = re.findall(r"`([^`\n]+)`|^    (.+)$", page.read_text(), re.MULTILINE)
    named = {name for pair in code for name in _COMMAND.findall(" ".join(pair))}
    assert named <= tasks, f"{page.name} names {sorted(named - tasks)}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_linked_exist(page: Path) -> None:
    for target in _LINK.findall(page.read_text()):
        assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_options_that_are_named_exist(page: Path, tasks: set[str]) -> None:
    for command, rest in _WITH_OPTIONS.findall(page.read_text()):
        given = set(re.findall(r"--([a-z][a-z-]*)", rest)) - {"help", "list"}
        if given and command in tasks:
            known = {word for one in namespace[command].get_arguments() for word in one.names}
            assert given <= known, f"{page.name}: invoke {command} --{min(given - known)}"


def test_every_room_is_in_the_picture_and_has_its_paragraph() -> None:
    inits = {path.parent.name for path in (ROOT / "macd").glob("*/__init__.py")}
    rooms = inits | {path.stem for path in (ROOT / "macd").glob("*.py")} - {"__init__"}
    drawn = (ROOT / "docs/architecture.svg").read_text()
    told = (ROOT / "docs/architecture.md").read_text()
    assert {room for room in rooms if f'class="b">{room}<' not in drawn} == set()
    assert {room for room in rooms if f"\n**{room}** (`macd/{room}" not in told} == set()
