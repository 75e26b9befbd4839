"""Keep finished fits by content hash, so that a repeated or killed run redoes only what changed.

A key is the hash of everything that can change the result: the code that ran (with what it imports
of ours), library versions, parameters, seed, device and the very numbers that went in. An entry is
one file, written beside and renamed, with the hash of its payload in front: a torn or damaged
entry is dropped and the fit is done again, never believed.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from macd.host.durable import replace_file

Array = NDArray[Any]

_MAGIC = b"macdfit1"
_HEADER = len(_MAGIC) + 32


@dataclass(frozen=True)
class Entry:
    """What one cached fit left: arrays, files by name, and plain facts (JSON)."""

    arrays: dict[str, Array]
    files: dict[str, bytes] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)


class Cache:
    """A directory of entries; safe for several processes (the last identical writer wins)."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, key: str) -> Path:
        return self.root / "fits" / key[:2] / f"{key}.fit"

    def checkpoint(self, key: str) -> Path:
        """Where a fit of this key keeps its resume file; foreign code or data never shares it."""
        path = self.root / "checkpoints" / f"{key}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def get(self, key: str) -> Entry | None:
        """The entry, or None when there is none or it does not match its own hash."""
        path = self.path(key)
        try:
            raw = path.read_bytes()
        except FileNotFoundError:
            return None
        payload = raw[_HEADER:]
        if raw[: len(_MAGIC)] != _MAGIC or raw[len(_MAGIC) : _HEADER] != _sha(payload):
            path.unlink(missing_ok=True)
            return None
        os.utime(path)  # `prune` keeps what was used last
        return _unpack(payload)

    def holds(self, family: str) -> bool:
        """Whether there is any entry of a model family; their keys begin with its name."""
        return any(self.root.glob(f"fits/*/{family}-*.fit"))

    def put(self, key: str, entry: Entry) -> None:
        """Store an entry durably and drop the fit's checkpoint."""
        payload = _pack(entry)
        replace_file(self.path(key), _MAGIC + _sha(payload) + payload, parents=True)
        self.checkpoint(key).unlink(missing_ok=True)

    def prune(self, keep_bytes: int) -> int:
        """Remove the entries longest unused until at most `keep_bytes` remain; returns how many."""
        entries = sorted(
            ((p.stat().st_mtime, p.stat().st_size, p) for p in self.root.glob("fits/*/*.fit")),
            reverse=True,
        )
        total, removed = 0, 0
        for _, size, path in entries:
            total += size
            if total > keep_bytes:
                path.unlink(missing_ok=True)
                removed += 1
        return removed


def key_of(parts: Mapping[str, Any]) -> str:
    """The sha256 (hex) of named parts; arrays by their bytes, the rest as canonical JSON."""
    total = hashlib.sha256()
    for name in sorted(parts):
        value = parts[name]
        text = array_digest(value) if isinstance(value, np.ndarray) else _canonical(value)
        total.update(f"{name}={text}\n".encode())
    return total.hexdigest()


def array_digest(array: Array) -> str:
    """sha256 of dtype, shape and bytes; the same numbers give the same digest."""
    total = hashlib.sha256(f"{array.dtype.str}{array.shape}".encode())
    total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def code_digest(modules: Iterable[str]) -> str:
    """sha256 over the syntax trees of modules and of everything of ours that they import.

    Comments and layout don't count; a changed formula three imports away does.
    """
    total = hashlib.sha256()
    for name, digest in sorted(_closure(modules).items()):
        total.update(f"{name}\n{digest}\n".encode())
    return total.hexdigest()


def library_versions(names: Iterable[str]) -> dict[str, str]:
    """Installed versions by distribution name; "absent" where it is not installed."""

    def version(name: str) -> str:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            return "absent"

    return {name: version(name) for name in sorted(names)}


def _closure(modules: Iterable[str]) -> dict[str, str]:
    digests: dict[str, str] = {}
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name in digests:
            continue
        try:
            spec = importlib.util.find_spec(name)
        except ModuleNotFoundError:  # `from macd.x import name`: x is a module, so x.name is not
            continue
        if spec is None or spec.origin is None:
            continue
        digests[name], imports = _parsed(Path(spec.origin).read_text(encoding="utf-8"))
        waiting += imports
    return digests


@functools.cache  # by the text itself: parsing is most of the time, and a run asks several times
def _parsed(source: str) -> tuple[str, tuple[str, ...]]:
    """The digest of a source's syntax tree, and the names of ours that it imports."""
    tree = ast.parse(source)
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    ours = tuple(name for name in names if name.startswith("macd."))
    return _sha(ast.dump(tree).encode()).hex(), ours


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _sha(data: bytes) -> bytes:
    return hashlib.sha256(data).digest()


def _pack(entry: Entry) -> bytes:
    stream = io.BytesIO()
    columns: dict[str, Array] = {f"array:{k}": v for k, v in entry.arrays.items()}
    columns |= {f"file:{k}": np.frombuffer(v, dtype=np.uint8) for k, v in entry.files.items()}
    columns["facts"] = np.frombuffer(_canonical(entry.facts).encode(), dtype=np.uint8)
    np.savez(stream, allow_pickle=False, **columns)
    return stream.getvalue()


def _unpack(payload: bytes) -> Entry:
    with np.load(io.BytesIO(payload), allow_pickle=False) as stored:
        columns = {name: stored[name] for name in stored.files}
    return Entry(
        arrays={k[6:]: v for k, v in columns.items() if k.startswith("array:")},
        files={k[5:]: v.tobytes() for k, v in columns.items() if k.startswith("file:")},
        facts=json.loads(columns["facts"].tobytes()),
    )
