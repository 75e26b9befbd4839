"""What is installed for a Python, to compare the machines of one training: other versions give
other numbers. Runs alone, too (`python -c` with this file's text), and prints the answer as JSON.
"""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from importlib import metadata

_SHOWN = 8


def software() -> dict[str, str]:
    """Python to the patch, and each installed package's version, on the machine that is asked."""
    packages: dict[str, str] = {}
    for distribution in metadata.distributions():
        if name := distribution.metadata["Name"]:  # the first one on the path is what is imported
            packages.setdefault(str(name).lower().replace("_", "-"), distribution.version)
    # Our own code travels with the run, so whichever version is installed there does not matter.
    packages.pop("macd", None)
    return {"python": platform.python_version(), **packages}


def digest_of(installed: dict[str, str]) -> str:
    """The hash of a package set; equal where every version is."""
    return hashlib.sha256(json.dumps(installed, sort_keys=True).encode()).hexdigest()


def differing(here: dict[str, str], there: dict[str, str], where: str = "here") -> list[str]:
    """What the two have in different versions, or only one has, in words. where: names `here`."""
    names = sorted(here.keys() | there.keys(), key=lambda name: (name != "python", name))
    return [
        f"{name} {there.get(name, 'missing')} ({where} {here.get(name, 'missing')})"
        for name in names
        if here.get(name) != there.get(name)
    ]


def in_short(parts: list[str]) -> str:
    """The first of them, and how many more there are."""
    more = f" and {len(parts) - _SHOWN} more" if len(parts) > _SHOWN else ""
    return ", ".join(parts[:_SHOWN]) + more


if __name__ == "__main__":
    sys.stdout.write("\n" + json.dumps(software()) + "\n")
