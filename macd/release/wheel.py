"""The code that goes into a release: macd's wheel, and app/serve.py, which starts it.

The same code gives the same bytes every time: the wheel's times are fixed, so that two releases of
the same code share it and it is sent once.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from macd.errors import MacdError, UsageError

_EPOCH = "1577836800"  # 2020-01-01: any fixed moment a ZIP archive can hold
_BUILD = "import sys, setuptools.build_meta as backend; backend.build_wheel(sys.argv[1])"
_BUILD_S = 300
LAUNCHER = "serve.py"
# Run as `python -I app/serve.py ...`: nothing of the environment or the current directory gets onto
# sys.path, only the wheel beside it does.
_LAUNCHER = '''"""Start macd's service from the wheel beside this file; made by macd, don't edit."""

import os
import sys

here = os.path.dirname(os.path.realpath(__file__))
wheels = sorted(name for name in os.listdir(here) if name.endswith(".whl"))
if len(wheels) != 1:
    sys.exit("serve.py: one wheel expected in %s, found %s" % (here, wheels or "none"))
sys.path.insert(0, os.path.join(here, wheels[0]))

from {module} import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
'''


@dataclass(frozen=True)
class Code:
    """Which code a release carries. commit: None outside of git; dirty: with changes of its own."""

    version: str
    commit: str | None
    dirty: bool


def build(root: Path) -> tuple[str, bytes]:
    """File name and content of macd's wheel, from the tree at `root`; no network is used.

    Raises:
        UsageError: there is no such tree, or no setuptools.
        MacdError: setuptools fails; its last words are in the message.
    """
    parts = [root / "pyproject.toml", root / "README.md", root / "macd"]
    missing = [path.name for path in parts if not path.exists()]
    if missing:
        raise UsageError(
            f"there is no source of macd in {root}",
            why=f"missing: {', '.join(missing)}",
            hint="--source names a clone of macd, where tasks.py is; without it this one is taken",
        )
    with tempfile.TemporaryDirectory(prefix="macd-wheel-") as temporary:
        source, out = Path(temporary, "source"), Path(temporary, "out")
        _copy([*parts, *root.glob("LICENSE")], source)
        out.mkdir()
        environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
        environment |= {"SOURCE_DATE_EPOCH": _EPOCH, "PYTHONHASHSEED": "0", "LC_ALL": "C.UTF-8"}
        done = subprocess.run(
            [sys.executable, "-c", _BUILD, str(out)],
            cwd=source,
            env=environment,
            capture_output=True,
            text=True,
            timeout=_BUILD_S,
            umask=0o022,  # the modes of what setuptools itself writes stand in the wheel
            check=False,
        )
        made = list(out.glob("macd-*.whl"))
        if done.returncode != 0 or len(made) != 1:
            _explain(done.stderr)
        return made[0].name, made[0].read_bytes()


def launcher(module: str) -> bytes:
    """app/serve.py of a release: it runs the main of that module."""
    return _LAUNCHER.replace("{module}", module).encode()


def code_of(root: Path) -> Code:
    """Version and commit of the tree at `root`; a copy that lies in another clone has no commit."""
    top = _git(root, "rev-parse", "--show-toplevel")
    if not top or Path(top).resolve() != root.resolve():
        return Code(metadata.version("macd"), None, dirty=False)
    commit = _git(root, "rev-parse", "HEAD")
    changed = _git(root, "status", "--porcelain", "--", "macd", "pyproject.toml")
    return Code(metadata.version("macd"), commit or None, bool(changed))


def _copy(parts: list[Path], source: Path) -> None:
    """Only what is code, without the clone's modes and litter."""
    source.mkdir()
    for path in parts:
        if path.is_file():
            _copy_file(path, source / path.name)
        else:
            junk = shutil.ignore_patterns("__pycache__", "*.pyc", ".*", "*.tmp")
            shutil.copytree(path, source / path.name, ignore=junk, copy_function=_copy_file)


def _copy_file(path: Path | str, there: Path | str) -> None:
    shutil.copyfile(path, there)
    Path(there).chmod(0o644)  # files that are no modules keep their mode in the wheel


def _explain(said: str) -> None:
    if "No module named 'setuptools'" in said:
        raise UsageError(
            "macd's wheel can't be built", why="setuptools is not installed", hint="make setup"
        )
    raise MacdError(
        "macd's wheel can't be built",
        why="\n".join(said.strip().splitlines()[-5:]),
        live="no release was made",
        hint="make setup",
    )


def _git(root: Path, *words: str) -> str:
    try:
        done = subprocess.run(
            ["git", *words], cwd=root, capture_output=True, text=True, timeout=30, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
