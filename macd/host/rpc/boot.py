"""The first module a host runs: makes the shipped sources importable, without touching a disk."""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from types import CodeType, ModuleType
from typing import Any


class ShippedModules:
    """An importer over sources held in memory (finder and loader in one)."""

    def __init__(self, sources: dict[str, str]) -> None:
        self._sources = sources

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        if name not in self._sources:
            return None
        package = any(other.startswith(name + ".") for other in self._sources)
        origin = "<shipped>/" + name.replace(".", "/") + ".py"
        return ModuleSpec(name, self, origin=origin, is_package=package)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self.get_code(module.__name__), module.__dict__)  # noqa: S102 - our own sources

    def get_code(self, name: str) -> CodeType:
        return compile(self._sources[name], f"<shipped>/{name.replace('.', '/')}.py", "exec")

    def get_source(self, name: str) -> str:
        """What linecache asks for, so that tracebacks from a host show the line."""
        return self._sources[name]


def start(stdin: Any, tag: bytes, sources: dict[str, str]) -> int:
    """Install the sources and serve requests until stdin ends; returns the exit status."""
    sys.dont_write_bytecode = True
    sys.meta_path.insert(0, ShippedModules(sources))
    from macd.host.rpc import agent  # noqa: PLC0415 - importable only from here on

    return agent.serve(stdin, tag, [name for name in sources if name.startswith("macd.host.")])
