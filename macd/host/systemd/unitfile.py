"""What a unit file says, as far as macd reads it: the lines of its [Service]. Pure.

Words that macd writes into units are quoted here. Changing one assignment of a drop-in, and no
other byte, is flag/dropin.py's.
"""

from __future__ import annotations

import re
from collections.abc import Iterator


def service_lines(text: str) -> Iterator[tuple[str, str]]:
    """Name and value of each line of [Service], in order; continued lines are one."""
    section = ""
    for line in text.replace("\\\n", " ").splitlines():
        row = line.strip()
        if row.startswith("["):
            section = row
        elif section == "[Service]" and "=" in row and row[0] not in "#;":
            name, _, value = row.partition("=")
            yield name.strip(), value.strip()


def unit_word(word: str) -> str:
    """A word of a command or of a list of paths, as systemd takes it literally."""
    word = _escaped(word).replace("$", "$$")
    return word if re.fullmatch(r"[\w%$./:=@+,-]+", word) else f'"{word}"'


def assignment(name: str, value: str) -> str:
    """NAME=VALUE as Environment= takes it literally: there $ means itself."""
    return f'"{_escaped(f"{name}={value}")}"'


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("%", "%%")
