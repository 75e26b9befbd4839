"""Are the packages of a lock installed here, in its versions, and do they import?

Only here: a host that builds a runtime from the lock imports from it by itself, before a switch.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from importlib import metadata

_NEVER_IMPORTED = {"pip", "setuptools"}  # they install; nothing that serves imports them


def wrong_versions(lock: Mapping[str, str]) -> list[str]:
    """What is installed otherwise than the lock says, package by package, in words."""
    wrong = []
    for name, version in sorted(lock.items()):
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            found = "nothing"
        if found.partition("+")[0] != version.partition("+")[0]:
            wrong.append(f"{name} {version} is locked, {found} is installed")
    return wrong


def not_importable(lock: Mapping[str, str]) -> list[str]:
    """The modules of installed packages that raise when they are imported, in words."""
    broken = []
    for name in sorted(set(lock) - _NEVER_IMPORTED):
        for module in _modules(name):
            try:
                importlib.import_module(module)
            except Exception as error:  # a missing shared library is an OSError, and so on
                why = next(iter(f"{error}".splitlines()), type(error).__name__)
                broken.append(f"{name} is installed, but import {module} fails: {why}")
    return broken


def _modules(package: str) -> list[str]:
    """Top-level modules of an installed package; none where its files aren't listed."""
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        return []
    found = {
        file.parts[0].removesuffix(".py")
        for file in files
        if (len(file.parts) == 2 and file.name == "__init__.py")
        or (len(file.parts) == 1 and file.suffix == ".py")
    }
    return sorted(name for name in found if name.isidentifier() and name not in ("tests", "test"))
