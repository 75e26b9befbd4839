"""Wheels fetched once a machine and shared by all tests that make releases with real locks.

The second run of the tests finds them here and asks no package index.
"""

from __future__ import annotations

import os
import re
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

import pytest


def share(state: Path) -> None:
    """Make the shared wheelhouse that of the inventory whose state lies in `state`."""
    state.mkdir(parents=True, exist_ok=True)
    (state / "wheelhouse").symlink_to(wheelhouse())


def wheelhouse() -> Path:
    """The shared directory, made if missing."""
    made = Path(tempfile.gettempdir()) / f"macd-wheelhouse-{os.getuid()}"
    made.mkdir(mode=0o700, exist_ok=True)
    return made


def none_to_be_had(why: str) -> None:
    """Skip where nobody has fetched them and no index is in reach; in CI that is a failure."""
    told = f"no package index can be reached, and nothing is cached: {why}"
    if os.environ.get("CI", "").lower() in ("1", "true"):
        pytest.fail(told, pytrace=False)
    pytest.skip(told)


def put(
    shelf: Path,
    name: str,
    version: str,
    *,
    needs: tuple[str, ...] = (),
    tag: str = "py3-none-any",
    modules: Mapping[str, str] | None = None,
) -> Path:
    """Write a tiny wheel into a directory that pip takes packages from.

    needs: other packages, with markers. modules: file name -> its text.
    """
    stem = f"{name.lower().replace('-', '_')}-{version}"
    info = f"{stem}.dist-info"
    extras = {named for need in needs for named in re.findall(r'extra == "(\w+)"', need)}
    required = "".join(f"Provides-Extra: {extra}\n" for extra in sorted(extras))
    required += "".join(f"Requires-Dist: {need}\n" for need in needs)
    members = {
        **(modules or {}),
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n{required}",
        f"{info}/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n",
    }
    recorded = [*members, f"{info}/RECORD"]
    members[f"{info}/RECORD"] = "".join(f"{one},,\n" for one in recorded)
    shelf.mkdir(parents=True, exist_ok=True)
    path = shelf / f"{stem}-{tag}.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for member, text in members.items():
            archive.writestr(zipfile.ZipInfo(member, (2026, 1, 1, 0, 0, 0)), text)
    return path
