"""Train on several hosts: what each is in the cluster, whether they fit together, start and end.

Every host owns its part as a job. The head's holds the training itself; the others' end when the
head is gone. So this machine starts them, and may go away.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, TypeVar

from macd.application import BUILTIN
from macd.errors import MacdError, UsageError
from macd.host.jobs.cluster import FIXED_PORTS, Node
from macd.host.jobs.software import differing, digest_of, in_short
from macd.inventory import Host, Inventory
from macd.jobs import follow, preflight, transfer
from macd.jobs.preflight import Check
from macd.jobs.request import NodeRole, Request, TrainRequest, Tree, WorkerRequest, sources
from macd.ssh.contact import Contact
from macd.ssh.facts import Facts
from macd.ssh.session import Finished, Session

_OLDEST_RAY = (2, 52)  # older ones ask no token
_SHM_WANTED = 1 << 30
_SOFTWARE_S = 60.0
_PACKAGES = {**preflight.PACKAGES, "ray": "ray"}
T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """The hosts of one training. ports: first and last of each that they use among each other."""

    head: Host
    workers: tuple[Host, ...]
    ports: tuple[int, int]

    @property
    def hosts(self) -> tuple[Host, ...]:
        """All of them, the head first."""
        return (self.head, *self.workers)

    @property
    def tried(self) -> list[int]:
        """The ports that preflight tries: the fixed ones, and the ends of the others."""
        first, last = self.ports
        return [*range(first, first + FIXED_PORTS + 1), last]


@dataclass(frozen=True)
class Seen:
    """What one host answered. node: as node_look; software: None where it gave no answer."""

    facts: Facts
    probe: Finished
    newest: Mapping[str, Any] | None
    node: Mapping[str, Any]
    software: dict[str, str] | None


def of(inventory: Inventory, head: Host, engine: str = "") -> Cluster | None:
    """The cluster that `head` leads; None where it trains alone.

    It leads the other hosts of train.hosts when it is one of them, unless `engine` says local.
    """
    train = inventory.train
    if head.name not in train.hosts or len(train.hosts) < 2 or engine == "local":
        return None
    workers = tuple(inventory.host(name) for name in train.hosts if name != head.name)
    return Cluster(head, workers, train.ports)


@contextmanager
def contacts(
    cluster: Cluster | None, head: Contact, inventory: Inventory
) -> Iterator[dict[str, Contact]]:
    """A contact with each host, by its name; that of the head is there already."""
    with ExitStack() as stack:
        reach = {head.host.name: head}
        for host in cluster.workers if cluster else ():
            contact = Contact(host, inventory, patience=head.patience)
            reach[host.name] = stack.enter_context(contact)
        yield reach


def check(
    cluster: Cluster,
    reach: Mapping[str, Contact],
    inventory: Inventory,
    room: int,
    *,
    dry_run: bool,
) -> tuple[list[Check], dict[str, Seen]]:
    """Everything that is checked before a run, and what the hosts answered.

    Workers that an earlier run left are ended where nothing else stands in the way of this one.
    """
    seen = look(cluster, reach)
    made = checks(cluster, seen, inventory, room)
    left = leftovers(seen)
    failed = {check.name for check in made if check.level == "error"}
    if failed & {"free", "address"}:  # its ports are in use, or it has none
        return made, seen
    if left and (dry_run or failed):
        names = ", ".join(f"{name} ({run})" for name, run in left.items())
        made.append(Check("ports", "ok", f"not tried: workers of a run that is over: {names}"))
        return made, seen
    end_leftovers(left, reach)
    return [*made, *check_ports(cluster, seen, reach)], seen


def look(cluster: Cluster, reach: Mapping[str, Contact]) -> dict[str, Seen]:
    """Ask all hosts, side by side; changes nothing."""

    def ask(host: Host) -> Seen:
        def of_session(session: Session) -> Seen:
            program = resources.files("macd.host.jobs").joinpath("software.py").read_text()
            node = session.call("node_look", address=host.address)
            facts = preflight.look(session, host.work_dir, host.python, _PACKAGES)
            argv = [host.python, "-c", program]
            installed = session.run(argv, timeout=_SOFTWARE_S, cwd="/")
            return Seen(*facts, node, preflight.answer_of(installed))

        return reach[host.name].use(of_session)

    return _side_by_side(ask, cluster.hosts)


def checks(
    cluster: Cluster, seen: Mapping[str, Seen], inventory: Inventory, room: int
) -> list[Check]:
    """Every check but the ports, by what `look` saw. room: bytes that the head needs."""
    train = inventory.train.model_copy(update={"require_gpu": False})  # one of them needs one
    made = []
    for host in cluster.hosts:
        mine = seen[host.name]
        newest = None if host.name in leftovers(seen) else mine.newest
        needs = room if host is cluster.head else 0
        one = preflight.check_host(mine.facts, mine.probe, newest, train, room=needs)
        one = [check for check in one if check.name != "gpu"]
        one += [_address(host, mine), _shared_memory(mine)]
        made += [replace(check, detail=f"{host.name}: {check.detail}") for check in one]
    return [*made, *_software(cluster, seen), *_gpus(seen, required=inventory.train.require_gpu)]


def leftovers(seen: Mapping[str, Seen]) -> dict[str, str]:
    """Workers of runs that are over: host -> run. They would end by themselves in a moment."""
    left = {}
    for name, mine in seen.items():
        newest = mine.newest or {}
        head = (newest.get("spec") or {}).get("about", {}).get("head")
        if newest.get("state") != "RUNNING" or head not in seen:
            continue
        theirs = seen[head].newest or {}
        if (theirs.get("state"), theirs.get("run")) != ("RUNNING", newest["run"]):
            left[name] = str(newest["run"])
    return left


def end_leftovers(left: Mapping[str, str], reach: Mapping[str, Contact]) -> None:
    """End workers of runs that are over, so that their ports and memory are free."""
    _side_by_side(lambda name: follow.stop(reach[name], left[name]), left, name=str)


def check_ports(
    cluster: Cluster, seen: Mapping[str, Seen], reach: Mapping[str, Contact]
) -> list[Check]:
    """Listen on each host and connect from all others; closed and taken ports, or that all is well.

    Only for hosts whose addresses `look` found.
    """
    ports, at = cluster.tried, {name: str(mine.node["address"]) for name, mine in seen.items()}
    first, last = cluster.ports

    def listen(host: Host) -> Any:
        return reach[host.name].use(
            lambda session: session.call("node_listen", address=at[host.name], ports=ports)
        )

    def connect(host: Host) -> Any:
        there = [[at[o.name], port] for o in cluster.hosts if o is not host for port in ports]
        return reach[host.name].use(lambda session: session.call("node_reach", targets=there))

    def let_go(host: Host) -> Any:
        return reach[host.name].use(
            lambda session: session.call("node_listen", address="", ports=[])
        )

    taken = {name: answer["taken"] for name, answer in _side_by_side(listen, cluster.hosts).items()}
    try:
        closed = _side_by_side(connect, cluster.hosts)
    finally:
        _side_by_side(let_go, cluster.hosts)
    made = []
    used = {(at[name], port) for name, listed in taken.items() for port, _ in listed}
    for name, listed in taken.items():
        if listed:
            why = f"{name} can't have {_ports(port for port, _ in listed)}: {listed[0][1]}"
            hint = f"ss -ltnp on {name} shows who has it; or name other ports in train.ports"
            made.append(Check("ports", "error", why, hint))
    names = {address: name for name, address in at.items()}
    for name, answer in closed.items():
        for address in dict.fromkeys(address for address, _, _ in answer["closed"]):
            shut = [(port, why) for to, port, why in answer["closed"] if to == address]
            shut = [(port, why) for port, why in shut if (address, port) not in used]
            if shut:
                why = f"{name} can't reach {names[address]} ({address}) at "
                why += f"{_ports(port for port, _ in shut)}: {shut[0][1]}"
                hint = f"open TCP {first}-{last} (train.ports) between these addresses, both ways"
                made.append(Check("ports", "error", why, hint))
    between = ", ".join(f"{name} {address}" for name, address in at.items())
    return made or [Check("ports", "ok", f"{first}-{last} open between {between}")]


def requests(
    cluster: Cluster, request: TrainRequest, seen: Mapping[str, Seen], token: str = ""
) -> tuple[TrainRequest, dict[str, WorkerRequest]]:
    """What the head is asked, and each worker by its name."""
    at = {name: str(mine.node["address"]) for name, mine in seen.items()}
    head = f"{at[cluster.head.name]}:{cluster.ports[0]}"
    code = Tree(sources(BUILTIN.sources))
    token = token or secrets.token_hex(32)

    def role(host: Host) -> NodeRole:
        node = Node(at[host.name], head, len(cluster.hosts), cluster.ports)
        names = tuple(worker.name for worker in cluster.workers)
        return NodeRole(node=node, token=token, head=cluster.head.name, workers=names)

    workers = {
        host.name: WorkerRequest(
            run=request.run, raw={}, tree=code, python=host.python, env={}, node=role(host)
        )
        for host in cluster.workers
    }
    return replace(request, node=role(cluster.head)), workers


def start_workers(workers: Mapping[str, Request], reach: Mapping[str, Contact]) -> None:
    """Send the code and start each worker: it waits for the head. All, or none goes on."""

    def begin(name: str) -> dict[str, Any]:
        transfer.send(reach[name], workers[name])
        return transfer.start(reach[name], workers[name])

    try:
        _side_by_side(begin, workers, name=str)
    except BaseException:
        end_workers(workers, reach)
        raise


def end_workers(workers: Mapping[str, Request], reach: Mapping[str, Contact]) -> None:
    """Take workers back whose head was not started. One that can't be reached ends by itself."""
    for name, request in workers.items():
        with suppress(MacdError):
            follow.stop(reach[name], request.run)


