"""What a machine has before macd knows it: units written by hand, and an application's directory.

It looks and changes nothing. Of variables it gives names, never values: those may be secrets. The
same look is taken at the source here and at a host. Standard library alone.
"""

from __future__ import annotations

import ast
import contextlib
import glob
import http.client
import json
import os
import re
import time
from collections.abc import Iterable, Iterator
from typing import Any

from macd.host import durable, envfile, untrusted
from macd.host.processes import Kernel
from macd.host.systemd.supervisor import Supervisor
from macd.host.systemd.unitfile import service_lines

_SKIPPED = {"__pycache__", "node_modules", "site-packages", "releases", "runtimes", "blobs"}
_MOST_FILES = 20_000
_DEEPEST = 6
_MOST_BYTES = 1 << 18  # of a file that is read
_MOST_LINES = 400
_MOST_FIELDS = 80
_MODELS = (".onnx", ".pkl", ".joblib", ".pt", ".pth", ".cbm", ".ubj", ".h5", ".txt", ".json")
_SURELY_MODELS = (".onnx", ".pkl", ".joblib", ".pt", ".pth", ".cbm", ".ubj", ".h5")
_BARS = (".csv", ".parquet", ".feather")
_FIELD = re.compile(r"[A-Za-z_][\w-]{0,99}(\.[A-Za-z_0-9][\w-]{0,99}){0,9}")
_TIME = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d")
_PATH = re.compile(r"[\w.@+-]+(/[\w.@+-]+)+/?")
_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]{2,63}")
_HEALTH = ("/health", "/healthz", "/api/health", "/status")
_REQUIREMENTS = re.compile(r"[\w.-]*require[\w.-]*(\.txt|/[\w.-]+\.txt)")
_PACKAGES = ("poetry.lock", "uv.lock", "pdm.lock", "Pipfile", "environment.yml", "environment.yaml",
             "conda.yml", "pyproject.toml", "setup.cfg", "setup.py")  # fmt: skip
_ANSWER_S = 2
_NOWHERE = "/macd-looks-whether-anything-answers"
_LOGS = re.compile(r"logs?/.*\.log|.*/(logs?|[\w]*results?)/[^/]+\.(log|txt)")


def survey(app: str = "") -> dict[str, Any]:
    """Units written by hand on this host, and the directory `app` ("" : none is looked at).

    Returns {"units": [see `_unit`], "directory": see `directory`, "uid": of the login}.
    """
    units = [unit for scope in ("system", "user") for unit in _units(scope)]
    seen = directory(durable.expand(app)) if app else {}
    return {"units": units, "directory": seen, "uid": os.geteuid()}


def directory(root: str) -> dict[str, Any]:
    """What an application's directory holds, by paths below it.

    Returns requirements, packages (other files that name some), units (path -> text), env (names),
    models and bars (directory -> files), metrics (JSON file -> {name: number}), logs, scripts,
    venv, and directories at the top.
    """
    paths = list(_files(root))
    models = _grouped(path for path in paths if path.endswith(_SURELY_MODELS))
    beside = (path for path in paths if path.endswith(_MODELS) and os.path.dirname(path) in models)
    tops = sorted({path.split("/")[0] for path in paths if "/" in path})
    return {
        "exists": os.path.isdir(root),
        "requirements": [p for p in paths if _REQUIREMENTS.fullmatch(p)],
        "packages": [path for path in _PACKAGES if path in paths],
        "units": {p: _text(root, p) for p in paths if p.endswith(".service")},
        "env": _variables(root, paths),
        "models": _grouped(beside),
        "bars": _grouped(path for path in paths if path.endswith(_BARS)),
        "metrics": dict(_metrics(root, paths, models)),
        "logs": _logs(root, paths),
        "plain_logs": [path for path in paths if _LOGS.fullmatch(path)][:_MOST_FIELDS],
        "scripts": {p: s for p in paths if p.endswith(".py") and (s := _script(root, p))},
        "venv": [top for top in ("venv", ".venv", "env") if os.path.isdir(f"{root}/{top}/bin")],
        "directories": tops,
    }


def _files(root: str) -> Iterator[str]:
    count = 0
    for where, directories, names in os.walk(root):
        below = os.path.relpath(where, root)
        here = "" if below == "." else f"{below}/"
        deep = here.count("/") >= _DEEPEST
        directories[:] = sorted(
            name
            for name in directories
            if not deep
            and name not in _SKIPPED
            and not (name.startswith(".") and name != ".config")
            and not os.path.exists(f"{where}/{name}/pyvenv.cfg")
        )
        for name in sorted(names):
            count += 1
            if count > _MOST_FILES:
                return
            if name.isprintable():
                yield here + name


