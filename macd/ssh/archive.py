"""The host half of macd as one archive: how it is built, and how it becomes an agent on a host.

The archive is a zip of macd/host. Its bytes are the same wherever this version builds them, so its
SHA-256 names it. `invoke provision` leaves it on a production host as bin/macd-host.pyz, `invoke
train` on a training host. A session runs that copy where its digest is ours; otherwise the archive
travels on stdin.

The command is one line that bash, dash, zsh, fish and csh all read alike (single quotes, and in
them no quote, no "!", no backslash, no newline; short enough for csh). Every Python since 2.7 can
parse it, so that one too old says so instead of failing in some other way. Everything else travels
on stdin, together with the first request.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import shlex
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from macd.errors import UsageError

OLDEST_PYTHON = "3.11"  # for the agent; training and the service need no older one either
TOO_OLD = "macd-agent: python too old: "
NO_COPY = "macd-agent: no copy "  # the host's archive is another one than the client believed

_WHEN = (1980, 1, 1, 0, 0, 0)
_MAIN = "import sys\nfrom macd.host.rpc import boot\nsys.exit(boot.run(sys.argv[0]))\n"
_MAGIC = "MACD2"
# E, s, S: no PYTHON* variables, no site directories; B: no bytecode. The first entry of sys.path
# would be the home directory, where a stray json.py must not become ours. Stdin is duplicated so
# that the agent can give its children an empty one. See `opening` for what h holds.
_BEFORE = (
    "import sys;"
    "sys.path[:]=[p for p in sys.path if p];"
    "v=sys.version_info;"
    f"v<({OLDEST_PYTHON.replace('.', ',')})and"
    f'(sys.stdout.write("{TOO_OLD}%d.%d "%v[:2]),sys.stdout.flush(),sys.exit(78));'
    "import hashlib,io,os,zipfile,zlib;"
    'f=os.fdopen(os.dup(0),"rb");'
)
# In a terminal: a thread turns the lines that macd/ssh/terminal.py sends into the bytes they stand
# for. With the thread ends its end of the pipe.
_UNQUOTE = (
    "import threading,urllib.parse;"
    "r,w=os.pipe();"
    'threading.Thread(daemon=True,args=(f,os.fdopen(w,"wb")),target=lambda f,w:'
    "[w.write(urllib.parse.unquote_to_bytes(l[:-1]))and w.flush()for l in f]).start();"
    'f=os.fdopen(r,"rb");'
)
_AFTER = (
    'h=f.readline(9999).decode("latin1").split();'
    f'h[:1]==["{_MAGIC}"]or sys.exit("macd-agent: stdin was read by something else");'
    "p=os.path.expanduser(bytes.fromhex(h[4]).decode())if h[4:]else str();"
    "n=int(h[2]);"
    'b=zlib.decompress(f.read(n))if n else open(p,"rb").read()if os.access(p,4)else b"";'
    "n or hashlib.sha256(b).hexdigest()==h[3]or"
    f'(sys.stdout.write("{NO_COPY}"),sys.stdout.flush(),sys.exit(79));'
    'g={"__name__":"boot"};'
    'exec(zipfile.ZipFile(io.BytesIO(b)).read("macd/host/rpc/boot.py"),g);'
    'sys.exit(g["start"](f,h,p,b))'
)


@dataclass(frozen=True)
class HostCopy:
    """The archive that lies at `path` on a host, and what is remembered of it here.

    `memory` is a local file with the digest that the host had when it was last asked. It may be
    wrong: the host compares the digest before it runs the copy.
    """

    path: str
    memory: Path

    def remembered(self) -> str:
        """The digest the copy had; "" where nothing is known of it."""
        with contextlib.suppress(OSError, UnicodeError):
            return self.memory.read_text("ascii").strip()
        return ""

    def remember(self, sha256: str) -> None:
        """Note the digest ("" for no copy). A memory that can't be written only costs bytes."""
        if sha256 != self.remembered():
            with contextlib.suppress(OSError):
                self.memory.parent.mkdir(parents=True, exist_ok=True)
                self.memory.write_text(f"{sha256}\n", "ascii")


def command(python: str = "python3", *, become: str = "", quoted: bool = False) -> str:
    """What to exec on the host; `become` "sudo": as root, where sudo asks no password.

    quoted: its stdin comes as percent-encoded lines, for a terminal.

    Raises UsageError for a `python` no shell could be given safely.
    """
    if not python.strip() or any(not c.isprintable() or c in "\\!" for c in python):
        raise UsageError(
            f"the inventory key `python` is no path of a program: {python!r}",
            hint="give a name on the host's PATH, or an absolute path, or one under ~/",
        )
    home, path = ("~/", python[2:]) if python.startswith("~/") else ("", python)
    as_root = "sudo -n -H " if become == "sudo" else ""
    loader = _BEFORE + _UNQUOTE * quoted + _AFTER
    return f"exec {as_root}{home}{shlex.quote(path)} -EsSBc '{loader}'"


def opening(tag: bytes, copy: str = "", *, travels: bool = True) -> bytes:
    """The first bytes for the host's stdin: one line, then the compressed archive if it `travels`.

    The line holds a magic word, the session's tag, the number of compressed bytes (0: run the
    copy), the archive's SHA-256 and the path of the copy in hexadecimal, if there can be one.
    """
    body = compressed() if travels else b""
    words = (_MAGIC, tag.hex(), str(len(body)), digest(), copy.encode().hex())
    return f"{' '.join(words).strip()}\n".encode() + body


@functools.cache
def build() -> bytes:
    """The archive: all of macd/host, and what it shares with the tool.

    Stored, not deflated: another version of zlib would give other bytes.
    """
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in sorted(_files().items()):
            info = zipfile.ZipInfo(name, _WHEN)
            info.external_attr = 0o644 << 16
            archive.writestr(info, data)
    return out.getvalue()


@functools.cache
def digest() -> str:
    """The SHA-256 of the archive."""
    return hashlib.sha256(build()).hexdigest()


@functools.cache
def compressed() -> bytes:
    """The archive as it travels."""
    return zlib.compress(build(), 6)


def _files() -> dict[str, bytes]:
    macd = resources.files("macd")
    files = {"__main__.py": _MAIN.encode(), "macd/__init__.py": b""}
    files["macd/heads.py"] = macd.joinpath("heads.py").read_bytes()
    return files | dict(_python_files(macd.joinpath("host"), "macd/host"))


def _python_files(directory: Traversable, name: str) -> Iterator[tuple[str, bytes]]:
    for entry in directory.iterdir():
        path = f"{name}/{entry.name}"
        if entry.is_dir():
            yield from _python_files(entry, path)
        elif entry.name.endswith(".py"):
            yield path, entry.read_bytes()
