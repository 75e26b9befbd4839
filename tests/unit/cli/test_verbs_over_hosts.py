"""Each verb over an environment asks all its hosts at once, and names each that is away."""

from __future__ import annotations

import json
import os
import re
import signal
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from invoke import Context, Exit

from macd.cli import doctor, flag, gate, history, logs, monitor, status
from macd.errors import ContactLostError
from macd.gate.flag import Flipped
from macd.gate.logs import Place, Pulled
from macd.inventory import Host
from macd.journal import Journal
from macd.ssh.refusals import UnreachableError

HOSTS = ("one", "two", "three")
WAIT_S = 60.0
SERVING = "".join(
    f"  {name}: {{role: serve, env: prod, ssh: {name}, app_dir: /opt/macd}}\n" for name in HOSTS
)
BOX = "  h800: {role: train, ssh: h800, work_dir: ~/work}\n"
CASES = [
    (status.status, {}, 5),
    (status.why, {}, 5),
    (doctor.doctor, {}, 5),
    (history.history, {"env": "prod"}, 5),
    (logs.logs, {}, 5),
    (logs.logs, {"follow": True}, 5),
    (gate.shadow_gate, {}, 5),
    (monitor.monitor, {}, 5),
    (monitor.monitor, {"once": True}, 5),
    (flag.enable_stacking, {"yes": True}, 6),
    (flag.enable_stacking, {"dry_run": True}, 6),
    (flag.disable_stacking, {"yes": True}, 5),
    (flag.disable_stacking, {"dry_run": True}, 5),
]
NAMES = [f"{case[0].name} {' '.join(case[1])}".strip() for case in CASES]


class Away:
    """Hosts none of which answers, and that only once all of `together` are being asked."""

    def __init__(self, together: int) -> None:
        self.inside = threading.Barrier(together, timeout=WAIT_S)
        self.asked: list[str] = []

    def connect(self, host: Host, *_: Any, **__: Any) -> Any:
        self.asked.append(host.name)
        self.inside.wait()  # breaks, and fails the test, where one is asked after the other
        gateway = f"jump host of {host.name} refused the connection"
        raise UnreachableError(gateway, hop="gw", reason="refused", why="it is down", hint="")


def inventory(root: Path, monkeypatch: Any, hosts: str) -> None:
    (root / "tasks.py").touch()
    (root / "inventory").mkdir()
    (root / "inventory" / "lab.yml").write_text(f"hosts:\n{hosts}")
    monkeypatch.setenv("MACD_ROOT", str(root))
    monkeypatch.delenv("MACD_INVENTORY", raising=False)


def typed(verb: Any, **options: Any) -> int:
    try:
        verb(Context(), **options)
    except Exit as end:
        return end.code
    return 0


@pytest.mark.parametrize(("verb", "options", "code"), CASES, ids=NAMES)
@pytest.mark.parametrize("as_json", [False, True])
def test_all_hosts_are_asked_at_once_and_each_is_named(
    verb: Any,
    options: dict[str, Any],
    code: int,
    as_json: bool,
    tmp_path: Path,
    monkeypatch: Any,
    capsys: Any,
) -> None:
    inventory(tmp_path, monkeypatch, SERVING)
    away = Away(len(HOSTS))
    monkeypatch.setattr("macd.ssh.ssh.connect", away.connect)

    ended = typed(verb, json=as_json, **options)

    said = capsys.readouterr()
    assert ended == code, said
    assert sorted(away.asked) == sorted(HOSTS)
    for name in HOSTS:
        shared = rf"the same: .*\b{name}\b"  # printed once, under the first of them
        named = rf"{name}(:| +\| ✗) jump host of {name} refused|{shared}"
        assert re.search(named if said.err else f"of {name} refused", said.err or said.out)
    if as_json and not options.get("follow"):
        document = json.loads(said.out)
        assert list(document["away"]) == list(HOSTS)
        assert document["away"]["one"]["exit_code"] == 1
        assert document["hosts"] == []


