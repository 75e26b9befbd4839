"""Find an inventory file, read it and report every problem in it at once."""

from __future__ import annotations

import os
import re
import types
import typing
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from macd.errors import UsageError
from macd.inventory.document import Document, KeyPath, Problem, read_document
from macd.inventory.models import Host, Inventory
from macd.inventory.names import DeeperError, unknown_name

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
_OURS = ("name", "path", "root")  # fields that come from where the file lies, not from the file
_SHOWN_AT_MOST = 80
_VARIABLES = (("service", "env"), ("app", "serve", "env"), ("app", "train", "env"))


def project_root() -> Path:
    """The project's directory: MACD_ROOT, or the nearest one upwards that holds tasks.py."""
    given = os.environ.get("MACD_ROOT")
    if given:
        return Path(given).absolute()
    here = Path.cwd()
    for directory in (here, *here.parents):
        if (directory / "tasks.py").is_file():
            return directory
    raise UsageError(
        f"{here} is not inside the project",
        why="neither it nor a directory above it holds tasks.py",
        hint="cd to the project, or set MACD_ROOT to its directory",
    )


def available(root: Path) -> list[str]:
    """Names of the inventories in `root`, the examples included."""
    return sorted(path.stem for path in (root / "inventory").glob("*.yml"))


def load(name: str = "", *, root: Path | None = None) -> Inventory:
    """Read inventory/NAME.yml ("" is MACD_INVENTORY, or lab).

    Raises UsageError for a file that isn't there, or with every problem in it.
    """
    root = root or project_root()
    name = name or os.environ.get("MACD_INVENTORY") or "lab"
    path = root / "inventory" / f"{name}.yml"
    return parsed(_read(path, name, root), name=name, root=root)


def parsed(text: str, *, name: str, root: Path) -> Inventory:
    """What inventory/NAME.yml would be with this text. Raises UsageError as `load` does."""
    path = root / "inventory" / f"{name}.yml"
    document = read_document(text, os.environ)
    problems, inventory = _validate(document, name, path, root)
    if inventory is None or problems:
        problems.sort(key=lambda p: (p.line or 0, [str(part) for part in p.key]))
        count = f"{len(problems)} problem{'s' if len(problems) != 1 else ''}"
        raise UsageError(
            f"{count} in {_shown(path, root)}",
            why="\n".join(problem.text() for problem in problems),
            hint=_remedy(problems, name),
        )
    return inventory


def revoked(inventory: Inventory) -> Path | None:
    """The OpenSSH key revocation list; None where the inventory names none.

    Raises:
        UsageError: it is named and can't be read: silence would let every revoked key in again.
    """
    path = inventory.release.revoked
    if path is None:
        return None
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise UsageError(
            f"the list of revoked keys can't be read: {path}",
            why=f"release.revoked in {inventory.path} names it: {error.strerror}",
            live="nothing was changed",
            hint="put it there (ssh-keygen -k -f FILE KEY.pub makes one), or take the line out",
        ) from error


def _read(path: Path, name: str, root: Path) -> str:
    names = available(root)
    if not _NAME.fullmatch(name) or not path.is_file():
        usual = [stem for stem in names if not stem.endswith(".example")]
        hint = (
            f"invoke host.list --inventory {usual[0] if usual else 'NAME'}, or set MACD_INVENTORY"
        )
        if name == "production" and "production.example" in names:
            hint = (
                "cp inventory/production.example.yml inventory/production.yml, and edit it;"
                " then: invoke host.list --inventory production"
            )
        raise UsageError(
            f"there is no inventory {name!r}",
            why=f"{_shown(path.parent, root)} has: {', '.join(names) or 'no .yml file'}",
            hint=hint,
        )
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{_shown(path, root)} can't be read", why=str(error)) from error


def _remedy(problems: list[Problem], name: str) -> str:
    """What to type; unset variables are what a newcomer meets first."""
    before = "the environment variable "
    wanted = [p.expected.removeprefix(before) for p in problems if p.expected.startswith(before)]
    unset = " ".join(f"{variable}=..." for variable in dict.fromkeys(wanted))
    steps = [f"export {unset}  (or take out the lines that name them)"] if unset else []
    others = [problem for problem in problems if not problem.expected.startswith(before)]
    own = [problem for problem in others if problem.key[:1] == ("app",)]
    examples = [
        *(["inventory/own-app.example.yml documents every key of app:"] if own else []),
        *(["inventory/production.example.yml documents every key"] if others != own else []),
    ]
    steps += examples
    return "\n".join([*steps, f"then: invoke host.list --inventory {name}"])


def _shown(path: Path, root: Path) -> Path:
    return path.relative_to(root) if path.is_relative_to(root) else path


