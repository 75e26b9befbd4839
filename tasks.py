"""What users type: `invoke --list`. Each verb lives in macd/cli, one file per noun.

A command imports the files of the verbs that were typed, not all of them: that takes a fifth less
time.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
from importlib import import_module

from invoke import Collection

from macd.cli import encoding, interrupts

interrupts.leave_quietly()
encoding.spell_signs()
# Invoke forbids Python to keep compiled modules, and each command would compile them all again.
sys.dont_write_bytecode = bool(os.environ.get("PYTHONDONTWRITEBYTECODE"))
# pydantic would look for plugins of its own in every installed package. Nothing here has one.
os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")

from macd.cli import usage  # noqa: E402 - compiled modules are kept from here on

VERBS = {  # the name that is typed -> its file in macd/cli, and the function there
    "demo": "demo.demo",
    "init": "init.init",
    "facts": "host.facts",
    "history": "history.history",
    "health": "health.health",
    "provision": "provision.provision",
    "plan": "deploy.plan",
    "deploy": "deploy.deploy",
    "rollback": "deploy.rollback",
    "status": "status.status",
    "why": "status.why",
    "logs": "logs.logs",
    "shadow-gate": "gate.shadow_gate",
    "audit": "audit.audit",
    "enable-stacking": "flag.enable_stacking",
    "disable-stacking": "flag.disable_stacking",
    "monitor": "monitor.monitor",
    "doctor": "doctor.doctor",
    "dashboard": "dashboard.dashboard",
    "data.import": "data.import_",
    "data.resample": "data.resample",
    "data.fetch": "data.fetch",
    "data.verify": "data.verify",
    "host.list": "host.list_",
    "host.import": "host.import_",
    "host.trust": "host.trust",
    "lab.up": "lab.up",
    "lab.down": "lab.down",
    "lab.status": "lab.status",
    "lab.fault": "lab.fault",
    "release.release": "release.release",  # `release` means it
    "release.list": "release.list_",
    "release.show": "release.show",
    "release.verify": "release.verify",
    "train.train": "train.train",  # `train` means it
    "train.status": "train.status",
    "train.attach": "train.attach",
    "train.cancel": "train.cancel",
    "train.fetch": "train.fetch",
    "train.compare": "compare.compare",
    "train.schedule": "schedule.schedule",
}


def needed(words: Sequence[str]) -> list[str]:
    """The verbs that a command line may name: all of them for a list, a help or a first word that
    is no verb.
    """
    listed = any(word.startswith(("-l", "--list", "--complete")) for word in words)
    named = [name for name in VERBS if {name, _short(name)} & set(words)]
    first = words[0] if words else ""
    known = any(first in (name, _short(name)) for name in named)
    return named if known and not listed else list(VERBS)


def _short(name: str) -> str:
    """`train` of train.train; any other name is as short as it can be."""
    noun, _, own = name.rpartition(".")
    return own if noun == own else name


def collection(names: Iterable[str]) -> Collection:
    """The verbs of these names, imported."""
    top = Collection()
    for name in names:
        module, function = VERBS[name].split(".")
        task = getattr(import_module(f"macd.cli.{module}"), function)
        noun = name.rpartition(".")[0]
        if noun and noun not in top.collections:
            top.add_collection(Collection(noun))
        (top.collections[noun] if noun else top).add_task(task)
    return top


usage.install(VERBS)

namespace = collection(needed(sys.argv[1:]))