def _grouped(paths: Iterable[str]) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for path in paths:
        groups.setdefault(os.path.dirname(path), []).append(os.path.basename(path))
    return {name: files for name, files in groups.items() if name}


def _text(root: str, path: str) -> str:
    with contextlib.suppress(OSError):
        raw = durable.regular(os.path.join(root, path), _MOST_BYTES)
        return (raw or b"").decode("utf-8", "replace")
    return ""


def _variables(root: str, paths: list[str]) -> dict[str, list[str]]:
    names = {}
    for path in [path for path in paths if re.search(r"(^|/)(\.env[\w.]*|env\.\w+)$", path)]:
        with contextlib.suppress(envfile.EnvFileError):
            names[path] = sorted(envfile.parse(_text(root, path)))
    return names


def _metrics(
    root: str, paths: list[str], models: dict[str, list[str]]
) -> Iterator[tuple[str, dict[str, float]]]:
    for path in paths:
        if path.endswith(".json") and os.path.dirname(path) in models:
            with contextlib.suppress(ValueError):
                document = json.loads(_text(root, path))
                if isinstance(document, dict):
                    yield path, {k: v for k, v in document.items() if type(v) in (int, float)}


def _logs(root: str, paths: list[str]) -> dict[str, Any]:
    """Glob -> {level: {field: kind}} of the newest file of each group of JSON lines."""
    groups: dict[str, list[str]] = {}
    for path in (path for path in paths if path.endswith((".jsonl", ".ndjson"))):
        head, tail = os.path.split(path)
        groups.setdefault(f"{head}/{re.sub('[0-9][0-9_-]*', '*', tail)}".lstrip("/"), []).append(
            path
        )
    return {pattern: _levels(_newest(root, group)) for pattern, group in groups.items()}


def _newest(root: str, paths: list[str]) -> str:
    def age(path: str) -> float:
        with contextlib.suppress(OSError):
            return os.stat(path).st_mtime
        return 0.0

    return max((os.path.join(root, path) for path in paths), key=age)


def _levels(path: str) -> dict[str, dict[str, str]]:
    levels: dict[str, dict[str, str]] = {}
    for raw in _tail(path):
        with contextlib.suppress(ValueError, RecursionError):
            line = json.loads(raw)
            if isinstance(line, dict):
                fields = levels.setdefault(untrusted.line(line.get("level", ""), 64), {})
                for name, kind in _fields(line, ""):
                    if fields.get(name) in (None, "null") and len(fields) < _MOST_FIELDS:
                        fields[name] = kind
    return levels


def _tail(path: str) -> list[bytes]:
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MOST_BYTES))
            return file.read(_MOST_BYTES).split(b"\n")[-_MOST_LINES:]
    except OSError:
        return []


def _fields(value: dict[str, Any], at: str) -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        name = f"{at}{key}"
        if not _FIELD.fullmatch(name):
            continue
        if isinstance(inner, dict):
            yield from _fields(inner, f"{name}.")
        else:
            yield name, _kind(inner)


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return "probability" if isinstance(value, float) and 0 <= value <= 1 else "number"
    return "time" if isinstance(value, str) and _TIME.match(value) else type(value).__name__


def _script(root: str, path: str) -> dict[str, Any] | None:
    """How a Python file is started and what it writes: options, choices, writes, variables.

    None for one that is no program: neither options nor a __main__ part nor a line that runs.
    """
    text = _text(root, path)
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError):
        return None
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call)]
    words = [n.value for n in ast.walk(tree) if isinstance(n, ast.Constant)]
    texts = {word for word in words if isinstance(word, str) and len(word) < 200}
    compared: dict[str, list[str]] = {
        word: [] for word in texts if re.fullmatch(r"--[a-z][a-z0-9-]+", word)
    }
    runs = any(
        isinstance(n, (ast.If, ast.For, ast.While, ast.Expr, ast.Try)) for n in tree.body[1:]
    )
    return {
        "options": compared | dict(option for call in calls if (option := _option(call))),
        "runs": runs,
        "writes": sorted({place for call in calls if (place := _written(call))}),
        "paths": sorted(word for word in texts if _PATH.fullmatch(word)),
        "health": any(word in _HEALTH for word in texts),
        "variables": sorted({name for node in ast.walk(tree) if (name := _variable(node))}),
        "imports": sorted(_imports(tree)),
    }


def _called(call: ast.Call) -> str:
    return str(getattr(call.func, "attr", getattr(call.func, "id", "")))