def _validate(
    document: Document, name: str, path: Path, root: Path
) -> tuple[list[Problem], Inventory | None]:
    problems = list(document.problems)
    data = document.data
    if not isinstance(data, dict):
        if not problems:
            problems.append(Problem((), "keys such as hosts: and train:", _actual(data)))
        return problems, None
    problems += _reserved(document, data) + list(_jump_problems(document, data))
    hosts = data.get("hosts")
    if isinstance(hosts, dict):
        named = {k: {**v, "name": k} if isinstance(v, dict) else v for k, v in hosts.items()}
        data = {**data, "hosts": named}
    data = {"known_hosts": f"known_hosts.{name}", "train": {}, **data}
    if isinstance(data["train"], dict):
        data["train"] = {"data_dir": "../data", **data["train"]}
    data |= {"name": name, "path": path, "root": root}
    reported = {problem.key for problem in problems}
    try:
        return problems, Inventory.model_validate(data, context={"base": path.parent})
    except ValidationError as error:
        for made in _translated(error, document):
            if made.key not in reported:
                problems.append(made)
        return problems, None


def _reserved(document: Document, data: dict[str, Any]) -> list[Problem]:
    """Keys that the models have but that a file may not set."""
    places: list[KeyPath] = [(key,) for key in _OURS if key in data]
    hosts = data.get("hosts")
    if isinstance(hosts, dict):
        places += [("hosts", k, "name") for k, v in hosts.items() if _has(v, "name")]
    return [Problem(p, "no such key", "it", document.line(p)) for p in places]


def _has(value: Any, key: str) -> bool:
    return isinstance(value, dict) and key in value


def _jump_problems(document: Document, data: dict[str, Any]) -> Iterator[Problem]:
    """Jump chains that come back to a host they already passed."""
    hosts = data.get("hosts")
    if not isinstance(hosts, dict):
        return
    for start in hosts:
        seen, here = [start], start
        while chain := _chain(hosts[here]):
            following = chain[0]
            if start in chain:
                way = " -> ".join([*seen, start])
                key = ("hosts", start, "jump")
                yield Problem(key, "a way that ends", f"a loop: {way}", document.line(key))
                break
            if following not in hosts or following in seen:
                break
            seen.append(following)
            here = following


def _chain(host: Any) -> list[str]:
    chain = host.get("jump") if isinstance(host, dict) else None
    sound = isinstance(chain, list) and all(isinstance(hop, str) for hop in chain)
    return chain if sound and chain is not None else []


def _translated(error: ValidationError, document: Document) -> Iterator[Problem]:
    for item in error.errors(include_url=False):
        deeper = item.get("ctx", {}).get("error")
        more = deeper.key if isinstance(deeper, DeeperError) else ()
        key = (*(part for part in item["loc"] if part != "[key]"), *more)
        value = _lookup(document.data, key)
        expected, actual = _expected(dict(item), key), _actual(value)
        if item["type"] == "extra_forbidden":
            actual = f"{key[-1]!s}"
        elif isinstance(deeper, DeeperError) and deeper.actual:
            actual = deeper.actual
        elif key in document.templates:
            # What a variable holds may be a secret; the template says where to look.
            actual = f"{document.templates[key]!r} (from the environment)"
        elif any(key[: len(of)] == of and len(key) > len(of) for of in _VARIABLES):
            actual = "a value that is not shown"
        yield Problem(key, expected, actual, document.line(key))


def _expected(item: dict[str, Any], key: KeyPath) -> str:
    kind, said = item["type"], str(item["msg"])
    if kind == "extra_forbidden":
        return unknown_name("one of the keys", _known_keys(key[:-1]), str(key[-1]))
    if kind == "missing":
        return "a value; this key is required"
    if kind == "value_error":
        return str(item["ctx"]["error"])
    if kind == "literal_error":
        return f"one of {item['ctx']['expected']}"
    if kind in ("tuple_type", "list_type"):
        return "a list, in square brackets"
    said = said.partition(", unable to")[0].replace("Input should be ", "")
    return said[:1].lower() + said[1:]


def _known_keys(key: KeyPath) -> list[str]:
    here: Any = Inventory
    for part in key:
        if isinstance(here, type) and issubclass(here, BaseModel):
            info = here.model_fields.get(str(part))
            here = info.annotation if info else None
        else:
            here = typing.get_args(here)[-1] if typing.get_args(here) else None
        if isinstance(here, types.UnionType):
            here = next(arg for arg in typing.get_args(here) if arg is not types.NoneType)
    if not (isinstance(here, type) and issubclass(here, BaseModel)):
        return []
    ours = _OURS if here is Inventory else ("name",) if here is Host else ()
    return [field for field in here.model_fields if field not in ours]


def _lookup(data: Any, key: KeyPath) -> Any:
    for part in key:
        if isinstance(data, Mapping) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        else:
            return _MISSING
    return data


_MISSING = object()


def _actual(value: Any) -> str:
    if value is _MISSING or value is None:
        return "nothing"
    if isinstance(value, dict):
        return f"keys: {', '.join(map(str, value)) or 'none'}"
    shown = repr(value)
    return shown if len(shown) <= _SHOWN_AT_MOST else shown[:_SHOWN_AT_MOST] + "..."
