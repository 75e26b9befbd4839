"""Cover secrets in a text that is shown: settings, units, flags files, diffs of them.

Better a harmless value covered than a secret shown. What follows a name that suggests a secret is
covered to the end of its line, and in the lines that continue the value.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Container, Mapping

COVER = "••••"
_WORDS = r"KEY|SECRET|TOKEN|PASS|PWD|CRED|WEBHOOK|AUTHORIZATION|BEARER"
# NAME=value and "name": value anywhere in a line, --name value, Bearer value.
_NAMED = re.compile(
    rf"""[\w.-]*(?:{_WORDS})[\w.-]*["']?\s*[=:]|-[\w-]*(?:{_WORDS})[\w-]*\s|\bBEARER\s""",
    re.IGNORECASE,
)
_ENVIRONMENT = re.compile(r"\s*Environment\s*=")
_NUMBER = re.compile(r"\w+=\d{1,2}\Z")
_LOGIN = re.compile(r"://[^\s\"']*@")
_QUOTED = re.compile(r'"(?:\\.|[^"\\])*"')


def masked(text: str) -> str:
    """The same lines with secrets covered: named ones, logins in URLs, Environment= of units."""
    return "".join(f"{line}\n" for line in masked_lines(text))


def masked_lines(text: str) -> list[str]:
    """As `masked`, one for each line of text.splitlines()."""
    shown: list[str] = []
    depth, continues = 0, False
    for line in text.splitlines():
        if depth or continues:
            shown.append(COVER)
            depth = max(0, depth + _opened(line))
            continues = line.endswith("\\") or (continues and not line.strip())
            continue
        if _ENVIRONMENT.match(line):
            shown.append(_of_unit(line))
            continues = line.endswith("\\")
            continue
        named = _NAMED.search(line)
        if named is None:
            shown.append(without_login(line))
            continue
        value = line[named.end() :]
        shown.append(without_login(line[: named.end()]) + COVER)
        is_json = named[0].endswith(":")
        depth = max(0, _opened(value)) if is_json else 0
        continues = line.endswith("\\") or (is_json and not value.strip())
    return shown


def hidden(
    before: Mapping[str, str], changes: Mapping[str, str], shown: Container[str]
) -> list[str]:
    """The variables of a flags file whose change is not shown: all but those in `shown`."""
    return [
        key
        for key, value in changes.items()
        if key in before and before[key] != value and key not in shown
    ]


def _of_unit(line: str) -> str:
    """The names alone of a unit's Environment=; a number of two digits is no secret."""
    head, _, rest = line.partition("=")
    try:
        words = shlex.split(rest.rstrip("\\"))
    except ValueError:
        return f"{head}={COVER}"
    covered = [
        word if _NUMBER.match(word) else f"{word.partition('=')[0]}={COVER}"
        for word in words
        if "=" in word
    ]
    return f"{head}={' '.join(covered)}"


def without_login(line: str) -> str:
    """The same line with logins in URLs covered."""
    return _LOGIN.sub(f"://{COVER}@", line)


def _opened(line: str) -> int:
    """The number of JSON brackets that it leaves open, outside of strings."""
    bare = _QUOTED.sub("", line)
    return sum((character in "[{") - (character in "]}") for character in bare)