def workers_of(status: Mapping[str, Any], inventory: Inventory) -> list[Host]:
    """The hosts that work for a run, by what its head says; those of this inventory."""
    named = (status.get("spec") or {}).get("about", {}).get("workers") or []
    return [inventory.hosts[name] for name in named if name in inventory.hosts]


def check_leads(status: Mapping[str, Any]) -> None:
    """Raises UsageError: the host only works for a run that another one leads."""
    head = (status.get("spec") or {}).get("about", {}).get("head")
    if head:
        raise UsageError(
            f"run {status['run']} is led by {head}",
            why="this host is a worker of its cluster",
            hint=f"the same command with --host {head}",
        )


def states(hosts: Sequence[Host], inventory: Inventory, run: str) -> list[dict[str, str]]:
    """What each worker of a run is: host, state (or UNREACHABLE), reason."""
    return _each(hosts, inventory, run, follow.status_of)


def end(hosts: Sequence[Host], inventory: Inventory, run: str) -> list[dict[str, str]]:
    """End each worker of a run; the states after it. One that can't be reached ends by itself."""
    return _each(hosts, inventory, run, follow.stop)


def _each(
    hosts: Sequence[Host],
    inventory: Inventory,
    run: str,
    action: Callable[[Contact, str], Mapping[str, Any]],
) -> list[dict[str, str]]:
    def ask(host: Host) -> dict[str, str]:
        try:
            with Contact(host, inventory, patience=0.0) as contact:
                status = action(contact, run)
        except MacdError as error:
            return {"host": host.name, "state": "UNREACHABLE", "reason": error.what}
        return {name: str(status.get(name, "")) for name in ("state", "reason")} | {
            "host": host.name
        }

    return [*_side_by_side(ask, hosts).values()]


