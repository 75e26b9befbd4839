"""`invoke init`: a first inventory, from what lies here and on the host that serves today."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from macd.cli.host import accepts
from macd.cli.verb import ask, confirm, emit, safe, verb
from macd.errors import MacdError, RefusedError, UsageError

if TYPE_CHECKING:
    from macd.init.items import Answers, Item, Place, Seen
    from macd.inventory import Inventory

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@verb(
    interrupted="no inventory was written\n  do: invoke init again",
    help={
        "name": "the inventory's name: inventory/NAME.yml is written",
        "source": "directory of your application; none: the one that macd ships with",
        "prod": "host that serves, as [user@]host[:port] or an ssh alias; it is inspected",
        "train": "host that trains; none: nothing is trained by macd",
        "jump": "host before the training host",
        "app-dir": "the application's directory on the serving host, if known",
        "unit": "the systemd unit that is the engine, if known",
        "become": "sudo, where the login on the serving host isn't root",
        "ssh-config": "another file than ~/.ssh/config",
        "keys": "directory of the keys that sign (default: ~/.ssh); missing ones are made",
        "offline": "don't look at the serving host; nothing of it is then found",
        "force": "replace the inventory that is there",
        "yes": "ask nothing: take what was given and found, pin keys seen first",
    },
)
def init(
    _: object,
    name: str = "",
    source: str = "",
    prod: str = "",
    train: str = "",
    jump: str = "",
    app_dir: str = "",
    unit: str = "",
    become: str = "",
    ssh_config: str = "",
    keys: str = "~/.ssh",
    offline: bool = False,
    force: bool = False,
    yes: bool = False,
    json: bool = False,
) -> None:
    """Write a first inventory: look at your application and its host, ask the rest.

    Changes nothing on any host.
    """
    from macd.host.durable import replace_file
    from macd.init import guess, look, text
    from macd.init import keys as signing
    from macd.init.items import Seen
    from macd.inventory import parsed, project_root

    quiet = yes or json
    root = project_root()
    source = source or ask("directory of your application", "", yes=quiet)
    name = name or ask("name of the inventory", _free_name(root), yes=quiet)
    path = _writable(root, name, force=force)
    here = _directory(source)
    seen = look.at_source(here) if source else Seen({})
    prod = prod or ask("host that serves, [user@]host[:port]", "", yes=quiet)
    train = train or ask("host that trains", "", yes=quiet)
    jump = jump or ask("jump host before it", "", yes=quiet or not train)
    answers = _answers(
        {"prod": prod, "train": train, "jump": jump},
        name=name,
        app=_app_name(here) if source else "macd-analysis",
        source=_as_written(here, path.parent) if source else "",
        app_dir=app_dir,
        unit=unit,
        become=become,
        keys=keys if keys.startswith(("~", "/")) else _as_written(_directory(keys), path.parent),
        ssh_config=_as_written(_directory(ssh_config), path.parent) if ssh_config else "",
    )
    draft = parsed(text.inventory(guess.items(answers, seen), name=name), name=name, root=root)
    if answers.prod and not offline:
        try:
            seen = _look_at_host(answers, seen, draft, yes=yes, json=json)
        except MacdError as error:
            raise _not_seen(answers.prod, error) from error
    if source and len(guess.candidates(answers, seen)) > 1 and not unit:
        first, *others = guess.candidates(answers, seen)
        names = ", ".join(safe(each["unit"]) for each in others)
        chosen = ask(f"which unit is the engine (also: {names})", first["unit"], yes=quiet)
        answers = replace(answers, unit=chosen)
    items = guess.items(answers, seen)
    written = text.inventory(items, name=name)
    inventory = parsed(written, name=name, root=root)
    made = []
    if wanted := signing.missing(inventory):
        question = f"make the signing keys {', '.join(map(str, wanted))}?"
        if confirm(question, yes=yes):
            made = signing.make(inventory)
    else:
        made = signing.make(inventory)
    replace_file(path, written.encode(), parents=True)  # last: interrupted before, there is none
    steps = _next(answers, inventory)
    unseen = "--offline: the host was not inspected" if answers.prod and offline else ""
    if json:
        shown = [
            {"key": ".".join(i.key), "value": i.value, "origin": i.origin, "note": i.note}
            for i in items
            if i.active
        ]
        emit(
            {
                "inventory": str(path),
                "keys": made,
                "items": shown,
                "next": steps,
                "host_not_seen": unseen,
            }
        )
        return
    _show(path, root, items, made, unseen)
    print("\nnext, after a look at the file:")
    for step in steps:
        print(f"  {step}")


def _free_name(root: Path) -> str:
    taken = (root / "inventory/production.yml").exists()
    return "" if taken else "production"


def _writable(root: Path, name: str, *, force: bool) -> Path:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"not a name of an inventory: {name!r}" if name else "the inventory has no name",
            why="" if name else "inventory/production.yml is there already",
            hint="invoke init --name NAME: letters, digits, . _ -",
        )
    path = root / "inventory" / f"{name}.yml"
    if path.exists() and not force:
        raise UsageError(
            f"inventory/{name}.yml is there already",
            why="init writes a whole file, and would lose what stands in it",
            live="nothing was changed",
            hint="invoke init --name OTHER; or add --force to replace it",
        )
    return path


def _directory(text: str) -> Path:
    return Path(text).expanduser().absolute()


def _as_written(path: Path, base: Path) -> str:
    """A path for the inventory, relative to it where it lies beside the project."""
    relative = os.path.relpath(path, base)
    return str(path) if relative.count("..") > 2 else relative


def _app_name(source: Path) -> str:
    name = re.sub(r"[^a-z0-9]+", "-", source.name.lower()).strip("-")[:32].strip("-")
    return name or "macd-analysis"


def _answers(places: dict[str, str], **given: str) -> Answers:
    from macd.init.items import Answers, Place

    made: dict[str, Place | None] = {}
    for option, text in places.items():
        made[option] = Place.of(text) if text else None
        if text and made[option] is None:
            raise UsageError(
                f"--{option} is no host: {text!r}",
                why="a host is [user@]host[:port], or an alias of ~/.ssh/config",
                hint=f"invoke init --{option} root@192.0.2.7:22",
            )
    return Answers(**made, **given)  # type: ignore[arg-type]


def _look_at_host(answers: Answers, seen: Seen, draft: Inventory, *, yes: bool, json: bool) -> Seen:
    """Pin the keys on the way as host.trust does, then look. Raises RefusedError at a no."""
    from macd.init import guess, look
    from macd.ssh.ssh import trust

    host = draft.host("prod")
    *_, last = trust(host, draft, accepts([], yes=yes, silent=json))
    if not last.accepted:
        raise RefusedError(
            f"the key of {last.hop.name} is not trusted",
            why="the answer was no (without a terminal it is no)",
            hint=f"ask whoever runs it whether {last.key.fingerprint} is its; --yes pins a key that"
            " was never seen before",
        )

    def where(seen: Seen) -> str:
        if answers.app_dir or not answers.source:
            return answers.app_dir
        engine, _ = guess.chosen(answers, seen)
        return str(engine["directory"]) if engine else ""

    return look.at_host(seen, host, draft, where)


def _not_seen(place: Place, error: MacdError) -> MacdError:
    """Without its host an inventory would hold guesses that look like more."""
    # A remedy that names the inventory would name one that is not there yet.
    known = error.hint if "inventory" not in error.hint else ""
    mend = known or f"see that ssh {place.ssh} gets there"
    return MacdError(
        f"{place.ssh} can't be inspected: {error.what}",
        why=error.why,
        live="nothing was written, and no key to sign with was made",
        hint=f"{mend}; then invoke init again, or add --offline: it writes what is known here",
        exit_code=error.exit_code,
    )


def _next(answers: Answers, inventory: Inventory) -> list[str]:
    from macd.init import guess, look

    steps = [f"export MACD_INVENTORY={inventory.name}"]
    asked = {host.name for host in inventory.hosts.values() if host.role == "train" or answers.prod}
    steps += [f"invoke host.trust {host}" for host in look.unpinned(inventory) if host in asked]
    if answers.train:
        steps += [] if answers.source else ["invoke data.import FILE"]
        steps.append(f"invoke train --host {guess.train_host(answers)}")
    return [*steps, "invoke release", "invoke provision --dry-run", "invoke plan"]


def _show(path: Path, root: Path, items: list[Item], made: list[str], unseen: str) -> None:
    for title in ("given", "found", "guessed", "decide"):
        rows = [item for item in items if item.active and item.origin == title]
        for item in rows:
            key = ".".join(item.key)
            print(safe(f"  {title:<8} {key:<28} {_short(item.value)}"))
    print(f"✓ {path.relative_to(root)} is written")
    for line in made:
        print(f"✓ {line}")
    if unseen:
        print(f"! {unseen}")


def _short(value: Any) -> str:
    from macd.init.text import scalar

    shown = scalar(value)
    return shown if len(shown) <= 70 else f"{shown[:67]}..."