def _option(call: ast.Call) -> tuple[str, list[str]] | None:
    """An option of argparse, and its choices."""
    names = [a.value for a in call.args if isinstance(a, ast.Constant)]
    name = next((n for n in names if isinstance(n, str) and n.startswith("--")), "")
    if _called(call) != "add_argument" or not name:
        return None
    choices = next((word.value for word in call.keywords if word.arg == "choices"), None)
    some = choices.elts if isinstance(choices, (ast.List, ast.Tuple)) else []
    return name, [str(each.value) for each in some if isinstance(each, ast.Constant)]


def _written(call: ast.Call) -> str:
    """The directory that a call makes or writes into, where it stands in the text."""
    if not call.args:
        return ""
    first, *rest = call.args
    text = _beginning(first)
    if _called(call) in ("makedirs", "mkdir") and text:
        return text.rstrip("/")
    mode = next((a.value for a in rest if isinstance(a, ast.Constant)), "")
    if _called(call) == "open" and isinstance(mode, str) and mode[:1] in ("w", "a"):
        return os.path.dirname(text)
    return ""


def _variable(node: ast.AST) -> str:
    """The name in os.environ["NAME"], os.environ.get("NAME") and os.getenv("NAME")."""
    if isinstance(node, ast.Subscript):
        where, named = node.value, node.slice
    elif isinstance(node, ast.Call) and node.args:
        where, named = node.func, node.args[0]
    else:
        return ""
    said = _beginning(named) if isinstance(named, ast.expr) else ""
    return said if _VARIABLE.fullmatch(said) and "env" in ast.unparse(where) else ""


def _beginning(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        node = node.values[0] if node.values else node
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _imports(tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def _units(scope: str) -> Iterator[dict[str, Any]]:
    supervisor = Supervisor(scope)
    pattern = os.path.join(glob.escape(supervisor.unit_directory), "*.service")
    for path in sorted(glob.glob(pattern)):
        # A link leads to a package's unit, or is an alias.
        if os.path.isfile(path) and not os.path.islink(path) and "@." not in path:
            with contextlib.suppress(OSError):
                yield _unit(supervisor, path)


def _unit(supervisor: Supervisor, path: str) -> dict[str, Any]:
    """A unit and its process; of Environment= the names alone."""
    name = os.path.basename(path)
    raw = durable.regular(path, _MOST_BYTES) or b""
    process = supervisor.show(name)
    ports = sorted(Kernel().ports(process.pid)) if process.pid else []
    return {
        "unit": name,
        "scope": supervisor.scope,
        "path": path,
        **service_part(raw.decode("utf-8", "replace")),
        "dropins": supervisor.dropins([name]).get(name, []),
        "dropin_variables": _set_by_dropins(supervisor, name),
        "active": process.active,
        "pid": process.pid,
        "ports": ports,
        "health": next((url for port in ports if (url := _answering(port))), ""),
    }


def _set_by_dropins(supervisor: Supervisor, unit: str) -> list[str]:
    names = []
    for dropin in supervisor.dropins([unit]).get(unit, []):
        with contextlib.suppress(OSError):
            text = (durable.regular(dropin["path"], _MOST_BYTES) or b"").decode("utf-8", "replace")
            names += service_part(text)["variables"]
    return names


def service_part(text: str) -> dict[str, Any]:
    """Of a unit's text: command, user, directory, type, env_files, and the names it sets."""
    settings: dict[str, list[str]] = {}
    for key, value in service_lines(text):
        settings.setdefault(key, []).append(value)
    last = {key: untrusted.line(values[-1]) for key, values in settings.items()}
    pairs = " ".join(settings.get("Environment", []))
    return {
        "command": last.get("ExecStart", "").lstrip("-@:+!"),
        "user": last.get("User", ""),
        "directory": last.get("WorkingDirectory", "").lstrip("-").rstrip("/"),
        "type": last.get("Type", ""),
        "env_files": [value.lstrip("-") for value in settings.get("EnvironmentFile", [])],
        "variables": re.findall(r"(?:^|[\s\"'])([A-Za-z_]\w*)=", pairs),
    }


def _answering(port: int) -> str:
    """The first usual address of health on a port that answers with 2xx.

    Who answers so whatever is asked says nothing by a path: then it is the root.
    """
    until = time.monotonic() + _ANSWER_S
    paths = ("/",) if _answers(port, _NOWHERE, until) else (*_HEALTH, "/")
    return next((f"http://127.0.0.1:{port}{p}" for p in paths if _answers(port, p, until)), "")


def _answers(port: int, path: str, until: float) -> bool:
    left = until - time.monotonic()
    if left <= 0:
        return False
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=left)
    try:
        connection.request("GET", path)
        return 200 <= connection.getresponse().status < 300
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
