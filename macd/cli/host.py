"""host.list and host.trust: where the inventory's hosts lead, and whose keys are trusted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from macd.cli.verb import confirm, emit, verb
from macd.errors import ExitCode, MacdError, RefusedError

if TYPE_CHECKING:
    from macd.inventory import Host, Inventory
    from macd.ssh.ssh import Shown


@verb()
def list_(c: Any, inventory: str = "", json: bool = False) -> ExitCode:
    """Show the inventory's hosts and the jump hosts to each; connects to nothing."""
    from macd.inventory import load

    inv = load(inventory)
    rows = [_row(host, inv) for host in inv.hosts.values()]
    if json:
        emit({"inventory": inv.name, "known_hosts": str(inv.known_hosts), "hosts": rows})
    else:
        for row in rows:
            route = _route(row, inv.name)
            print(f"{row['name']:<12} {row['role']:<6} {row['env'] or '-':<6} {route}")
        for problem in dict.fromkeys(row["problem"] for row in rows if row["problem"]):
            print(f"✗ {problem}")  # once: one missing file spoils every host alike
    return ExitCode.USAGE if any(row["problem"] for row in rows) else ExitCode.DONE


def _row(host: Host, inventory: Inventory) -> dict[str, Any]:
    from macd.ssh.hostkeys import KnownHosts
    from macd.ssh.sshconfig import resolve

    row: dict[str, Any] = {"name": host.name, "role": host.role, "env": host.env}
    try:
        known_hosts = KnownHosts.read(inventory.known_hosts)
        hops = [
            {
                "name": hop.name,
                "user": hop.user,
                "address": hop.address,
                "known_as": hop.known_as,
                "pinned": [str(key) for key in known_hosts.pinned(hop.known_as)],
                "identities": [str(path) for path in hop.identities if path.exists()],
            }
            for hop in resolve(host, inventory)
        ]
    except MacdError as error:
        return {**row, "hops": [], "problem": str(error)}
    return {**row, "hops": hops, "problem": ""}


def _route(row: dict[str, Any], inventory: str) -> str:
    if row["problem"]:
        return "✗ no route to it, see below"
    route = " -> ".join(f"{hop['user']}@{hop['address']}" for hop in row["hops"])
    unknown = [hop["name"] for hop in row["hops"] if not hop["pinned"]]
    chosen = "" if inventory == "lab" else f" --inventory {inventory}"
    hint = f"  (key of {', '.join(unknown)} not pinned: invoke host.trust {row['name']}{chosen})"
    return route + (hint if unknown else "")


@verb(
    positional=["name"],
    iterable=["fingerprint"],
    help={
        "name": "name of a host in the inventory",
        "fingerprint": "SHA256:... accept exactly this key; may be repeated, one for each hop",
        "yes": "pin keys seen for the first time without asking (never a changed one)",
        "dry-run": "show the keys and pin nothing",
    },
)
def trust(
    c: Any,
    name: str,
    fingerprint: list[str] | None = None,
    yes: bool = False,
    dry_run: bool = False,
    inventory: str = "",
    json: bool = False,
) -> ExitCode:
    """Show the keys of a host and its jump hosts, ask, and pin them in known_hosts."""
    from macd.inventory import load
    from macd.ssh.ssh import trust as walk

    inv = load(inventory)
    wanted = [
        text if text.startswith("SHA256:") else f"SHA256:{text}" for text in fingerprint or []
    ]

    def accept(shown: Shown) -> bool:
        if not json:
            print(_offer(shown))
        return not dry_run and _accepted(shown, wanted, yes=yes)

    keys = walk(inv.host(name), inv, accept)
    if json:
        emit({"known_hosts": str(inv.known_hosts), "keys": [_key(shown) for shown in keys]})
    for shown in () if json else keys:
        state = "pinned" if shown.accepted else "NOT pinned"
        state = "already pinned" if shown.verdict.value == "known" else state
        print(f"{shown.hop.name:<12} {shown.hop.address:<24} {state:<15} {shown.key}")
    if keys[-1].accepted or dry_run:
        return ExitCode.DONE
    raise MacdError(
        f"the host key of {keys[-1].hop.name} was not pinned",
        why="the answer was no (without a terminal it is no; --yes never takes a changed key)",
        exit_code=ExitCode.REFUSED if yes else ExitCode.FAILED,
        live=f"{inv.known_hosts} does not vouch for it",
        hint=f"compare it with one from a safe source: invoke host.trust {name}"
        f" --fingerprint {keys[-1].key.fingerprint}"
        + ("" if inv.name == "lab" else f" --inventory {inv.name}"),
    )


def _offer(shown: Shown) -> str:
    hop, key = shown.hop, shown.key
    lines = [f"{hop.name} ({hop.address}, known as {hop.known_as}) shows {key}"]
    if shown.pinned:
        old = "\n".join(f"  pinned before: {each}" for each in shown.pinned)
        lines = [
            "!! THIS KEY HAS CHANGED. Somebody may be listening between you and the host.",
            f"!! Go on only if whoever runs {hop.name} told you this fingerprint.",
            *lines,
            old,
        ]
    return "\n".join(lines)


def _accepted(shown: Shown, wanted: list[str], *, yes: bool) -> bool:
    key = shown.key
    if wanted:
        if key.fingerprint in wanted:
            return True
        raise RefusedError(
            f"{shown.hop.name} shows another key than the one you named",
            why=f"it shows {key}\nyou named {', '.join(wanted)}",
            live="nothing was pinned for it",
            hint="find out which of the two is right before you connect",
        )
    sure = f"replace the pinned key of {shown.hop.name}" if shown.pinned else "pin this key"
    return confirm(f"{sure}?", yes=yes and not shown.pinned)


def _key(shown: Shown) -> dict[str, Any]:
    return {
        "hop": shown.hop.name,
        "address": shown.hop.address,
        "known_as": shown.hop.known_as,
        "verdict": shown.verdict.value,
        "accepted": shown.accepted,
        "type": shown.key.type,
        "fingerprint": shown.key.fingerprint,
        "pinned_before": [key.fingerprint for key in shown.pinned],
    }
