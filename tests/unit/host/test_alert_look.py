"""One look after the other: what is stored before it is sent, and what a bad disk changes."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from macd.host import durable
from macd.host.alerts import look, webhook
from macd.host.alerts.conditions import Facts, Newest, Terms
from macd.host.durable import Disk
from macd.host.layout import Layout
from macd.host.systemd.supervisor import Process
from tests.support.receiver import Receiver, receiving

NOW = 1772450000.0
TERMS = Terms(unit="macd-analysis", silent_bars=0, expires_days=0, clock_s=0)
RUNS = Process("active", "running", 7, "a1", 0, "success", "enabled", "loaded")
FULL = Disk("/", 1000, 1, -1)
ROOMY = Disk("/", 1000, 900, -1)


class Host:
    """An application directory whose facts are as the test says."""

    def __init__(self, root: Path, receiver: Receiver) -> None:
        self.layout, self.receiver, self.now = Layout(str(root)), receiver, NOW
        self.terms = TERMS
        self.seen: dict[str, Any] = {"disk": ROOMY}
        base = f"http://127.0.0.1:{receiver.server_port}"
        addresses = {"url": f"{base}/t0ken", "heartbeat_url": f"{base}/beat"}
        (root / "state").mkdir()
        (root / "state/notify.json").write_text(json.dumps(addresses))

    def look(self, **seen: Any) -> str:
        self.seen |= seen
        self.now += 300
        return look.look(self.layout, self.terms, self.now)

    def facts(self, _: Layout, __: Terms, now: float, *, offset_s: float | None) -> Facts:
        health = {"health": {"status": "ok"}, "process": RUNS, "live": "r1"}
        return Facts(now=now, offset_s=offset_s, **{**health, **self.seen})

    @property
    def texts(self) -> list[str]:
        return [got["text"] for method, _, got in self.receiver.got if method == "POST"]

    @property
    def beats(self) -> int:
        return [path for _, path, _ in self.receiver.got].count("/beat")

    @property
    def state(self) -> dict[str, Any]:
        return dict(json.loads(Path(self.layout.state("alerts.json")).read_text()))


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    with receiving() as receiver:
        made = Host(tmp_path, receiver)
        monkeypatch.setattr(look, "gather", made.facts)
        yield made


def bar(number: int) -> Newest:
    return Newest(number * 3_600_000, (number + 1) * 3_600_000, "1h")


def no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(durable, "replace_file", refuse)


def test_what_begins_and_ends_is_told_stored_and_on_record(host: Host) -> None:
    host.look()
    host.look(disk=FULL)
    assert host.state["open"] == [] and host.texts == []
    host.look()
    (one,) = host.state["open"]
    assert one["name"] == "disk" and one["since"].startswith("2026-03-02T11:23:20")
    assert "began: disk: 0.1% of the disk is free" in host.texts[0] and "do: " in host.texts[0]
    host.look(disk=ROOMY)
    host.look()
    assert host.state["open"] == [] and len(host.texts) == 2
    records = Path(host.layout.state("journal.jsonl")).read_text()
    assert records.count("alert.began") == records.count("alert.ended") == 1
    assert "t0ken" not in records + json.dumps(host.state)


def test_what_could_not_be_sent_is_sent_again_and_no_heartbeat_meanwhile(host: Host) -> None:
    host.look(newest=bar(1))
    assert host.beats == 1
    host.receiver.code = 500
    for number in (2, 3, 4):
        host.look(disk=FULL, newest=bar(number))
    assert host.state["sending"] == "the address answered 500"
    assert len(host.state["outbox"]) == 1
    beats = host.beats  # one more bar came before the message was due
    host.receiver.code = 200
    host.look(newest=bar(4))
    assert host.texts[-1] == host.texts[0] and host.state["outbox"] == []
    assert host.beats == beats + 1
    tried = len(host.texts)
    host.look(newest=bar(4))
    assert (len(host.texts), host.beats) == (tried, beats + 1)


WRONG = {"status": "failed", "last_error": "错" * 900}  # a service's own words, of three bytes each


def test_no_alarm_is_lost_where_the_webhook_takes_short_texts_only(host: Host) -> None:
    addresses = Path(host.layout.state("notify.json"))
    addresses.write_text(json.dumps({**json.loads(addresses.read_text()), "format": "wecom"}))
    host.receiver.body = b'{"errcode": 0}'
    for _ in range(2):
        host.look(health=WRONG, disk=FULL, guard="dead", unread=("错" * 900,))
    texts = [got["text"]["content"] for _, _, got in host.receiver.got]
    assert all(len(text.encode()) <= 2048 and text.startswith("macd on ") for text in texts)
    for name in ("service", "disk", "guard", "look"):
        (told,) = [text for text in texts if f"began: {name}: " in text]
        assert "  do: " in told.partition(f"began: {name}: ")[2]
    assert len(texts) == 2  # what fits is together
    assert host.state["outbox"] == []


def test_one_that_takes_any_length_gets_one_message(host: Host) -> None:
    for _ in range(2):
        host.look(health=WRONG, disk=FULL)
    (got,) = [got for _, _, got in host.receiver.got]
    assert [alert["name"] for alert in got["alerts"]] == ["disk", "service"]


def test_of_several_messages_those_that_were_taken_are_not_sent_again(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[str] = []

    def post(_: Layout, message: dict[str, Any]) -> webhook.Answer:
        sent.append(message["text"])
        return webhook.Answer("away" if len(sent) == 2 else webhook.SENT)

    monkeypatch.setattr(webhook, "post", post)
    monkeypatch.setattr(webhook, "longest", lambda _: 1000)
    for _ in range(2):
        host.look(health=WRONG, disk=FULL)
    assert [event["name"] for event in host.state["outbox"]] == ["service"]
    assert host.state["sending"] == "away"
    host.look()
    assert host.state["outbox"] == [] and len(sent) == 3
    assert sent[1] == sent[2] and "began: disk" in sent[0]


def test_on_a_full_disk_the_memory_is_rewritten_in_its_place(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.look()
    no_room(monkeypatch)
    for _ in range(5):
        assert host.look(disk=FULL, newest=bar(1)) == ""
    assert len(host.texts) == 1 and host.beats == 1


def test_on_a_full_disk_long_words_of_a_service_leave_room_for_the_alarm(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.look()
    no_room(monkeypatch)
    wrong = {"health": WRONG, "guard": "dead", "unread": ("\u9519" * 900,), "disk": FULL}
    assert [host.look(**wrong), host.look()] == ["", ""]
    assert "began: disk: 0.1% of the disk is free" in "".join(host.texts)


def test_what_can_not_be_stored_is_not_sent_and_the_heartbeat_stops(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    no_room(monkeypatch)  # and no file is there to be rewritten
    for _ in range(3):
        assert "can't be written" in host.look(disk=FULL, newest=bar(1))
    assert host.receiver.got == []


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"episodes": 3}', "\0" * 99, "[" * 100_000])
def test_a_damaged_memory_begins_anew(host: Host, damage: str) -> None:
    for _ in range(3):
        host.look(disk=FULL)
    Path(host.layout.state("alerts.json")).write_text(damage)
    host.look()
    assert host.state["open"] == []
    host.look()
    assert [one["name"] for one in host.state["open"]] == ["disk"]


def test_restarts_are_counted_over_an_hour_and_across_a_start_by_hand(host: Host) -> None:
    def counted(restarts: int, loaded: str = "loaded") -> list[str]:
        process = Process("active", "running", 7, "a1", restarts, "success", "enabled", loaded)
        host.look(process=process, restarts=restarts)
        return [one["name"] for one in host.state["open"]]

    for count in (7, 7, 8, 8, 9, 0):  # the last one: nobody could ask
        assert counted(count, "loaded" if count else "") == []
    assert counted(9) == []
    assert counted(1) == []  # started by hand, then once by systemd
    assert counted(1) == ["restarting"]  # three within the hour, at two looks
    for _ in range(12):
        last = counted(1)
    assert last == []


def test_a_clock_that_is_off_by_the_servers_is_asked_for_until_it_is_right(
    host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "terms", Terms(unit="macd-analysis", clock_s=30))
    host.receiver.behind_s = 95
    host.look(newest=bar(1))  # the heartbeat's answer shows it
    host.look()
    host.look()
    assert "s ahead of a web server's" in host.texts[0]
    host.receiver.behind_s, host.receiver.code = 0, 405  # as chats answer a HEAD
    host.look()
    assert [one["name"] for one in host.state["open"]] == ["clock"]
    host.receiver.code = 200
    host.look()
    assert host.state["open"] == [] and "ended: clock" in host.texts[1]
    asked = [method for method, _, _ in host.receiver.got].count("HEAD")
    host.look()
    assert [method for method, _, _ in host.receiver.got].count("HEAD") == asked


def test_the_units_words_are_the_terms() -> None:
    terms = Terms(unit="a", scope="user", every_s=3, disk_free=0.125)
    words = look.words_of(terms).split()
    assert look.terms_of([*words, "newer=1"]) == terms
    with pytest.raises(ValueError, match="could not convert"):
        look.terms_of(["unit=a", "every_s=x"])
