"""The first module a host runs: makes the archive of macd/host importable, and starts the agent.

The archive is held in memory. Nothing is written to disk, unless provision asks for the compiled
code. It then lies beside the copy of the archive, so that later agents, activations and guards need
not compile.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import os
import sys
import zipfile
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any


class ArchiveImporter:
    """An importer over an archive in memory (finder and loader in one)."""

    def __init__(self, archive: bytes, codes: dict[str, bytes]) -> None:
        self._archive = zipfile.ZipFile(io.BytesIO(archive))
        self._paths = set(self._archive.namelist())
        self._codes = codes

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        path_in_archive = self._find(name)
        if not path_in_archive:
            return None
        is_package = path_in_archive.endswith("/__init__.py")
        return ModuleSpec(name, self, origin=_shown(path_in_archive), is_package=is_package)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        origin = _shown(self._find(module.__name__))
        compiled = self._codes.get(origin)
        code: CodeType = (
            marshal.loads(compiled)  # noqa: S302 - see the check of its owner
            if compiled
            else _compile(origin, self.get_source(module.__name__))
        )
        exec(code, module.__dict__)  # noqa: S102 - our own sources

    def get_source(self, name: str) -> str:
        """For linecache, so that tracebacks from a host show the line."""
        return self._archive.read(self._find(name)).decode()

    def _find(self, name: str) -> str:
        """The path of a module in the archive, "" where it has none."""
        stem = name.replace(".", "/")
        return next((p for p in (f"{stem}.py", f"{stem}/__init__.py") if p in self._paths), "")


def start(stdin: Any, header: list[str], copy: str, archive: bytes) -> int:
    """Install the archive and serve requests until stdin ends; returns the exit status.

    Args:
        header: the words of the client's first line (see `opening` in macd/ssh/archive.py).
        copy: where provision leaves the archive on this host; "" where it leaves none.
    """
    sys.dont_write_bytecode = True
    sha256 = header[3]
    codes = read_compiled(copy, sha256) if copy else {}
    sys.meta_path.insert(0, ArchiveImporter(archive, codes))
    from macd.host.rpc import agent  # noqa: PLC0415 - importable only from here on

    is_copy = header[2] == "0"
    return agent.serve(stdin, bytes.fromhex(header[1]), sha256 if is_copy else _sha256_of(copy))


def run(copy: str) -> int:
    """What `python macd-host.pyz` does: act with nobody connected; returns the exit status."""
    with open(copy, "rb") as file:
        archive = file.read()
    codes = read_compiled(copy, hashlib.sha256(archive).hexdigest())
    sys.meta_path.insert(0, ArchiveImporter(archive, codes))
    from macd.host.__main__ import main  # noqa: PLC0415 - importable only from here on

    return main()


def compile_beside(copy: str) -> None:
    """Write the compiled code of the archive at `copy` beside it, unless it is there already."""
    from macd.host import durable  # noqa: PLC0415 - importable only once the archive is installed

    with open(copy, "rb") as file:
        data = file.read()
    sha256 = hashlib.sha256(data).hexdigest()
    if read_compiled(copy, sha256):
        return
    codes = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for name in archive.namelist():
            code = _compile(_shown(name), archive.read(name).decode())
            codes[_shown(name)] = marshal.dumps(code)  # each apart: an agent loads what it uses
    body = marshal.dumps(codes)
    durable.replace_file(_compiled_path(copy), _compiled_head(sha256, body) + body)


def read_compiled(copy: str, sha256: str) -> dict[str, bytes]:
    """Compiled code of the archive `sha256`; empty where this Python can't use what is there.

    Only code that this user or root wrote is used, as for any program.
    """
    try:
        with open(_compiled_path(copy), "rb") as file:
            status = os.fstat(file.fileno())
            if status.st_uid not in (0, os.geteuid()) or status.st_mode & 0o022:
                return {}
            head, body = file.readline(1000), file.read()
    except OSError:
        return {}
    if head != _compiled_head(sha256, body):
        return {}
    codes: dict[str, bytes] = marshal.loads(body)  # noqa: S302 - see the check of its owner
    return codes


def _compiled_path(copy: str) -> str:
    return f"{copy.removesuffix('.pyz')}.{sys.implementation.cache_tag}.code"


def _compiled_head(sha256: str, body: bytes) -> bytes:
    magic = importlib.util.MAGIC_NUMBER.hex()
    return f"{sha256} {magic} {hashlib.sha256(body).hexdigest()}\n".encode()


def _compile(origin: str, source: str) -> CodeType:
    return compile(source, origin, "exec", dont_inherit=True)


def _shown(place: str) -> str:
    return f"<macd-host>/{place}"


def _sha256_of(path: str) -> str:
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return ""
