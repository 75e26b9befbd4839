"""Which hosts train together, what each is asked, and what stands in their way; no contact."""

from __future__ import annotations

import json
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from macd.errors import UsageError
from macd.host.failure import HostError
from macd.host.jobs import node
from macd.host.jobs.cluster import NODE, TOKEN, Node, command, environment, own_directory
from macd.inventory import Inventory, load
from macd.jobs import cluster
from macd.jobs.cluster import Seen
from macd.jobs.preflight import answer_of
from macd.jobs.request import TrainRequest, Tree
from macd.ssh.session import Finished
from tests.unit.jobs.test_jobs_preflight import FACTS, GOOD, SETTINGS

HOSTS = """\
  a: {role: train, ssh: a, work_dir: ~/w, address: 10.0.0.1}
  b: {role: train, ssh: b, work_dir: ~/w, address: ib0}
  c: {role: train, ssh: c, work_dir: ~/w}
"""
SOFTWARE = {"python": "3.11.7", "lightgbm": "4.6.0", "ray": "2.60.0"}


@pytest.fixture
def inventory(tmp_path: Path) -> Inventory:
    return written(tmp_path, "[a, b]")


def written(root: Path, hosts: str, more: str = "") -> Inventory:
    (root / "inventory").mkdir(exist_ok=True)
    (root / "tasks.py").touch()
    text = f"hosts:\n{HOSTS}train: {{data_dir: ., hosts: {hosts}{more}}}\n"
    (root / "inventory/team.yml").write_text(text)
    return load("team", root=root)


def seen(number: int, software: Any = None, newest: Any = None, **answer: Any) -> Seen:
    probe = Finished(0, json.dumps({**GOOD, **answer}).encode(), b"", 0, False, 1.0)
    where = {"address": f"10.0.0.{number}", "why": "", "shm": 8 << 30}
    return Seen(FACTS, probe, newest, where, software or SOFTWARE)


def failed(inventory: Inventory, *all_seen: Seen) -> dict[str, tuple[str, str]]:
    team = cluster.of(inventory, inventory.host("a"))
    assert team is not None
    made = cluster.checks(team, dict(zip("ab", all_seen, strict=True)), inventory, 0)
    return {check.name: (check.level, check.detail) for check in made if check.level != "ok"}


def test_a_host_of_the_list_leads_the_others(inventory: Inventory, tmp_path: Path) -> None:
    team = cluster.of(inventory, inventory.host("b"))
    assert team is not None
    assert [host.name for host in team.hosts] == ["b", "a"]
    assert team.tried == [*range(6400, 6409), 6999]
    assert cluster.of(inventory, inventory.host("c")) is None  # not in the list
    assert cluster.of(inventory, inventory.host("a"), engine="local") is None
    assert cluster.of(written(tmp_path, "[a]"), inventory.host("a")) is None


@pytest.mark.parametrize(
    ("hosts", "more", "why"),
    [
        ("[a, c]", "", "address of c set"),
        ("[a, a]", "", "each host once"),
        ("[a, nobody]", "", "nobody is none"),
        ("[a, b]", ", ports: [6400, 6410]", "at least 64 ports"),
    ],
)
def test_a_list_that_can_not_work_is_refused(
    tmp_path: Path, hosts: str, more: str, why: str
) -> None:
    with pytest.raises(UsageError) as caught:
        written(tmp_path, hosts, more)
    assert why in str(caught.value)


def test_each_host_is_told_its_part_and_the_token_is_in_no_command(inventory: Inventory) -> None:
    team = cluster.of(inventory, inventory.host("a"))
    assert team is not None
    alone = TrainRequest(
        run="20260101T000000Z-1", raw={}, tree=Tree({}), python="py", env={}, settings=SETTINGS
    )
    both = {"a": seen(1), "b": seen(2)}
    head, workers = cluster.requests(team, alone, both, token="t0k-9f1")
    assert head.argv[:4] == ["py", "-m", "macd.host.jobs.cluster", "{run}"]
    assert head.argv[4:] == alone.argv
    assert workers["b"].argv == ["python3", "-m", "macd.host.jobs.cluster", "{run}"]
    assert (head.about["workers"], workers["b"].about["head"]) == (["b"], "a")
    assert "workers" not in alone.about
    assert json.loads(workers["b"].files[NODE]) == {
        "address": "10.0.0.2",
        "head": "10.0.0.1:6400",
        "nodes": 2,
        "ports": [6400, 6999],
    }
    for request in (head, workers["b"]):
        assert request.files[TOKEN] == "t0k-9f1"
        assert "t0k-9f1" not in json.dumps([request.argv, dict(request.env), request.about])
        assert "t0k-9f1" not in repr(request)
    assert not any("data/" in path for path in workers["b"].tree.files)  # the code alone
    at = Node("10.0.0.2", "10.0.0.1:6400", 2, (6400, 6999))
    assert "--address=10.0.0.1:6400" in command(at, "/w/ray", is_head=False)
    assert "--port=6400" in command(at, "/w/ray", is_head=True)
    assert environment(at, "/run/token")["RAY_AUTH_TOKEN_PATH"] == "/run/token"


