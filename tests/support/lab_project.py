"""A project of its own on the test's lab, with the deploy verbs typed as users type them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from macd.inventory import Inventory, load, project_root
from macd.lab import LabState
from tests.support import commands, small_releases
from tests.support.openssh import ssh

TASKS = """
from invoke import Collection
from macd.cli import deploy, history, provision, status, usage
usage.install()
namespace = Collection(
    deploy.plan, deploy.deploy, deploy.rollback, provision.provision,
    status.status, status.why, history.history,
)
"""


@dataclass(frozen=True)
class Project:
    """One project directory; its hosts have an application directory and unit of their own."""

    root: Path
    lab: LabState
    inventory: Inventory

    @property
    def app(self) -> Path:
        return self.lab.hosts["prod"].home / self.inventory.host("prod").app_dir.removeprefix("~/")

    @property
    def live(self) -> str | None:
        link = self.app / "current"
        return link.readlink().name if link.is_symlink() else None

    def release(
        self,
        serial: int,
        variant: str = "good",
        *,
        extra: bytes = b"",
        package: str = "",
        details: Mapping[str, Any] | None = None,
    ) -> str:
        return small_releases.make(
            self.inventory, serial, variant, extra=extra, package=package, details=details
        )

    def systemctl(self, *words: str) -> str:
        """What the host's `systemctl --user` says; without an agent, which costs ten times more."""
        return ssh(
            self.lab.ssh_config, "prod", shlex.join(["systemctl", "--user", *words])
        ).stdout.decode()

    def runtime_says(self, code: str) -> str:
        """What the live release's own Python prints."""
        python = self.app / "current" / "runtime" / "bin" / "python"
        argv = [str(python), "-I", "-c", code]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Type it; the caller reads its output line by line."""
        return commands.start(
            self.root,
            *words,
            env={**os.environ, "MACD_ROOT": str(self.root), "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def invoke(self, *words: str, code: int = 0) -> str:
        """Type it and wait; everything it said, if it ended with `code`."""
        with self.start(*words) as typed:
            out, err = typed.communicate(timeout=240)
        assert typed.returncode == code, out + err
        return out + err

    def json(self, *words: str, code: int = 0) -> Any:
        with self.start(*words, "--json") as typed:
            out, err = typed.communicate(timeout=240)
        assert typed.returncode == code, out + err
        return json.loads(out)

    def interrupt_at(self, word: str, *words: str) -> tuple[int, str]:
        """Type it, press Ctrl-C once `word` is printed; exit code and what was said after all."""
        with self.start(*words) as typed:
            said = "".join(_until(typed, word))
            typed.send_signal(signal.SIGINT)
            out, err = typed.communicate(timeout=240)
        return typed.returncode, said + out + err


def _until(typed: subprocess.Popen[str], word: str) -> Iterator[str]:
    assert typed.stdout is not None
    for line in typed.stdout:
        yield line
        if re.search(word, line):
            return
    raise AssertionError(f"{word!r} was never said: {typed.stderr and typed.stderr.read()}")


def project(lab: LabState, root: Path, name: str) -> Project:
    """A provisionable project whose app directory and unit are called `name`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "tasks.py").write_text(TASKS)
    (root / "inventory").mkdir()
    text = (project_root() / "inventory" / "lab.yml").read_text()
    for old, new in (
        ("~/macd-analysis", f"~/{name}"),
        ("unit: macd-analysis", f"unit: {name}"),
        ("ready_s: 30", "ready_s: 60"),  # a busy machine is no defect
        ("soak_s: 2", "soak_s: 1"),
    ):
        assert old in text
        text = text.replace(old, new)
    (root / "inventory" / "lab.yml").write_text(text)
    (root / ".lab").symlink_to(lab.root / ".lab")
    (root / "templates").symlink_to(project_root() / "templates")
    inventory = load("lab", root=root)
    small_releases.make_keys(inventory)
    return Project(root, lab, inventory)