def _side_by_side(
    action: Callable[[Any], T], items: Iterable[Any], name: Callable[[Any], str] | None = None
) -> dict[str, T]:
    """The answer for each item, by its name. Raises the first one's error, once all are over."""
    listed = [*items]
    if not listed:
        return {}
    with ThreadPoolExecutor(len(listed)) as pool:
        pending = {(name(i) if name else i.name): pool.submit(action, i) for i in listed}
    return {key: future.result() for key, future in pending.items()}


def _address(host: Host, mine: Seen) -> Check:
    if mine.node["address"]:
        return Check("address", "ok", str(mine.node["address"]))
    hint = f"ip address on {host.name} shows them; set address of {host.name} in the inventory"
    return Check("address", "error", f"it has no {mine.node['why']}", hint)


def _shared_memory(mine: Seen) -> Check:
    free = int(mine.node["shm"])
    detail = f"{free / 1e9:.1f} GB free in /dev/shm"
    if free < _SHM_WANTED:
        hint = "as root on it: mount -o remount,size=4G /dev/shm; else Ray uses its disk"
        return Check("shm", "warn", detail, hint)
    return Check("shm", "ok", detail)


def _software(cluster: Cluster, seen: Mapping[str, Seen]) -> list[Check]:
    """Python to the patch and all packages are the head's on every host; its Ray asks a token."""
    head, name = seen[cluster.head.name].software, cluster.head.name
    unanswered = [host for host, mine in seen.items() if mine.software is None]
    if head is None or unanswered:
        why = f"{', '.join(unanswered)}: its Python did not list what is installed"
        return [Check("software", "error", why, "set `python` of this host in the inventory")]
    version = tuple(int(part) for part in head.get("ray", "0").split(".")[:2] if part.isdigit())
    if "ray" in head and version < _OLDEST_RAY:
        wanted = ".".join(map(str, _OLDEST_RAY))
        why = f"ray {head['ray']} asks no token: anybody in its network could run code there"
        return [Check("software", "error", why, f'pip install "ray>={wanted}" on every host')]
    made = []
    for host in cluster.workers:
        there = seen[host.name].software or {}
        if digest_of(there) != digest_of(head):
            why = f"{host.name}: {in_short(differing(head, there, name))}"
            hint = f"install on {host.name} what {name} has, as by requirements.lock"
            made.append(Check("software", "error", why, hint))
    same = f"the same {len(head) - 1} packages on all, {digest_of(head)[:12]}"
    return made or [Check("software", "ok", same)]


def _gpus(seen: Mapping[str, Seen], *, required: bool) -> list[Check]:
    """The cards of all; Ray deals fits to hosts with a card only, where there is one at all."""
    cards = {
        name: list((preflight.answer_of(mine.probe) or {}).get("cuda") or [])
        for name, mine in seen.items()
    }
    listed = ", ".join(f"{name}: {', '.join(cards[name])}" for name in cards if cards[name])
    without = [name for name, names in cards.items() if not names]
    if listed and without:
        hint = "leave it out of train.hosts, or see nvidia-smi there"
        idle = f"{listed}; {', '.join(without)} has none and gets no fit"
        return [Check("gpu", "warn", idle, hint)]
    if listed or not required:
        return [Check("gpu", "ok", listed or "none needed, none usable: the CPUs train")]
    return [
        Check(
            "gpu", "error", "no GPU on any host, and the inventory requires one", preflight.NO_GPU
        )
    ]


def _ports(ports: Iterable[int]) -> str:
    listed = sorted(set(ports))
    if len(listed) > 3:
        return f"{len(listed)} ports from {listed[0]} on"
    return f"port{'s' * (len(listed) > 1)} {', '.join(map(str, listed))}"