def test_doctor_asks_the_training_box_beside_the_hosts_and_once(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    inventory(tmp_path, monkeypatch, SERVING + BOX)
    away = Away(len(HOSTS) + 1)
    monkeypatch.setattr("macd.ssh.ssh.connect", away.connect)

    assert typed(doctor.doctor) == 5

    assert sorted(away.asked) == sorted([*HOSTS, "h800"])
    assert capsys.readouterr().out == ""  # nothing is known of any host


def test_the_error_of_a_host_named_alone_is_the_whole_answer(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    inventory(tmp_path, monkeypatch, SERVING)
    away = Away(1)
    monkeypatch.setattr("macd.ssh.ssh.connect", away.connect)

    for verb, options, _ in CASES:
        assert typed(verb, host="two", json=True, **options) == 1
        document = json.loads(capsys.readouterr().out)
        assert document["error"]["what"] == "jump host of two refused the connection"
    assert set(away.asked) == {"two"}


def test_following_goes_on_without_a_lost_host_and_ctrl_c_still_tells_of_it(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    inventory(tmp_path, monkeypatch, SERVING)
    is_lost, end = threading.Event(), threading.Event()
    say = logs.Lines.say

    def saying(lines: logs.Lines, host: str, text: str, **to: Any) -> None:
        say(lines, host, text, **to)
        if "lost" in text:
            is_lost.set()

    def follow(_: Any, host: Host, __: Any, view: Any) -> None:
        if host.name == "two":
            raise ContactLostError("contact with two was lost")
        assert is_lost.wait(WAIT_S)
        view.line(host.name, b"went on")
        if host.name == "three":
            os.kill(os.getpid(), signal.SIGINT)
        end.wait(WAIT_S)

    copy = Pulled(tmp_path, 0, ("trades_20260301.jsonl",))
    monkeypatch.setattr(logs, "_look", lambda *_: logs._Seen(copy, [], [], Place()))
    monkeypatch.setattr(logs, "_follow", follow)
    monkeypatch.setattr(logs.Lines, "say", saying)

    assert typed(logs.logs, follow=True) == 5

    end.set()
    said = capsys.readouterr()
    assert "three | went on" in said.out
    assert said.err == "two   | ✗ contact with two was lost\n"


@dataclass(frozen=True)
class Prepared:
    """A flip without a host."""

    host: Host
    inventory: Any
    expected: Flipped
    outcome: Flipped

    def carry_out(self, _: str) -> Flipped:
        return self.outcome

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *_: object) -> None: ...


def test_flips_are_asked_for_by_host_and_end_with_the_worst(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    inventory(tmp_path, monkeypatch, SERVING)
    results = {"one": "set", "two": "reverted", "three": "already"}
    questions = []
    prepared: list[str] = []

    def prepare(host: Host, inventory: Any, wanted: str, weight: int | None) -> Prepared:
        assert weight is None  # disabling has none
        prepared.append(host.name)
        result = results[host.name]
        expected = "would" if result == "set" else "already"
        wrong = "it is not well" if host.name == "one" else ""
        return Prepared(
            host,
            inventory,
            Flipped(host.name, expected, wanted, "r1"),
            Flipped(host.name, result, wanted, "r1", wrong=wrong),
        )

    def agree(question: str, *, yes: bool) -> bool:
        questions.append((question, yes))
        return True

    monkeypatch.setattr("macd.gate.flag.prepare", prepare)
    monkeypatch.setattr(flag, "confirm", agree)

    assert typed(flag.disable_stacking, json=True) == 1  # unwell is worse than put back

    assert sorted(prepared) == sorted(HOSTS)  # one session each, before and after the question
    (question,) = questions
    assert question == (
        "disable stacking on one (r1), two (r1; it looks so already), "
        "three (r1; it looks so already)?",
        False,
    )
    document = json.loads(capsys.readouterr().out)
    assert [one["result"] for one in document["hosts"]] == list(results.values())
    # Two are on record; where nothing was done, nothing is.
    records = Journal(tmp_path / ".macd/lab/journal.jsonl").records()
    assert sorted(record.fields["host"] for record in records) == ["one", "two"]


def test_a_flip_is_told_though_the_journal_here_can_not_be_written(
    tmp_path: Path, monkeypatch: Any, capsys: Any
) -> None:
    inventory(tmp_path, monkeypatch, SERVING)
    (tmp_path / ".macd/lab").mkdir(parents=True)
    (tmp_path / ".macd/lab/journal.jsonl").write_bytes(b"half a rec")
    set_there = Flipped("one", "set", "0", "r1")
    monkeypatch.setattr(
        "macd.gate.flag.prepare", lambda h, i, *_: Prepared(h, i, set_there, set_there)
    )

    assert typed(flag.disable_stacking, host="one", yes=True) == 1

    said = capsys.readouterr()
    assert "one: stacking is in shadow" in said.out
    assert "not recorded here: " in said.out
