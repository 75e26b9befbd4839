"""Virtual environments for trainings: one for each content of a requirements file, built once.

environments/<digest>/ is complete when its complete.json is there; that is written last. It is
built in its place, for the programs in bin/ name it in their first line. pip is used as this host
has it configured.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import posixpath
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from macd.host import durable
from macd.host.layout import load, save

COMPLETE = "complete.json"
_KEPT = 3  # of several GB each
_INCLUDES = re.compile(r"\s*(?:-r|--requirement|-c|--constraint)[\s=]*(\S+)")
# The source itself, in a directory that goes with the run.
_LOCAL = re.compile(r"\s*(?:(?:-e|--editable)\b|\.{1,2}(?:/|\s*$|\[)|/|file:|[\w.-]+\s*@\s*file:)")

Reader = Callable[[str], bytes | None]  # what a relative path holds; None where there is nothing


@dataclass(frozen=True)
class Environment:
    """A usable environment. built: by this call."""

    python: str
    digest: str
    built: bool


def requirements(read: Reader, setup: str) -> dict[str, bytes]:
    """A requirements file and those that it includes, by path relative to the source."""
    files: dict[str, bytes] = {}
    waiting = [setup]
    while waiting:
        path = waiting.pop()
        content = None if path in files else read(path)
        if content is None:
            continue
        files[path] = content
        for text in content.decode("utf-8", "replace").splitlines():
            if (included := _INCLUDES.match(text)) and "://" not in included[1]:
                beside = posixpath.join(posixpath.dirname(path), included[1])
                waiting.append(posixpath.normpath(beside))
    return files


def local_lines(files: dict[str, bytes]) -> list[str]:
    """Lines that install from a path: an environment that outlives the run can't hold these."""
    return [
        f"{path}: {text.strip()}"
        for path, content in files.items()
        for text in content.decode("utf-8", "replace").splitlines()
        if _LOCAL.match(text)
    ]


def digest_of(files: dict[str, bytes]) -> str:
    """Names an environment: what is required, and of which Python."""
    contents = sorted((path, hashlib.sha256(data).hexdigest()) for path, data in files.items())
    python = [platform.python_implementation(), platform.python_version(), sys.base_prefix]
    return hashlib.sha256(json.dumps([python, contents]).encode()).hexdigest()


def ensure(work: str, tree: str, setup: str, run: Callable[[list[str]], None]) -> Environment:
    """The environment of `setup`, a path in the tree; it is built where it is not there.

    run: runs a command in the tree, and raises where it fails; then nothing is left here.
    """

    def read(path: str) -> bytes | None:
        return None if path.startswith("..") else durable.regular(os.path.join(tree, path))

    digest = digest_of(requirements(read, setup))
    place = os.path.join(work, "environments")
    directory = os.path.join(place, digest)
    python = os.path.join(directory, "bin", "python")
    durable.make_directories(place)
    with durable.one_at_a_time(os.path.join(place, ".lock")):
        complete = os.path.join(directory, COMPLETE)
        if load(complete, None) is not None and os.path.exists(python):
            os.utime(complete)
            return Environment(python, digest, built=False)
        with _removed_on_failure(directory):
            run([sys.executable, "-m", "venv", directory])
            pip = [python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check"]
            run([*pip, "--progress-bar", "off", "--requirement", setup])
            os.sync()
            save(complete, {"python": platform.python_version(), "at": time.time()})
        _remove_old(place)
    return Environment(python, digest, built=True)


@contextlib.contextmanager
def _removed_on_failure(directory: str) -> Iterator[None]:
    shutil.rmtree(directory, ignore_errors=True)  # of a build that was killed
    try:
        yield
    except BaseException:
        shutil.rmtree(directory, ignore_errors=True)
        raise


def _remove_old(place: str) -> None:
    """Keep those that were used last."""

    def used(name: str) -> float:
        with contextlib.suppress(OSError):
            return os.path.getmtime(os.path.join(place, name, COMPLETE))
        return 0.0

    names = [name for name in os.listdir(place) if not name.startswith(".")]
    for name in sorted(names, key=used)[:-_KEPT]:
        shutil.rmtree(os.path.join(place, name), ignore_errors=True)
