"""Turn our own sources into what a bare `python3` on a host needs to become an agent.

The command is one line that bash, dash, zsh, fish and csh all read alike (single quotes, and in
them no quote, no "!", no backslash, no newline; short enough for csh) and that every Python since
2.7 can parse, so that one too old says so instead of failing in some other way. Everything else
travels on stdin, together with the first request.
"""

from __future__ import annotations

import json
import re
import shlex
import zlib
from collections.abc import Iterable
from importlib import resources
from importlib.resources.abc import Traversable

from macd.errors import UsageError

OLDEST_PYTHON = "3.11"  # for the agent; training and the service need no older one either
TOO_OLD = "macd-agent: python too old: "
BASE_MODULES = ("rpc.agent", "rpc.files", "commands", "rpc.blobs", "rpc.facts")

_PREAMBLE = 64
_MAGIC = b"MACD1"
_PACKAGE = "macd.host"
# By pattern, not by parsing: a tenth of a second before the first byte leaves, else.
_IMPORTS = re.compile(
    rf"^[ \t]*from {re.escape(_PACKAGE)}(?:\.([\w.]+))? import (\([^)]*\)|[^\n#]+)", re.MULTILINE
)
# E, s, S: no PYTHON* variables, no site directories; B: no bytecode. The first entry of sys.path
# would be the home directory, where a stray json.py must not become ours. Stdin is duplicated so
# that the agent can give its children an empty one.
_LOADER = (
    "import sys;"
    "sys.path[:]=[p for p in sys.path if p];"
    "v=sys.version_info;"
    f"v<({OLDEST_PYTHON.replace('.', ',')})and"
    f'(sys.stdout.write("{TOO_OLD}%d.%d "%v[:2]),sys.stdout.flush(),sys.exit(78));'
    "import json,os,zlib;"
    'f=os.fdopen(os.dup(0),"rb");'
    f"h=f.read({_PREAMBLE}).split();"
    f'h[:1]==[b"{_MAGIC.decode()}"]or sys.exit("macd-agent: stdin was read by something else");'
    "m=json.loads(zlib.decompress(f.read(int(h[2]))).decode());"
    'g={"__name__":"boot"};'
    'exec(m["macd.host.rpc.boot"],g);'
    'sys.exit(g["start"](f,bytes.fromhex(h[1].decode()),m))'
)


def command(python: str = "python3", *, become: str = "") -> str:
    """What to exec on the host; `become` "sudo": as root, where sudo asks no password.

    Raises UsageError for a `python` no shell could be given safely.
    """
    if not python.strip() or any(not c.isprintable() or c in "\\!" for c in python):
        raise UsageError(
            f"the inventory key `python` is no path of a program: {python!r}",
            hint="give a name on the host's PATH, or an absolute path, or one under ~/",
        )
    home, path = ("~/", python[2:]) if python.startswith("~/") else ("", python)
    as_root = "sudo -n -H " if become == "sudo" else ""
    return f"exec {as_root}{home}{shlex.quote(path)} -EsSBc '{_LOADER}'"


def opening(tag: bytes, modules: Iterable[str] = ()) -> bytes:
    """The first bytes for the host's stdin: preamble and compressed sources. Deterministic."""
    body = zlib.compress(json.dumps(sources(modules), sort_keys=True).encode(), 6)
    preamble = b"%s %s %d" % (_MAGIC, tag.hex().encode(), len(body))
    return preamble.ljust(_PREAMBLE - 1) + b"\n" + body


def sources(modules: Iterable[str] = ()) -> dict[str, str]:
    """Module name -> source of the base modules, `modules`, and all of macd.host they import.

    Raises UsageError for a module that isn't in macd/host.
    """
    shipped = with_imports(["rpc.boot", *BASE_MODULES, *modules])
    found = {"macd": "", _PACKAGE: ""}
    found |= {f"{_PACKAGE}.{name.rpartition('.')[0]}": "" for name in shipped if "." in name}
    return found | {f"{_PACKAGE}.{name}": text for name, text in shipped.items()}


def with_imports(modules: Iterable[str]) -> dict[str, str]:
    """Name -> source of modules of macd/host and of all there that they import."""
    found: dict[str, str] = {}
    waiting = [*modules]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = _source(name)
            waiting += imported(found[name])
    return found


def _source(name: str) -> str:
    try:
        return _path(name).read_text("utf-8")
    except FileNotFoundError as error:
        raise UsageError(f"macd/host has no module {name!r}") from error


def _path(name: str) -> Traversable:
    return resources.files(_PACKAGE).joinpath(f"{name.replace('.', '/')}.py")


def imported(source: str) -> list[str]:
    """Names of the modules of macd.host that `source` imports, at any depth of nesting."""
    names = []
    for package, several in _IMPORTS.findall(source):
        plain = re.sub(r"#.*", "", several).strip("() \n")
        for name in (part.split()[0] for part in plain.split(",") if part.strip()):
            module = f"{package}.{name}" if package else name
            names.append(module if _path(module).is_file() else package)
    return [*dict.fromkeys(names)]