def test_hosts_that_are_alike_have_nothing_against_them(inventory: Inventory) -> None:
    assert failed(inventory, seen(1), seen(2)) == {}


def test_what_stands_in_the_way_names_the_host(inventory: Inventory) -> None:
    other = {**SOFTWARE, "python": "3.11.9", "lightgbm": "4.5.0"}
    failures = failed(inventory, seen(1), seen(2, other))
    assert failures == {
        "software": ("error", "b: python 3.11.9 (a 3.11.7), lightgbm 4.5.0 (a 4.6.0)")
    }
    old = {**SOFTWARE, "ray": "2.40.0"}
    assert "asks no token" in failed(inventory, seen(1, old), seen(2, old))["software"][1]
    mute = replace(seen(2), software=None)
    assert failed(inventory, seen(1), mute)["software"][1].startswith("b: its Python")
    lost = replace(seen(2), node={"address": "", "why": "ib0: No such device", "shm": 1})
    failures = failed(inventory, seen(1), lost)
    assert failures["address"] == ("error", "b: it has no ib0: No such device")
    assert failures["shm"][0] == "warn"
    assert "b has none and gets no fit" in failed(inventory, seen(1), seen(2, cuda=[]))["gpu"][1]
    assert failed(inventory, seen(1, cuda=[]), seen(2, cuda=[]))["gpu"][0] == "error"
    busy = {"state": "RUNNING", "run": "r", "spec": {"about": {}}}
    assert failed(inventory, seen(1), seen(2, newest=busy))["free"] == (
        "error",
        "b: run r is in progress",
    )


def test_a_worker_of_a_run_that_is_over_is_not_in_the_way(inventory: Inventory) -> None:
    worker = {"state": "RUNNING", "run": "r", "spec": {"about": {"head": "a"}}}
    over = {"state": "FAILED", "run": "r"}
    leads = {"state": "RUNNING", "run": "r"}
    assert cluster.leftovers({"a": seen(1, newest=over), "b": seen(2, newest=worker)}) == {"b": "r"}
    assert failed(inventory, seen(1, newest=over), seen(2, newest=worker)) == {}
    assert cluster.leftovers({"a": seen(1, newest=leads), "b": seen(2, newest=worker)}) == {}
    stranger = {**worker, "spec": {"about": {"head": "elsewhere"}}}
    assert cluster.leftovers({"a": seen(1), "b": seen(2, newest=stranger)}) == {}


def test_a_worker_is_no_place_to_ask_about_the_run() -> None:
    with pytest.raises(UsageError, match="led by a") as caught:
        cluster.check_leads({"run": "r", "spec": {"about": {"head": "a"}}})
    assert "--host a" in caught.value.hint
    cluster.check_leads({"run": "r", "spec": {"about": {"workers": ["b"]}}})


def test_ports_are_really_tried() -> None:
    assert node.node_look("lo")["address"] == "127.0.0.1"
    assert "192.0.2.77" in node.node_look("192.0.2.77")["why"]
    assert "nothere0" in node.node_look("nothere0")["why"]
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        assert [p for p, _ in node.node_listen("127.0.0.1", [port])["taken"]] == [port]
        assert node.node_reach([["127.0.0.1", port]])["closed"] == []
    assert [p for _, p, _ in node.node_reach([["127.0.0.1", port]])["closed"]] == [port]


def test_rays_files_have_a_short_path_of_their_own(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 40)
    deep.mkdir()
    elsewhere = Path(own_directory(str(deep)))
    try:
        (elsewhere / "left").touch()  # by a node that was killed
        assert own_directory(str(deep)) == str(elsewhere)
        assert not [*elsewhere.iterdir()]
        assert len(str(elsewhere)) < 45
        assert elsewhere.stat().st_mode & 0o777 == 0o700
    finally:
        elsewhere.rmdir()
    with pytest.raises(HostError, match="no place for Ray's files"):
        own_directory("/proc/nowhere")


def test_only_the_last_line_of_a_program_counts() -> None:
    def answer(text: bytes) -> Any:
        return answer_of(Finished(0, text, b"", 0, False, 1.0))

    assert answer(b'warning\n{"a": 1}\n') == {"a": 1}
    assert answer(b"nothing") is None
